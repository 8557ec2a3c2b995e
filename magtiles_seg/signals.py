"""What SIGTERM and Ctrl+C do while a block runs."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import FrameType


@contextmanager
def handled(
    handler: Callable[[int, FrameType | None], None], *, once: bool = False
) -> Iterator[None]:
    """Let SIGTERM and SIGINT call a handler; behind the block they act as before.

    A signal that is ignored, as `nohup` and `&` have it, stays so. Only the main thread gets
    signals; in another one nothing changes.

    Args:
        handler: Gets the signal's number and the frame that it interrupts.
        once: Whether further signals act as before, already in the block.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    both = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    former = {number: acts for number, acts in both.items() if acts != signal.SIG_IGN}

    def restore() -> None:
        for number, acts in former.items():
            signal.signal(number, acts)

    def handle(number: int, frame: FrameType | None) -> None:
        if once:
            restore()
        handler(number, frame)

    for number in former:
        signal.signal(number, handle)
    try:
        yield
    finally:
        restore()
