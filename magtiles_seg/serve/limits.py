"""What a request must stay within before any work is done for it."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager

from magtiles_seg.serve.problems import Problem

_SIGNATURES = (
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"\xff\xd8\xff", "JPEG"),
    (b"BM", "BMP"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"II+\0", "TIFF"),
    (b"MM\0+", "TIFF"),
)


def format_of(data: bytes) -> str | None:
    """Return a picture file's format by its first bytes, by Pillow's name, or None."""
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    return next((name for start, name in _SIGNATURES if data.startswith(start)), None)


def check_format(data: bytes, allowed: frozenset[str]) -> None:
    """Refuse what is of no allowed format.

    Raises:
        Problem: 415, or 400 for an empty file.
    """
    if not data:
        raise Problem(400, "the file in the field 'image' is empty; send a picture")
    if format_of(data) not in allowed:
        raise Problem(415, f"the file in the field 'image' is none of {', '.join(sorted(allowed))}")


class Gate:
    """Lets so many requests in at once; the others are told when to come again.

    Attributes:
        inside: Requests that are being read, computed or answered.
        accepted: Requests ever let in.
        answered: Of these, those that were answered, or whose client left.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._seconds_each = 0.1
        self.inside = 0
        self.accepted = 0
        self.answered = 0

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Hold a place.

        Raises:
            Problem: 503 with `Retry-After`, when all places are taken.
        """
        if self.inside >= self._most:
            wait = math.ceil(self._seconds_each)
            raise Problem(
                503,
                f"{self.inside} requests are being worked on; try again in {wait} s",
                headers={"Retry-After": str(wait)},
            )
        self.inside += 1
        self.accepted += 1
        start = time.perf_counter()
        try:
            yield
        finally:
            self.inside -= 1
            self.answered += 1
            # How long requests take of late is how long the next one should wait.
            self._seconds_each += 0.1 * (time.perf_counter() - start - self._seconds_each)
