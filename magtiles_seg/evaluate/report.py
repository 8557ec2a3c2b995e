"""Scores whatever predicts on the pictures of a data set, under one of the protocols."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from magtiles_seg.dataset.samples import MaskRule, Sample
from magtiles_seg.errors import DataError
from magtiles_seg.evaluate.protocols import PROTOCOLS, Protocol, get_protocol
from magtiles_seg.evaluate.scoring import PictureProgress, Predictor, Records, Watch, score
from magtiles_seg.evaluate.summary import (
    Table,
    class_table,
    estimate,
    picture_table,
    tile_table,
    to_markdown,
)
from magtiles_seg.evaluate.tiles import TileVerdicts, has_exposures, tile_verdicts
from magtiles_seg.labels import LABELS
from magtiles_seg.result import Decision, Segmentation


@dataclass(frozen=True, kw_only=True)
class Variant:
    """The same predictions scored on other pictures or by another mask rule."""

    meaning: str
    pictures: int
    figures: dict[str, float]
    intervals: dict[str, tuple[float, float]]


@dataclass(frozen=True, kw_only=True, eq=False)
class EvaluationResult:
    """Every figure of one evaluation, with what it was measured on.

    Attributes:
        protocol: What the figures are to be reported with.
        mask_rule: Which mask pixels were defect.
        decision: The decision that was measured, or `None` when parts with several were joined.
        figures: The protocol's figures by name; NaN where one has no meaning.
        intervals: 95 % bootstrap interval over physical tiles of each figure.
        per_class: One row per class, sound pictures last.
        variants: The figures without the suspect sound pictures, with or without the empty masks,
            and by the protocol's other mask rules, where they differ.
        records: The scored pictures, empty masks only where the protocol keeps them.
        empty_masks: Ids filed as defects whose mask is empty.
        suspect_free: Ids filed as sound that are tile-mates of a defective picture.
        notes: What a reader must know, in sentences.
        by_fold: The figures of each fold by its directory's name, where folds were joined.
        tile_verdicts: What one verdict a tile is worth (protocol T-tile), from the same scores;
            None where no tile has several pictures, or the protocol knows no verdicts.
    """

    protocol: Protocol
    mask_rule: str
    decision: Decision | None
    figures: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    per_class: Table
    variants: dict[str, Variant]
    records: Records
    empty_masks: tuple[str, ...]
    suspect_free: tuple[str, ...]
    notes: tuple[str, ...]
    by_fold: dict[str, dict[str, float]] = field(default_factory=dict)
    tile_verdicts: TileVerdicts | None = None

    @property
    def per_tile(self) -> Table:
        """One row a physical tile, the worst first."""
        return tile_table(self.records)

    @property
    def per_picture(self) -> Table:
        """One row per picture, the worst first."""
        return picture_table(self.records)

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the single pictures as plain JSON values; NaN becomes None."""
        content = {
            "protocol": self.protocol.name,
            "summary": self.protocol.summary,
            "split_rule": self.protocol.split_rule,
            "leaky_split": self.protocol.leaky,
            "mask_rule": self.mask_rule,
            "decision": self.decision.to_dict() if self.decision else None,
            "pictures": len(self.records),
            "tiles": len(set(self.records.group.tolist())),
            "figures": self.figures,
            "intervals_95": self.intervals,
            "per_class": self.per_class,
            "by_fold": self.by_fold,
            "tile_verdicts": self.tile_verdicts.to_dict() if self.tile_verdicts else None,
            "variants": {name: asdict(variant) for name, variant in self.variants.items()},
            "empty_masks": self.empty_masks,
            "suspect_free": self.suspect_free,
            "notes": self.notes,
            "per_tile": self.per_tile,
        }
        plain: dict[str, Any] = _plain(content)
        return plain

    def to_json(self) -> str:
        """Return `to_dict` as JSON text."""
        return json.dumps(self.to_dict(), indent=2, allow_nan=False)

    def to_markdown(self) -> str:
        """Return the figures with their intervals and the per-class table as Markdown."""
        return to_markdown(self.to_dict())


def evaluate(
    predictor: Predictor,
    samples: Sequence[Sample],
    *,
    protocol: str | Protocol = "native",
    mask_rule: MaskRule | None = None,
    decision: Decision | None = None,
    labels: Sequence[str] = LABELS,
    resamples: int = 1000,
    seed: int = 0,
    progress: PictureProgress | None = None,
    watch: Watch | None = None,
) -> EvaluationResult:
    """Score a predictor on samples: those of a split's test part, or any.

    Args:
        predictor: A `Segmenter`, or a function from a picture, (H, W) uint8, to its
            (probability (H, W) float32, defect class (H, W) uint8) or `Segmentation`.
        samples: The pictures. Those that the protocol leaves out are left out, and counted.
        protocol: Name of one of `PROTOCOLS`, or a protocol.
        mask_rule: Overrides the protocol's mask rules.
        decision: Overrides the predictor's own decision. A protocol that fixes a pixel threshold
            overrides both.
        labels: Class names by index, background first.
        resamples: Bootstrap resamples for the intervals; 0 for none.
        seed: Of the resampling.
        progress: Told after each picture.
        watch: Shown each picture's answer.

    Raises:
        DataError: Nothing is left to score, or a picture, mask or prediction does not fit.
        ConfigError: The protocol is unknown, or the labels differ from the model's.

    Example:
        >>> evaluate(Segmenter(), find_samples(Path("data"))).figures["iou"]
    """
    fixed = get_protocol(protocol)
    used: set[Decision] = set()
    screens: set[str] = set()

    def see(sample: Sample, answer: Segmentation, target: NDArray[np.uint8]) -> None:
        used.add(answer.decision)
        screens.update({answer.model.get("screen_sha256", "")} - {""})
        if watch is not None:
            watch(sample, answer, target)

    records = score(
        predictor,
        samples,
        protocol=fixed,
        mask_rule=mask_rule,
        decision=decision,
        labels=labels,
        progress=progress,
        watch=see,
    )
    result = summarize(
        records,
        protocol=fixed,
        decision=used.pop() if len(used) == 1 else None,
        resamples=resamples,
        seed=seed,
        left_out=len(samples) - sum(map(fixed.scores, samples)),
    )
    behind = (
        f"These figures are of the model behind a screen (SHA-256 {sha256}): where that saw "
        "nothing, the model did not look."
        for sha256 in sorted(screens)
    )
    return replace(result, notes=(*behind, *result.notes))


def summarize(
    records: dict[MaskRule, Records] | Records,
    *,
    protocol: str | Protocol = "T",
    decision: Decision | None = None,
    resamples: int = 1000,
    seed: int = 0,
    left_out: int = 0,
) -> EvaluationResult:
    """Make the result from scored pictures: of one evaluation, or joined from the folds of several.

    Args:
        records: Scored pictures, by mask rule where there are several; the first is the headline.
        protocol: Name of one of `PROTOCOLS`, or a protocol.
        decision: The decision that was measured, when there was one.
        resamples: Bootstrap resamples for the intervals; 0 for none.
        seed: Of the resampling.
        left_out: How many pictures the protocol left out.
    """
    fixed = get_protocol(protocol)
    by_rule = {fixed.mask_rules[0]: records} if isinstance(records, Records) else records
    rule, everything = next(iter(by_rule.items()))
    main = everything if fixed.empty_masks else _keep(everything, ~everything.empty)

    def variant(meaning: str, rows: Records) -> Variant:
        values, ranges = estimate(rows, fixed.families, resamples=resamples, seed=seed)
        return Variant(meaning=meaning, pictures=len(rows), figures=values, intervals=ranges)

    variants = {}
    if main.suspect.any() and not main.suspect.all():
        variants["without_suspect_free"] = variant(
            "without the sound pictures whose tile-mates are defective", main.where(~main.suspect)
        )
    if (main.label_issue & ~main.suspect).any() and not main.label_issue.all():
        variants["audited_list"] = variant(
            "on the audited list: without those either on which a defect was seen",
            main.where(~main.label_issue),
        )
    if everything.empty.any() and fixed.empty_masks and not everything.empty.all():
        variants["without_empty_masks"] = variant(
            "without the defect pictures whose mask is empty", main.where(~main.empty)
        )
    for other, rows in list(by_rule.items())[1:]:
        kept = rows if fixed.empty_masks else _keep(rows, ~rows.empty)
        variants[f"mask_{other}"] = variant(f"mask rule {other} instead of {rule}", kept)
    values, ranges = estimate(main, fixed.families, resamples=resamples, seed=seed)
    return EvaluationResult(
        protocol=fixed,
        mask_rule=rule,
        decision=decision,
        figures=values,
        intervals=ranges,
        per_class=class_table(main, resamples=resamples, seed=seed)
        if fixed.families != ("tiles",)
        else (),
        variants=variants,
        records=main,
        empty_masks=tuple(everything.ids[everything.empty].tolist()),
        suspect_free=tuple(main.ids[main.suspect].tolist()),
        notes=_notes(fixed, everything, left_out),
        tile_verdicts=tile_verdicts(main, resamples=resamples, seed=seed)
        if {"verdict", "tiles"} & {*fixed.families} and has_exposures(main)
        else None,
    )


def _keep(rows: Records, keep: Any) -> Records:  # noqa: ANN401 - (N,) bool
    if not keep.any():
        raise DataError(
            f"All {len(rows)} pictures are filed as defects with an empty mask; expected masks "
            "with defect pixels. Check the mask files and the mask rule."
        )
    return rows.where(keep)


def _notes(protocol: Protocol, rows: Records, left_out: int) -> tuple[str, ...]:
    notes = []
    if protocol.name not in PROTOCOLS:
        notes.append(f"These figures are {protocol.summary}.")
    if protocol.leaky:
        notes.append(
            "LEAKY: this split puts exposures of one tile into both training and test. Compare "
            "these figures with published ones only."
        )
    if left_out:
        notes.append(f"Sound pictures are no part of this protocol; left out: {left_out}.")
    if rows.empty.any():
        fate = "kept, as in the published lists" if protocol.empty_masks else "dropped"
        names = ", ".join(rows.ids[rows.empty])
        notes.append(f"Filed as a defect with an empty mask, and {fate}: {names}.")
    if rows.suspect.any():
        notes.append(
            "Filed as sound, but of a tile that is defective in other pictures (the figures "
            f"without them stand beside): {', '.join(rows.ids[rows.suspect])}."
        )
    return tuple(notes)


def _plain(value: Any) -> Any:  # noqa: ANN401 - any JSON value
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value
