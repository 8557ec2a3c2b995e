"""A release that proves itself: bring up, smoke-test, and undo what was done where that fails."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from typing import Protocol

from magtiles_seg.delivery.smoke import Expectation, SmokeReport, served_model, smoke
from magtiles_seg.errors import DeliveryError


class Undone(StrEnum):
    """What a rollback came to; the value says what is served then."""

    UNTOUCHED = "nothing was changed: what was served before is served still"
    RESTORED = "rolled back"
    EMPTY = "nothing was served before, so nothing is served now"
    LEFT = "nothing was served before, so what failed is still there: look at it"


class Target(Protocol):
    """Where a model can be released."""

    @property
    def url(self) -> str:
        """Where the endpoint is."""

    def describe(self) -> str:
        """Return what a release would do."""

    def release(self) -> None:
        """Bring the new model up."""

    def rollback(self) -> Undone:
        """Undo what `release` did, and nothing else."""


def deploy(
    target: Target,
    expected: Expectation,
    *,
    test: Callable[[str, Expectation], SmokeReport] = smoke,
    look: Callable[[str, str | None], str | None] = served_model,
) -> SmokeReport:
    """Release, and undo it unless the endpoint passes its smoke test.

    Args:
        target: Where to.
        expected: What the endpoint must answer.
        test: The smoke test.
        look: Returns the SHA-256 of the model that an endpoint serves; None where it cannot tell.

    Raises:
        DeliveryError: The release or its test failed; the message says what runs now.
    """
    former = Expectation(
        min_iou=0.0,
        ready_s=expected.ready_s,
        api_key=expected.api_key,
        sha256=look(target.url, expected.api_key),
    )
    try:
        target.release()
        return test(target.url, expected)
    except BaseException as error:  # an interrupt, too, must not leave half a release behind
        said = _go_back(target, former, test)
        if isinstance(error, DeliveryError):
            raise DeliveryError(f"{error}; {said}") from error
        error.add_note(said)
        raise


def _go_back(
    target: Target, former: Expectation, test: Callable[[str, Expectation], SmokeReport]
) -> str:
    try:
        undone = target.rollback()
        if undone is not Undone.RESTORED:
            return str(undone)
        return f"{undone}: {test(target.url, former)}"
    except DeliveryError as error:
        return f"and the way back failed too, look at it now: {error}"
