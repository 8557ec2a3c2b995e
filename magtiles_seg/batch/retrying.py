"""Waiting out an outage: a store that is gone for a minute is no reason to give up a week's run."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import TypeVar

Value = TypeVar("Value")

_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.2, 20.0


def persist(
    action: Callable[[], Value],
    *,
    patience_s: float,
    is_final: Callable[[Exception], bool],
    sleep: Callable[[float], None] = time.sleep,
) -> Value:
    """Return what an action gives, trying again while it fails.

    The waits double from 0.2 s to 20 s; each is shortened by up to a half at random, so that a
    thousand workers do not knock at once.

    Args:
        action: Tried until it succeeds.
        patience_s: Waits of so many seconds in all, then the last error is raised.
        is_final: Whether an error will not go away by waiting: it is raised at once.
        sleep: Waits.
    """
    wait_s, waited_s = _FIRST_WAIT_S, 0.0
    while True:
        try:
            return action()
        except Exception as error:
            if is_final(error) or waited_s >= patience_s:
                raise
        pause_s = min(wait_s * random.uniform(0.5, 1), patience_s - waited_s)
        sleep(pause_s)
        waited_s += pause_s
        wait_s = min(2 * wait_s, _LONGEST_WAIT_S)
