"""What out-of-fold predictions say of thresholds and calibration, and how well the latter holds."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from magtiles_seg.dataset.samples import Sample
from magtiles_seg.errors import ConfigError, DataError
from magtiles_seg.evaluate.calibration import (
    LOGITS,
    Affine,
    fit,
    logit,
    logit_histogram,
    reliability,
    sigmoid,
)
from magtiles_seg.evaluate.metrics import AnyArray, FloatArray, IntArray
from magtiles_seg.evaluate.ranking import score_at_recall
from magtiles_seg.evaluate.thresholds import MARGINS_PX, Chooser
from magtiles_seg.labels import FREE
from magtiles_seg.regions import top_values
from magtiles_seg.result import Decision, Segmentation

Diagrams: TypeAlias = "dict[str, tuple[list[dict[str, Any]], float]]"
"""Rows of reliability diagrams and the expected calibration error, by name."""

_GRAIN = 1e-4
"""A reject score is rounded down to it: the picture that sets it must not slip below it."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What out-of-fold predictions say of how a model's probabilities are to be used.

    Attributes:
        decision: Threshold, smallest region, margin and reject score for the calibrated model.
        pixel: Calibration of a pixel's probability.
        recall: That the reject score was chosen for.
        pictures: How many it was chosen on.
        tiles: Of how many tiles.
    """

    decision: Decision
    pixel: Affine
    recall: float
    pictures: int
    tiles: int

    def to_json(self) -> str:
        """Return the choice as JSON text."""
        return json.dumps(asdict(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Choice:
        """Return the choice that `to_json` wrote.

        Raises:
            DataError: The text is something else.
        """
        try:
            content = json.loads(text)
            parts = {
                "decision": Decision(**content["decision"]),
                "pixel": Affine(**content["pixel"]),
            }
            return cls(**{**content, **parts})
        except (ValueError, KeyError, TypeError, ConfigError) as error:
            raise DataError(
                f"no choice of thresholds: {error!r}; expected the choice.json that "
                "`magtiles-seg evaluate --folds … --out DIR` writes"
            ) from error


class Tally:
    """What a calibration needs of one fold's predictions; pictures with an empty mask say nothing.

    Attributes:
        pixels: (2, 257) as of `logit_histogram`.
        tops: By margin, for each picture its largest pixel probabilities, (k,) float64.
        is_defect: Whether each picture is filed as defective.
    """

    def __init__(self) -> None:
        """Start without pictures."""
        self.pixels: IntArray = np.zeros((2, LOGITS.size), np.int64)
        self.tops: dict[int, list[FloatArray]] = {margin: [] for margin in MARGINS_PX}
        self.is_defect: list[bool] = []

    def add(self, sample: Sample, result: Segmentation, target: npt.NDArray[np.uint8]) -> None:
        """Take in one picture's answer and its target, (H, W) uint8."""
        defective = sample.label != FREE
        if defective and not target.any():
            return
        self.pixels += logit_histogram(result.probability, target)
        for margin, tops in self.tops.items():
            top = top_values(result.probability, result.decision.score_top_k_px, margin)
            tops.append(top.astype(np.float64))
        self.is_defect.append(defective)

    def scores(self, pixel: Affine, margin_px: int) -> FloatArray:
        """(P,) mean of the largest pixel probabilities of each picture, once calibrated."""
        return np.array([pixel(top).mean() for top in self.tops[margin_px]])


def _fit_pictures(
    tallies: Sequence[Tally], pixel: Affine, margin_px: int
) -> tuple[Affine, FloatArray, AnyArray]:
    """Return the pictures' calibration, and what it was fitted on: scores (P,), defective (P,)."""
    scores = np.concatenate([tally.scores(pixel, margin_px) for tally in tallies])
    defect = np.concatenate([tally.is_defect for tally in tallies])
    return fit(logit(scores), ~defect, defect), scores, defect


def choose(chooser: Chooser, tallies: Sequence[Tally], *, recall: float, tiles: int) -> Choice:
    """Choose on raw predictions, and say it in calibrated ones: the pixels keep their order.

    Args:
        chooser: Has seen all folds.
        tallies: One a fold.
        recall: Share of the defective pictures that the reject score must catch.
        tiles: How many they are of.

    Raises:
        ConfigError: No picture is sound, or none is defective.
    """
    pixel = fit(LOGITS, *np.sum([tally.pixels for tally in tallies], axis=0))
    raw = chooser.decision(recall=recall)
    picture, scores, defect = _fit_pictures(tallies, pixel, raw.score_margin_px)
    reject_score = score_at_recall(picture(scores), defect, recall=recall)
    return Choice(
        decision=replace(
            raw,
            threshold=float(pixel(np.asarray(raw.threshold))),
            reject_score=math.floor(reject_score / _GRAIN) * _GRAIN,
            score_scale=picture.scale,
            score_bias=picture.bias,
        ),
        pixel=pixel,
        recall=recall,
        pictures=len(scores),
        tiles=tiles,
    )


def diagrams(tallies: Sequence[Tally], margin_px: int) -> Diagrams:
    """Return how far probabilities are to be believed, before and after calibration.

    The maps of "after" are fitted on the other folds alone, so one fold gives "before" only.

    Args:
        tallies: One a fold.
        margin_px: One of `MARGINS_PX`, that the scores leave out.

    Returns:
        `pixels_before`, `pictures_before`, `pixels_after`, `pictures_after`.
    """
    raw = Affine()
    cases: dict[str, list[tuple[FloatArray, AnyArray, AnyArray]]] = {}
    for index, tally in enumerate(tallies):
        defect, pixels = np.asarray(tally.is_defect), tally.pixels
        cases.setdefault("pixels_before", []).append((sigmoid(LOGITS), *pixels))
        cases.setdefault("pictures_before", []).append(
            (tally.scores(raw, margin_px), ~defect, defect)
        )
        others = [*tallies[:index], *tallies[index + 1 :]]
        if others:
            pixel = fit(LOGITS, *np.sum([other.pixels for other in others], axis=0))
            picture, _, _ = _fit_pictures(others, pixel, margin_px)
            scores = picture(tally.scores(pixel, margin_px))
            cases.setdefault("pixels_after", []).append((pixel(sigmoid(LOGITS)), *pixels))
            cases.setdefault("pictures_after", []).append((scores, ~defect, defect))
    return {
        name: reliability(*(np.concatenate(column) for column in zip(*parts, strict=True)))
        for name, parts in cases.items()
    }
