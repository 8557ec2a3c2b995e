"""Parity: how far one model's answers are from another's, and the gate that refuses too far."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt

from magtiles_seg.errors import ConfigError, ParityError
from magtiles_seg.infer.backends.base import Backend
from magtiles_seg.result import Decision, Segmentation


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


@dataclass(frozen=True, kw_only=True)
class ParityReport:
    """What a comparison found.

    Attributes:
        pictures: How many were compared.
        dice: 2|A and B| / (|A| + |B|) of the masks, pooled over all pictures; all empty: 1.
        max_abs_diff: Greatest difference of a pixel's probability.
        p999_abs_diff: 99.9th percentile of that difference.
        class_agreement: Share of equal classes among the pixels that both masks hold; none: 1.
        flipped_verdicts: How many pictures' verdicts differ.
    """

    pictures: int
    dice: float
    max_abs_diff: float
    p999_abs_diff: float
    class_agreement: float
    flipped_verdicts: int

    def to_dict(self) -> dict[str, float]:
        """Return the figures by name."""
        return asdict(self)


def compare(
    reference: Backend,
    candidate: Backend,
    pictures: Sequence[npt.NDArray[np.uint8]],
    *,
    decision: Decision | None = None,
) -> ParityReport:
    """Compare two models picture by picture.

    Args:
        reference: The model that is right.
        candidate: The model under test.
        pictures: (H, W) uint8 each, sides of at least 32 px.
        decision: Thresholds of masks and verdicts; None: the reference's own.

    Raises:
        ConfigError: There is no picture.
    """
    if not pictures:
        raise ConfigError("parity needs at least one picture, got none")
    decision = decision or reference.spec.card.decision
    labels = reference.spec.card.labels
    pairs = [
        tuple(
            Segmentation.from_prediction(
                picture,
                *(answer[0] for answer in model.infer(picture[None])),
                decision=decision,
                labels=labels,
            )
            for model in (reference, candidate)
        )
        for picture in pictures
    ]
    difference = np.concatenate([np.abs(a.probability - b.probability).ravel() for a, b in pairs])
    both = sum(int((a.mask & b.mask).sum()) for a, b in pairs)
    total = sum(int(a.mask.sum()) + int(b.mask.sum()) for a, b in pairs)
    agreed = sum(int(((a.classes == b.classes) & (a.mask & b.mask == 1)).sum()) for a, b in pairs)
    return ParityReport(
        pictures=len(pairs),
        dice=2 * both / total if total else 1.0,
        max_abs_diff=float(difference.max()),
        p999_abs_diff=float(np.quantile(difference, 0.999)),
        class_agreement=agreed / both if both else 1.0,
        flipped_verdicts=sum(a.verdict != b.verdict for a, b in pairs),
    )


def check(report: ParityReport, tolerance: Tolerance) -> None:
    """Let a report pass, or say what failed.

    Raises:
        ParityError: A figure is outside the tolerance; the message gives all that are.
    """
    allowed = tolerance.max_flipped_fraction * report.pictures
    failures = [
        f"{name} {value:.6g}, expected {bound}"
        for failed, name, value, bound in (
            (report.dice < tolerance.min_dice, "Dice", report.dice, f">= {tolerance.min_dice}"),
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
            "store the weights in a higher precision, or widen the tolerance in params.yaml"
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
