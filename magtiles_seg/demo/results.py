"""The results that pages show, kept for the sliders: bounded in bytes and age, the oldest go."""

from __future__ import annotations

import secrets
import threading
import time
from collections import OrderedDict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from magtiles_seg.result import Segmentation

_BYTES = 400_000_000
_KEPT_S = 1800.0


class Results:
    """Results by keys that nobody can guess; a page holds the key of what it shows."""

    def __init__(self, max_bytes: int = _BYTES, kept_s: float = _KEPT_S) -> None:
        """Start with none.

        Args:
            max_bytes: Of all results' arrays.
            kept_s: How long a result stays that nobody asks for.
        """
        self._max_bytes, self._kept_s = max_bytes, kept_s
        self._results: OrderedDict[str, tuple[float, Segmentation]] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def keep(self, result: Segmentation) -> str:
        """Keep a result and return its key."""
        key = secrets.token_urlsafe(24)
        with self._lock:
            self._results[key] = (time.monotonic(), result)
            self._bytes += _size(result)
            self._drop()
        return key

    def get(self, key: str) -> Segmentation | None:
        """Return the result of a key, or None where it is gone."""
        with self._lock:
            self._drop()
            if key not in self._results:
                return None
            _, result = self._results[key]
            self._results[key] = (time.monotonic(), result)
            self._results.move_to_end(key)
            return result

    def _drop(self) -> None:
        latest = time.monotonic() - self._kept_s
        while self._results:
            used_s, result = next(iter(self._results.values()))
            if used_s >= latest and self._bytes <= self._max_bytes:
                return
            self._results.popitem(last=False)
            self._bytes -= _size(result)


def _size(result: Segmentation) -> int:
    arrays = (result.image, result.probability, result.classes, result.mask)
    return sum(array.nbytes for array in arrays) + result.image.nbytes  # and one that it hides
