"""Drift: how far the pictures of late differ from those that the model was judged on.

Four features of each picture are counted into bins, whose edges and usual shares the model's card
carries as `input_statistics`; the population stability index says how far the shares have moved:

    PSI = sum over bins of (p - q) ln(p / q),    p of late, q usual

Source: Yurdakul and Naranjo, "Statistical properties of the population stability index", Journal of
Risk Model Validation 14 (2020). By the usual rule 0.1 is a change and 0.2 a large one. Half a
picture is added to every bin, so that an empty one gives a finite index; equal shares give 0.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray

from magtiles_seg.errors import ConfigError, ModelError
from magtiles_seg.result import Segmentation

Numbers: TypeAlias = "NDArray[np.float64]"

FEATURES = ("gray_level", "sharpness", "score", "defect_rate")
"""Mean grey 0..255, spread of the Laplacian, the model's score, 1 where it did not accept."""

_BINS = 10
_LEAST = 100  # of fewer pictures chance alone makes an index near 0.1


def features(result: Segmentation) -> dict[str, float]:
    """Return one picture's value of each of `FEATURES`."""
    edges = cv2.Laplacian(result.image, cv2.CV_16S)
    return {
        "gray_level": float(result.image.mean()),
        "sharpness": float(edges.std()),
        "score": result.score,
        "defect_rate": float(result.verdict != "accept"),
    }


def input_statistics(results: Iterable[Segmentation]) -> dict[str, Any]:
    """Return what `ModelCard.input_statistics` carries, from answers to usual pictures.

    Args:
        results: Answers of the model to pictures as they are usual, some hundreds at least.

    Raises:
        ConfigError: There are fewer than 100.

    Example:
        >>> with Segmenter() as segmenter:
        ...     statistics = input_statistics(map(segmenter, paths))
    """
    rows = [features(result) for result in results]
    if len(rows) < _LEAST:
        raise ConfigError(f"input statistics need at least {_LEAST} pictures, got {len(rows)}")
    statistics: dict[str, Any] = {"pictures": len(rows)}
    for name in FEATURES:
        values = np.array([row[name] for row in rows])
        edges = np.unique(np.quantile(values, np.arange(1, _BINS) / _BINS))
        if name == "defect_rate":
            edges = np.array([0.5])
        counts = np.bincount(np.searchsorted(edges, values, side="right"), minlength=len(edges) + 1)
        statistics[name] = {"edges": edges.tolist(), "shares": (counts / len(rows)).tolist()}
    return statistics


class DriftMonitor:
    """The features of the latest pictures, beside the usual ones.

    Attributes:
        has_reference: Whether the card says what is usual.
    """

    def __init__(self, reference: Mapping[str, Any], *, window: int) -> None:
        """Start with no pictures.

        Args:
            reference: A card's `input_statistics`; may be empty.
            window: How many pictures count as late.

        Raises:
            ModelError: The statistics are damaged.
        """
        self.has_reference = bool(reference)
        self._reference = {name: _bins(reference, name) for name in FEATURES if reference}
        self._pictures = int(reference.get("pictures", 0))
        self._late: dict[str, deque[float]] = {name: deque(maxlen=window) for name in FEATURES}

    def add(self, values: Mapping[str, float]) -> None:
        """Take one picture's features."""
        for name in FEATURES:
            self._late[name].append(values[name])

    def means(self) -> dict[str, float]:
        """Return the mean of each feature over the window; NaN before the first picture."""
        return {name: _mean(values) for name, values in self._late.items()}

    def psi(self) -> dict[str, float]:
        """Return each feature's index; nothing without a reference or before 100 pictures."""
        if len(self._late[FEATURES[0]]) < _LEAST:
            return {}
        return {
            name: self._index(np.array(self._late[name]), *self._reference[name])
            for name in self._reference
        }

    def _index(
        self,
        values: Numbers,
        edges: Numbers,
        shares: Numbers,
    ) -> float:
        counts = np.bincount(np.searchsorted(edges, values, side="right"), minlength=len(shares))
        late = (counts + 0.5) / (values.size + 0.5 * len(shares))
        usual = (shares * self._pictures + 0.5) / (self._pictures + 0.5 * len(shares))
        return float(np.sum((late - usual) * np.log(late / usual)))


def _mean(values: deque[float]) -> float:
    return sum(values) / len(values) if values else math.nan


def _bins(reference: Mapping[str, Any], name: str) -> tuple[Numbers, Numbers]:
    try:
        edges = np.asarray(reference[name]["edges"], np.float64)
        shares = np.asarray(reference[name]["shares"], np.float64)
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(f"the card's input statistics have no bins of {name!r}") from error
    if edges.ndim != 1 or shares.shape != (edges.size + 1,) or np.any(np.diff(edges) <= 0):
        raise ModelError(
            f"the card's input statistics of {name!r}: expected rising edges and one share more, "
            f"got {edges.size} edges and {shares.size} shares; measure them again"
        )
    return edges, shares
