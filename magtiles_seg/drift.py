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
from collections.abc import Iterable, Mapping, Sequence
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
    return {
        **features_of_pixels(result.image),
        "score": result.score,
        "defect_rate": float(result.verdict != "accept"),
    }


def features_of_pixels(image: NDArray[np.uint8]) -> dict[str, float]:
    """Return the features that need no model, of a picture (H, W) uint8."""
    edges = cv2.Laplacian(image, cv2.CV_16S)
    return {
        "gray_level": float(cv2.mean(image)[0]),
        "sharpness": float(cv2.meanStdDev(edges)[1][0, 0]),
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
    return statistics_of(rows)


def statistics_of(rows: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """Return the statistics of some pictures' features, all of the same names."""
    statistics: dict[str, Any] = {"pictures": len(rows)}
    for name in rows[0]:
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

    def __init__(
        self, reference: Mapping[str, Any], *, window: int, names: Sequence[str] = FEATURES
    ) -> None:
        """Start with no pictures.

        Args:
            reference: A card's `input_statistics`; may be empty.
            window: How many pictures count as late.
            names: The features that are watched, of `FEATURES`.

        Raises:
            ModelError: The statistics are damaged.
        """
        self.has_reference = bool(reference)
        self._names = tuple(names)
        self._reference = {name: _bins(reference, name) for name in names if reference}
        self._pictures = int(reference.get("pictures", 0))
        self._late: dict[str, deque[float]] = {name: deque(maxlen=window) for name in names}

    def add(self, values: Mapping[str, float]) -> None:
        """Take one picture's features."""
        for name in self._names:
            self._late[name].append(values[name])

    def means(self) -> dict[str, float]:
        """Return the mean of each feature over the window; NaN before the first picture."""
        return {name: _mean(values) for name, values in self._late.items()}

    def psi(self) -> dict[str, float]:
        """Return each feature's index; nothing without a reference or before 100 pictures."""
        if len(self._late[self._names[0]]) < _LEAST:
            return {}
        found = {}
        for name in self._reference:
            late, usual = self._shares(name)
            found[name] = float(np.sum((late - usual) * np.log(late / usual)))
        return found

    def excess(self, *, psi: float) -> dict[str, Numbers]:
        """Return ln(p / q) of each bin, of the features whose index is at least `psi`."""
        drifted = [name for name, index in self.psi().items() if index >= psi]
        return {name: np.log(np.divide(*self._shares(name))) for name in drifted}

    def surprise(self, values: Mapping[str, float], excess: Mapping[str, Numbers]) -> float:
        """Return how much a picture is of the kind that has become frequent, by `excess`.

        The sum of ln(p / q) over its bins; 0 where no feature has drifted, or it lies in bins that
        are no more frequent than usual.
        """
        total = sum(
            float(table[np.searchsorted(self._reference[name][0], values[name], side="right")])
            for name, table in excess.items()
        )
        return max(0.0, total)

    def _shares(self, name: str) -> tuple[Numbers, Numbers]:
        """Return the shares of a feature's bins, of late and usually."""
        edges, shares = self._reference[name]
        values = np.array(self._late[name])
        counts = np.bincount(np.searchsorted(edges, values, side="right"), minlength=len(shares))
        late = (counts.astype(np.float64) + 0.5) / (values.size + 0.5 * len(shares))
        return late, (shares * self._pictures + 0.5) / (self._pictures + 0.5 * len(shares))


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
