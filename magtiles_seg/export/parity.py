"""Parity: how far one model's answers are from another's, and the gate that refuses too far."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from magtiles_seg.errors import ConfigError, InferenceError, ParityError
from magtiles_seg.infer.backends.base import Backend
from magtiles_seg.result import Decision, Segmentation

if TYPE_CHECKING:
    from magtiles_seg.config import ExportParams

_BINS = 1 << 20
"""Of the histogram of differences, which replaces sorting a hundred million of them."""


@dataclass(frozen=True, kw_only=True)
class Tolerance:
    """How far a candidate may stray from its reference.

    Attributes:
        min_dice: Least Dice between the two masks, pooled over all pictures.
        max_abs_diff: Greatest difference of a pixel's probability.
        max_flipped_fraction: Greatest share of pictures whose verdict changes.
    """

    min_dice: float = 0.999
    max_abs_diff: float = 0.02
    max_flipped_fraction: float = 0.0

    @classmethod
    def of(cls, params: ExportParams, precision: str) -> Tolerance:
        """Return the tolerance that parameters give for a precision of the arithmetic.

        Args:
            params: The section `export`.
            precision: `"fp32"`, `"fp16"` or `"int8"`.

        Raises:
            ConfigError: The precision is unknown.
        """
        prefixes = {"fp32": "", "fp16": "fp16_", "int8": "int8_"}
        if precision not in prefixes:
            raise ConfigError(
                f"unknown precision {precision!r}: expected one of {', '.join(prefixes)}"
            )
        names = [item.name for item in fields(cls)]
        return cls(**{name: getattr(params, prefixes[precision] + name) for name in names})


@dataclass(frozen=True, kw_only=True)
class ParityReport:
    """What a comparison found.

    Attributes:
        pictures: How many were compared.
        dice: `2 |A and B| / (|A| + |B|)` of the masks, pooled over all pictures; all empty: 1.
        max_abs_diff: Greatest difference of a pixel's probability.
        p999_abs_diff: 99.9th percentile of that difference, to 1e-6.
        class_agreement: Share of equal classes among the pixels that both masks hold; none: 1.
        flipped_verdicts: How many pictures' verdicts differ.
        per_class: The same figures over the pictures of one class, by its name; empty where the
            pictures' classes are not known.
    """

    pictures: int
    dice: float
    max_abs_diff: float
    p999_abs_diff: float
    class_agreement: float
    flipped_verdicts: int
    per_class: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return the figures by name."""
        return asdict(self)


def compare(
    reference: Backend,
    candidate: Backend,
    pictures: Sequence[npt.NDArray[np.uint8]],
    *,
    classes: Sequence[str] = (),
    decision: Decision | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> ParityReport:
    """Compare two models picture by picture.

    Args:
        reference: The model that is right.
        candidate: The model under test.
        pictures: (H, W) uint8 each, sides of at least 32 px.
        classes: What each picture shows, one name a picture; none: nothing by class.
        decision: Thresholds of masks and verdicts; None: the reference's own.
        progress: Called with (pictures compared, pictures).

    Raises:
        ConfigError: There is no picture, or not one class name a picture.
        ParityError: The candidate's answer is none at all, such as NaN.
        InferenceError: A model cannot run.
    """
    if not pictures or len(classes) not in (0, len(pictures)):
        raise ConfigError(
            "parity needs at least one picture, and a class for each of them or for none, "
            f"got {len(pictures)} pictures and {len(classes)} classes"
        )
    decision = decision or reference.spec.card.decision
    whole, by_class = _Tally(), {name: _Tally() for name in sorted(set(classes))}
    for index, picture in enumerate(pictures):
        expected = _answer(reference, picture, decision)
        try:
            got = _answer(candidate, picture, decision)
        except InferenceError as error:
            raise ParityError(
                f"{candidate.spec.path.name} gives no answer on picture {index}: {error}; "
                "export it in a higher precision"
            ) from error
        tallies = [whole, by_class[classes[index]]] if classes else [whole]
        for tally in tallies:
            tally.add(expected, got)
        if progress is not None:
            progress(index + 1, len(pictures))
    parts = {name: tally.figures() for name, tally in by_class.items()}
    return ParityReport(**whole.figures(), per_class=parts)


def _answer(model: Backend, picture: npt.NDArray[np.uint8], decision: Decision) -> Segmentation:
    probability, classes = model.infer(picture[None])
    return Segmentation.from_prediction(
        picture, probability[0], classes[0], decision=decision, labels=model.spec.card.labels
    )


class _Tally:
    """Sums over pictures."""

    def __init__(self) -> None:
        self._pictures = self._flipped = 0
        self._both = self._total = self._agreed = 0
        self._greatest = 0.0
        self._histogram = np.zeros(_BINS + 1, np.int64)

    def add(self, expected: Segmentation, got: Segmentation) -> None:
        difference = np.abs(expected.probability - got.probability)
        common = expected.mask & got.mask == 1
        self._pictures += 1
        self._flipped += expected.verdict != got.verdict
        self._both += int(common.sum())
        self._total += int(expected.mask.sum()) + int(got.mask.sum())
        self._agreed += int((expected.classes == got.classes)[common].sum())
        self._greatest = max(self._greatest, float(difference.max()))
        bins = np.rint(difference * _BINS).astype(np.int64).ravel()
        np.add.at(self._histogram, bins, 1)

    def figures(self) -> dict[str, Any]:
        counts = np.cumsum(self._histogram)
        p999 = int(np.searchsorted(counts, 0.999 * counts[-1]))
        return {
            "pictures": self._pictures,
            "dice": 2 * self._both / self._total if self._total else 1.0,
            "max_abs_diff": self._greatest,
            "p999_abs_diff": p999 / _BINS,
            "class_agreement": self._agreed / self._both if self._both else 1.0,
            "flipped_verdicts": self._flipped,
        }


def check(report: ParityReport, tolerance: Tolerance) -> None:
    """Let a report pass, or say what failed.

    Raises:
        ParityError: A figure is outside the tolerance; the message gives all that are.
    """
    allowed = tolerance.max_flipped_fraction * report.pictures
    failures = [
        f"{name} {value:.6g}, expected {bound}"
        for failed, name, value, bound in (
            (
                not report.dice >= tolerance.min_dice,
                "Dice",
                report.dice,
                f">= {tolerance.min_dice}",
            ),
            (
                not report.max_abs_diff <= tolerance.max_abs_diff,
                "max |difference of probability|",
                report.max_abs_diff,
                f"<= {tolerance.max_abs_diff}",
            ),
            (
                report.flipped_verdicts > allowed,
                "flipped verdicts",
                report.flipped_verdicts,
                f"<= {allowed:g} of {report.pictures}",
            ),
        )
        if failed
    ]
    if failures:
        raise ParityError(
            f"the exported model answers differently from its reference: {'; '.join(failures)}; "
            "export it in a higher precision, or widen the tolerance in params.yaml"
        )


def frozen_pictures() -> list[npt.NDArray[np.uint8]]:
    """Return the synthetic tiles that an export is proved on: each defect twice, odd sizes too."""
    from magtiles_seg.dataset.synthetic import synthetic_tile
    from magtiles_seg.labels import LABELS

    kinds = (None, *LABELS[1:])
    tiles = [
        synthetic_tile(seed, defect=kind, exposure=exposure).image
        for seed, kind in enumerate(kinds)
        for exposure in (1, 4)
    ]
    return [
        *tiles,
        np.ascontiguousarray(tiles[0][:32, :32]),
        np.ascontiguousarray(tiles[1][:101, :67]),
    ]
