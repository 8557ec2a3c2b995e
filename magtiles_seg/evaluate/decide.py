"""Where to cut: from which probability a pixel is defect, and from which score a picture is."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
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
from magtiles_seg.evaluate.metrics import (
    BINS,
    AnyArray,
    FloatArray,
    IntArray,
    auroc,
    dice,
    probability_bins,
    probability_histogram,
    score_at_recall,
)
from magtiles_seg.evaluate.protocols import Protocol, get_protocol, prepare
from magtiles_seg.evaluate.scoring import Predictor, as_segmentation, without_ignored
from magtiles_seg.evaluate.tiles import tile_scores
from magtiles_seg.labels import FREE, LABELS
from magtiles_seg.model.card import ModelCard
from magtiles_seg.regions import top_values
from magtiles_seg.result import Decision, Segmentation

MIN_AREAS_PX = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
"""Smallest regions that are tried."""

MARGINS_PX = (0, 4, 8, 12, 16)
"""Margins along the border that a score may leave out."""

SOUND_AREA_PX = 32
"""Smallest region where no defect is known to choose it by: half a patch of 8 x 8 px."""


def threshold_counts(histogram: AnyArray) -> IntArray:
    """Return `[TP, FP, FN, TN]` at each threshold 0/256 … 255/256.

    Args:
        histogram: (2, 256) pixels, sound and defect, by probability.

    Returns:
        (256, 4) int64: the threshold, precision-recall and ROC curves all follow from it.
    """
    sound, defect = np.asarray(histogram, np.int64)
    fp, tp = np.cumsum(sound[::-1])[::-1], np.cumsum(defect[::-1])[::-1]
    return np.stack([tp, fp, defect.sum() - tp, sound.sum() - fp], axis=-1)


def best_threshold(histogram: AnyArray) -> float:
    """Return the pixel threshold of the highest pooled Dice; of equal ones the middle.

    Args:
        histogram: (2, 256) pixels, sound and defect, by probability.

    Returns:
        A multiple of 1/256, above 0.

    Raises:
        ConfigError: There is no defect pixel to choose by.
    """
    if not np.asarray(histogram)[1].any():
        raise ConfigError(
            "a pixel threshold cannot be chosen without any defect pixel; expected pictures with "
            "masks: choose thresholds on a part of the data that holds defects"
        )
    curve = dice(threshold_counts(histogram))[1:]
    best = np.flatnonzero(curve == curve.max())
    return float(best[(len(best) - 1) // 2] + 1) / BINS


def region_areas(mask: AnyArray, truth: AnyArray) -> IntArray:
    """Measure the connected regions (8-connectivity) of one predicted mask.

    Args:
        mask: (H, W) bool or uint8, the prediction; non-zero is defect.
        truth: (H, W) bool or uint8; non-zero is defect.

    Returns:
        (R, 2) int64: area of each region, and how many of its pixels are true.
    """
    if not mask.any():
        return np.zeros((0, 2), np.int64)
    import cv2

    count, regions = cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)
    area = np.bincount(regions.ravel(), minlength=count)[1:]
    hit = np.bincount(regions[truth != 0], minlength=count)[1:]
    return np.stack([area, hit], axis=-1)


def dice_by_min_area(
    mask: AnyArray, truth: AnyArray, areas_px: Iterable[int] = MIN_AREAS_PX
) -> FloatArray:
    """Return one picture's Dice when regions below each smallest area are dropped.

    Args:
        mask: (H, W) bool or uint8, the prediction; non-zero is defect.
        truth: (H, W) bool or uint8; non-zero is defect.
        areas_px: A smallest regions to try.

    Returns:
        (A,) float64 in 0..1; 1 where nothing is left of the prediction and nothing was there.
    """
    regions = region_areas(mask, truth)
    kept = regions[None, :, 0] >= np.asarray(tuple(areas_px))[:, None]
    predicted, tp = (kept[..., None] * regions).sum(1).T
    missed = np.count_nonzero(truth) - tp
    return dice(np.stack([tp, predicted - tp, missed, np.zeros_like(tp)], axis=-1))


def best_min_area(picture_dice: Sequence[AnyArray] | AnyArray, label: AnyArray) -> int:
    """Return the smallest region to keep: highest Dice, averaged over the classes of picture.

    Specks on sound pictures speak for a large one, small blowholes for a small one. Every class
    and the sound pictures count alike, so neither side wins by number.

    Args:
        picture_dice: (N, A) each picture's Dice at each of `MIN_AREAS_PX`.
        label: (N,) int, the class each picture is filed under; 0 = sound.

    Returns:
        One of `MIN_AREAS_PX`; of equal ones the smallest.
    """
    by_class = [np.asarray(picture_dice)[label == one].mean(0) for one in np.unique(label)]
    means = np.mean(by_class, axis=0)
    return MIN_AREAS_PX[int(np.argmax(np.round(means, 6)))]


def best_margin(scores: AnyArray, is_defect: AnyArray) -> int:
    """Return the margin along the border that scores had best leave out: highest AUROC.

    Args:
        scores: (N, M) float, each picture's score at each of `MARGINS_PX`.
        is_defect: (N,) bool.

    Returns:
        One of `MARGINS_PX`; of equal ones the narrowest, 0 where no picture is sound.
    """
    if is_defect.all():
        return 0
    ordered = [float(auroc(column, is_defect)) for column in np.asarray(scores).T]
    return MARGINS_PX[int(np.argmax(np.round(ordered, 6)))]


def choose_decision(
    predictor: Predictor,
    samples: Iterable[Sample],
    *,
    recall: float = 0.95,
    false_reject: float = 0.05,
    protocol: str | Protocol = "T",
    labels: Sequence[str] = LABELS,
) -> Decision:
    """Choose pixel threshold, smallest region, margin and reject score on samples, in one pass.

    Args:
        predictor: A `Segmenter`, or a function from a picture to (probability, defect class).
        samples: Pictures of tiles that the model was not trained on, defective and sound.
        recall: Share of the defective pictures that the reject score must catch, 0 < recall <= 1.
        false_reject: Where all are sound: the share of such pictures that may be rejected, and
            that may show a region, 0 < false_reject < 1.
        protocol: Whose pictures and mask rule to use.
        labels: Class names by index, background first.

    Returns:
        The predictor's own decision with `threshold` (highest pooled Dice), `min_area_px` (highest
        Dice per picture, all classes alike), `score_margin_px` (highest AUROC) and
        `reject_score` (`metrics.score_at_recall`) chosen; no `review_score`. Where all are sound,
        threshold and reject score are those that `false_reject` allows.

    Raises:
        ConfigError: There are no samples, or none that is sound or has a defect pixel; or all are
            sound, and the model is sure of defects on too many.
    """
    fixed, names = get_protocol(protocol), tuple(labels)
    search = DecisionSearch()
    for sample in samples:
        image, target = prepare(sample, fixed, labels=labels)
        result = as_segmentation(predictor(image), image, decide=lambda given: given, labels=labels)
        result, target = without_ignored(result, target)
        search.add(result, target, 0 if sample.label == FREE else names.index(sample.label))
    return search.decision(recall=recall, false_reject=false_reject)


class DecisionSearch:
    """Gathers predictions, of one model or of all folds, and chooses one decision for them.

    Keeps two bytes per pixel. Pictures filed as defects with an empty mask say nothing and are left
    out.
    """

    def __init__(self) -> None:
        """Start without pictures."""
        self._histogram = np.zeros((2, BINS), np.int64)
        self._kept: list[tuple[npt.NDArray[np.uint8], npt.NDArray[np.bool_]]] = []
        self._scores: list[list[float]] = []
        self._labels: list[int] = []
        self._own_scores: list[float] = []
        self._empty = False  # whether a defective picture had nothing marked
        self._own = Decision()

    def add(self, result: Segmentation, target: AnyArray, label: int) -> None:
        """Take in one picture.

        Args:
            result: The model's answer.
            target: (H, W) uint8; non-zero is defect.
            label: Index of the class that the picture is filed under; 0 = sound.
        """
        truth = target != 0
        if label and not truth.any():
            self._empty = True
            return
        self._own = result.decision
        self._own_scores.append(result.decision.score_of(result.probability))
        self._histogram += probability_histogram(result.probability, truth)
        self._kept.append((probability_bins(result.probability), truth))
        decisions = [replace(result.decision, score_margin_px=margin) for margin in MARGINS_PX]
        self._scores.append([decision.score_of(result.probability) for decision in decisions])
        self._labels.append(label)

    @property
    def is_sound(self) -> bool:
        """Whether there are pictures, and none of them is defective."""
        return bool(self._labels) and not any(self._labels) and not self._empty

    def decision(self, *, recall: float, false_reject: float = 0.05) -> Decision:
        """Return the last picture's decision with threshold, region, margin, reject score chosen.

        Args:
            recall: Share of the defective pictures that the reject score must catch.
            false_reject: Where all are sound: the share of them that may be rejected.

        Raises:
            ConfigError: There are no pictures, or none that is sound or has a defect pixel; or all
                are sound, and the model is sure of defects on too many.
        """
        if self.is_sound:
            return self._of_sound(false_reject)
        threshold = best_threshold(self._histogram)
        level, label = round(threshold * BINS), np.asarray(self._labels)
        overlap = [dice_by_min_area(bins >= level, truth) for bins, truth in self._kept]
        scores = np.asarray(self._scores)
        margin = best_margin(scores, label > 0)
        at_margin = scores[:, MARGINS_PX.index(margin)]
        return replace(
            self._own,
            threshold=threshold,
            min_area_px=best_min_area(overlap, label),
            score_margin_px=margin,
            reject_score=score_at_recall(at_margin, label > 0, recall=recall),
            review_score=None,
        )

    def _of_sound(self, false_reject: float) -> Decision:
        """Return the decision whose mask and score leave all but a share of sound pictures alone.

        The margin stays as it is: nothing speaks for another one.

        Raises:
            ConfigError: No threshold does.
        """
        area = max(self._own.min_area_px, SOUND_AREA_PX)
        levels = [np.partition(bins.ravel(), -min(area, bins.size))[-area:].min()
                  for bins, _ in self._kept]  # fmt: skip
        level = sound_limit(np.asarray(levels, float), false_reject)
        score = sound_limit(np.asarray(self._own_scores), false_reject)
        if level > BINS - 2 or score >= 1:
            raise ConfigError(
                f"on {len(self._kept)} sound pictures the model is sure of defects, so no "
                f"threshold leaves all but {false_reject:g} of them alone: train it on more "
                "pictures, or on larger ones"
            )
        return replace(
            self._own,
            threshold=(level + 1) / BINS,
            min_area_px=area,
            reject_score=min(1.0, score + _GRAIN),
            review_score=None,
        )


def sound_limit(values: AnyArray, false_reject: float) -> float:
    """Return what all but a share of further sound pictures are expected not to exceed.

    Args:
        values: (N,) float, of sound pictures, N >= 1.
        false_reject: The share, 0 < false_reject < 1.

    Returns:
        The ceil((1 - false_reject) (N + 1))-th smallest value, or the largest where N is too small
        for that to exist.

    Raises:
        ConfigError: The share is out of range.

    Source: https://arxiv.org/abs/2107.07511, section 1.
    """
    if not 0 < false_reject < 1:
        raise ConfigError(f"false_reject is {false_reject}; expected a share above 0 and below 1")
    rank = math.ceil((1 - false_reject) * (len(values) + 1))
    return float(np.sort(values)[min(rank, len(values)) - 1])


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
        measured: What the same predictions say of networks made like this one, as an entry of
            `ModelCard.metrics`; None: nothing.
        networks: What kinds of networks it was chosen by, as of `kind_of`; empty: unknown.
    """

    decision: Decision
    pixel: Affine
    recall: float
    pictures: int
    tiles: int
    measured: Mapping[str, Any] | None = None
    networks: tuple[str, ...] = ()

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
                "networks": tuple(map(str, content.get("networks", ()))),
            }
            return cls(**{**content, **parts})
        except (ValueError, KeyError, TypeError, ConfigError) as error:
            raise DataError(
                f"no choice of thresholds: {error!r}; expected the choice.json that "
                "`magtiles-seg evaluate --folds … --out DIR` writes"
            ) from error


def kind_of(card: ModelCard) -> str | None:
    """Return what networks share that one choice may be made for, or None where it is unknown."""
    architecture = card.training.get("architecture")
    return None if architecture is None else f"{architecture} of {', '.join(card.labels)}"


def check_choice(choice: Choice, card: ModelCard) -> None:
    """Refuse a choice that was made by other networks than a model is one of.

    Raises:
        DataError: It was; the thresholds would be wrong, and its figures of others.
    """
    kind = kind_of(card)
    if choice.networks and kind is not None and choice.networks != (kind,):
        raise DataError(
            f"the choice was made by {' and '.join(choice.networks)}, but the model is {kind}; "
            "expected networks made alike: name the choice.json of its own folds"
        )


class CalibrationCounts:
    """What a calibration needs of one fold's predictions; pictures with an empty mask say nothing.

    Attributes:
        pixels: (2, 257) as of `logit_histogram`.
        tops: By margin, for each picture its largest pixel probabilities, (k,) float64.
        is_defect: Whether each picture is filed as defective.
        group: The physical tile of each picture; below 0: unknown.
    """

    def __init__(self) -> None:
        """Start without pictures."""
        self.pixels: IntArray = np.zeros((2, LOGITS.size), np.int64)
        self.tops: dict[int, list[FloatArray]] = {margin: [] for margin in MARGINS_PX}
        self.is_defect: list[bool] = []
        self.group: list[int] = []

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
        self.group.append(sample.group)

    def scores(self, pixel: Affine, margin_px: int) -> FloatArray:
        """(P,) mean of the largest pixel probabilities of each picture, once calibrated."""
        return np.array([pixel(top).mean() for top in self.tops[margin_px]])


def _fit_pixels(counts: Sequence[CalibrationCounts]) -> Affine:
    pixels = sum((count.pixels for count in counts), start=np.zeros((2, LOGITS.size), np.int64))
    return fit(LOGITS, *pixels)


def _fit_pictures(
    counts: Sequence[CalibrationCounts], pixel: Affine, margin_px: int
) -> tuple[Affine, FloatArray, AnyArray]:
    """Return the pictures' calibration, and what it was fitted on: scores (P,), defective (P,)."""
    scores = np.concatenate([count.scores(pixel, margin_px) for count in counts])
    defect = np.concatenate([count.is_defect for count in counts])
    return fit(logit(scores), ~defect, defect), scores, defect


def choose_for_all_folds(
    search: DecisionSearch, counts: Sequence[CalibrationCounts], *, recall: float, tiles: int
) -> Choice:
    """Choose on raw predictions, and say it in calibrated ones: the pixels keep their order.

    Args:
        search: Has seen all folds.
        counts: One per fold.
        recall: Share of the defective pictures that the reject score must catch.
        tiles: How many they are of.

    Raises:
        ConfigError: No picture is sound, none is defective, or the model is no better than chance.
    """
    pixel = _fit_pixels(counts)
    raw = search.decision(recall=recall)
    picture, scores, defect = _fit_pictures(counts, pixel, raw.score_margin_px)
    calibrated = picture(scores)
    group = np.concatenate([count.group for count in counts])
    return Choice(
        decision=replace(
            raw,
            threshold=float(pixel(np.asarray(raw.threshold))),
            reject_score=_rounded_down(score_at_recall(calibrated, defect, recall=recall)),
            score_scale=picture.scale,
            score_bias=picture.bias,
            tile_reject_score=_tile_reject_score(calibrated, defect, group, recall),
        ),
        pixel=pixel,
        recall=recall,
        pictures=len(scores),
        tiles=tiles,
    )


def _tile_reject_score(
    score: FloatArray, is_defect: AnyArray, group: AnyArray, recall: float
) -> float | None:
    """Return the tile score that catches a share of the defective tiles; None: no exposures."""
    known = np.where(group < 0, -1 - np.arange(len(group)), group)
    tiles, defective = tile_scores(score, is_defect, known)
    if len(tiles) == len(score):
        return None
    return _rounded_down(score_at_recall(tiles, defective, recall=recall))


def _rounded_down(score: float) -> float:
    return math.floor(score / _GRAIN) * _GRAIN


def diagrams(counts: Sequence[CalibrationCounts], margin_px: int) -> Diagrams:
    """Return how far probabilities are to be believed, before and after calibration.

    The maps of "after" are fitted on the other folds alone, so one fold gives "before" only, and so
    do folds of which some have no map (`calibration.fit`).

    Args:
        counts: One per fold.
        margin_px: One of `MARGINS_PX`, that the scores leave out.

    Returns:
        `pixels_before`, `pictures_before`, `pixels_after`, `pictures_after`.
    """
    cases: dict[str, list[tuple[FloatArray, AnyArray, AnyArray]]] = {}

    def add(when: str, count: CalibrationCounts, pixel: Affine, picture: Affine) -> None:
        defect, scores = np.asarray(count.is_defect), picture(count.scores(pixel, margin_px))
        cases.setdefault(f"pixels_{when}", []).append((pixel(sigmoid(LOGITS)), *count.pixels))
        cases.setdefault(f"pictures_{when}", []).append((scores, ~defect, defect))

    for count in counts:
        add("before", count, Affine(), Affine())
    others = [[*counts[:at], *counts[at + 1 :]] for at in range(len(counts))]
    with suppress(ConfigError):
        for count, maps in zip(counts, [_maps(rest, margin_px) for rest in others], strict=True):
            add("after", count, *maps)
    return {
        name: reliability(*(np.concatenate(column) for column in zip(*parts, strict=True)))
        for name, parts in cases.items()
    }


def _maps(counts: Sequence[CalibrationCounts], margin_px: int) -> tuple[Affine, Affine]:
    """Return the calibration of pixels, and of pictures.

    Raises:
        ConfigError: There is none, as of `calibration.fit`.
    """
    pixel = _fit_pixels(counts)
    return pixel, _fit_pictures(counts, pixel, margin_px)[0]
