"""What the demo holds in memory: models that can be chosen, and the results that pages show."""

from __future__ import annotations

import secrets
import threading
import time
from collections import OrderedDict
from typing import TYPE_CHECKING

from magtiles_seg.infer import BUNDLED_MODELS, Segmenter

if TYPE_CHECKING:
    from pathlib import Path

    from magtiles_seg.result import Segmentation


class Models:
    """Models by name; each is loaded when it is first asked for.

    Attributes:
        first: The one that the demo was given; stays the caller's.
        names: All of them, the first one first.
    """

    def __init__(self, first: Segmenter, bundled: dict[str, Path] | None = None) -> None:
        """Offer a model and others.

        Args:
            first: Loaded, and the choice of who chooses none.
            bundled: Model files by name; None: those of the package.
        """
        self.first = first
        bundled = BUNDLED_MODELS if bundled is None else bundled
        path = first.spec.path
        self._paths = {name: other for name, other in bundled.items() if other != path}
        own = first.spec.card.name
        self.names = (own if own not in self._paths else f"{own} ({path.name})", *self._paths)
        self._loaded: dict[str, Segmenter] = {self.names[0]: first}
        self._lock = threading.Lock()

    def get(self, name: str | None = None) -> Segmenter:
        """Return the model of a name; the first one where the name is none of `names`."""
        name = name if name in self.names else self.names[0]
        with self._lock:
            if name not in self._loaded:
                self._loaded[name] = Segmenter(self._paths[name])
            return self._loaded[name]


def describe(segmenter: Segmenter, seconds: float | None = None) -> str:
    """Return what answered: name, precision, runtime and, where it is known, the time."""
    spec = segmenter.spec
    took = "" if seconds is None else f", {seconds * 1000:.0f} ms"
    return f"{spec.card.name}, {spec.precision}, {spec.name} on {spec.device}{took}"


_MAX_BYTES = 400_000_000  # of all results' arrays
_KEPT_S = 1800.0  # how long a result stays that nobody asks for


class Results:
    """Results by keys that nobody can guess; a page holds the key of what it shows."""

    def __init__(self) -> None:
        """Start with none."""
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
        latest = time.monotonic() - _KEPT_S
        while self._results:
            used_s, result = next(iter(self._results.values()))
            if used_s >= latest and self._bytes <= _MAX_BYTES:
                return
            self._results.popitem(last=False)
            self._bytes -= _size(result)


def _size(result: Segmentation) -> int:
    arrays = (result.image, result.probability, result.classes, result.mask)
    return sum(array.nbytes for array in arrays) + result.image.nbytes  # and one that it hides
