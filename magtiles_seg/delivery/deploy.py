"""A release that proves itself: bring up, smoke-test, and go back where the test fails."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from magtiles_seg.delivery.smoke import Expectation, SmokeReport, smoke
from magtiles_seg.errors import DeliveryError


class Target(Protocol):
    """Where a model can be released."""

    @property
    def url(self) -> str:
        """Where the endpoint is."""

    def describe(self) -> str:
        """Return what a release would do."""

    def release(self) -> None:
        """Bring the new model up."""

    def rollback(self) -> bool:
        """Bring the former one back; False where there was none."""


def deploy(
    target: Target,
    expected: Expectation,
    *,
    test: Callable[[str, Expectation], SmokeReport] = smoke,
) -> SmokeReport:
    """Release, and roll back unless the endpoint passes its smoke test.

    Args:
        target: Where to.
        expected: What the endpoint must answer.
        test: The smoke test.

    Raises:
        DeliveryError: The release or its test failed; the message says what runs now.
    """
    try:
        target.release()
        return test(target.url, expected)
    except DeliveryError as error:
        raise DeliveryError(f"{error}; {_go_back(target, expected, test)}") from error


def _go_back(
    target: Target, expected: Expectation, test: Callable[[str, Expectation], SmokeReport]
) -> str:
    try:
        if not target.rollback():
            return "nothing was released before, so nothing is served now"
        former = Expectation(min_iou=0.0, ready_s=expected.ready_s, api_key=expected.api_key)
        return f"rolled back: {test(target.url, former)}"
    except DeliveryError as error:
        return f"and the way back failed too, look at it now: {error}"
