"""The pass over the data behind every evaluation, and what is kept of each picture."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from magtiles_seg.dataset.samples import MaskRule, Sample, load_pair, load_target
from magtiles_seg.dataset.unpack import UNREADABLE_ZIP
from magtiles_seg.errors import ConfigError, DataError
from magtiles_seg.evaluate.metrics import binary_counts, confusion_matrix, probability_histogram
from magtiles_seg.evaluate.protocols import Protocol, fit_image, fit_mask
from magtiles_seg.files import staged
from magtiles_seg.labels import FREE, IGNORED, LABELS
from magtiles_seg.names import counted
from magtiles_seg.result import Decision, Segmentation

Answer: TypeAlias = "Segmentation | tuple[npt.NDArray[np.float32], npt.NDArray[np.uint8]]"
"""A Segmentation, or (probability (H, W) float32 in 0..1, likeliest defect class (H, W) uint8)."""

Predictor: TypeAlias = Callable[[npt.NDArray[np.uint8]], Answer]
"""Takes a picture, (H, W) uint8, and answers at its size: a `Segmenter`, or any such function."""


def as_segmentation(
    answer: Answer,
    image: npt.NDArray[np.uint8],
    *,
    decide: Callable[[Decision], Decision],
    labels: Sequence[str] = LABELS,
) -> Segmentation:
    """Return a predictor's answer as a Segmentation under the decision that is to be measured.

    Args:
        answer: What the predictor gave for the picture.
        image: (H, W) uint8, the picture.
        decide: Gives the decision to measure from the predictor's own one (the default decision
            when it has none).
        labels: Class names by index, background first.

    Raises:
        ConfigError: The predictor answers with other labels.
    """
    if isinstance(answer, Segmentation):
        if tuple(answer.labels) != tuple(labels):
            raise ConfigError(
                f"The model's labels are {', '.join(answer.labels)}; expected those of the "
                f"evaluation, {', '.join(labels)}. Evaluate with the labels of the model."
            )
        wanted = decide(answer.decision)
        return answer if wanted == answer.decision else answer.redecide(**asdict(wanted))
    probability, classes = answer
    return Segmentation.from_prediction(
        image, probability, classes, decision=decide(Decision()), labels=tuple(labels)
    )


def without_ignored(
    result: Segmentation, target: npt.NDArray[np.uint8]
) -> tuple[Segmentation, npt.NDArray[np.uint8]]:
    """Return an answer and its target as if what is ignored were sound, and found to be so.

    Args:
        result: The prediction.
        target: (H, W) uint8 class indices, or `IGNORED`.
    """
    ignored = target == IGNORED
    if not ignored.any():
        return result, target
    silent = Segmentation.from_prediction(
        result.image,
        np.where(ignored, np.float32(0), result.probability),
        result._defect_classes,
        decision=result.decision,
        labels=result.labels,
        mm_per_px=result.mm_per_px,
        source=result.source,
        model=result.model,
    )
    return silent, np.where(ignored, 0, target).astype(np.uint8)


@dataclass(frozen=True, kw_only=True, eq=False)
class Records:
    """Scored pictures, one row each. All fields but `labels` are arrays over the N pictures.

    Attributes:
        labels: (K,) str, class names by index, background first.
        ids: (N,) str, sample ids.
        label: (N,) int64, the class each picture is filed under; 0 = sound.
        group: (N,) int64, the physical tile; pictures of unknown tile have distinct negative ones.
        score: (N,) float64, picture score.
        verdict: (N,) str, `"accept"`, `"review"` or `"reject"`.
        empty: (N,) bool, filed as a defect with an empty mask.
        suspect: (N,) bool, filed as sound but tile-mate of a defective tile.
        label_issue: (N,) bool, suspect, or filed as sound and seen to be defective in an audit.
        counts: (N, 4) int64 `[TP, FP, FN, TN]`.
        confusion: (N, K, K) int64, row = truth, column = prediction.
        histogram: (N, 2, 256) int32, pixels by truth (sound, defect) and probability.
    """

    labels: npt.NDArray[Any]
    ids: npt.NDArray[Any]
    label: npt.NDArray[np.int64]
    group: npt.NDArray[np.int64]
    score: npt.NDArray[np.float64]
    verdict: npt.NDArray[Any]
    empty: npt.NDArray[np.bool_]
    suspect: npt.NDArray[np.bool_]
    label_issue: npt.NDArray[np.bool_]
    counts: npt.NDArray[np.int64]
    confusion: npt.NDArray[np.int64]
    histogram: npt.NDArray[np.int32]

    def __len__(self) -> int:
        """Return the number of pictures."""
        return len(self.ids)

    @property
    def is_defect(self) -> npt.NDArray[np.bool_]:
        """(N,) bool: the picture is filed under a defect class."""
        return self.label > 0

    def where(self, keep: npt.NDArray[np.bool_]) -> Records:
        """Return the rows where `keep` (N,) is true."""
        chosen = {f.name: getattr(self, f.name)[keep] for f in fields(self) if f.name != "labels"}
        return Records(labels=self.labels, **chosen)

    def save(self, path: str | Path) -> None:
        """Write all rows to one compressed `.npz` file (no pickle in it)."""
        arrays = {f.name: getattr(self, f.name) for f in fields(self)}
        with staged(path) as part, part.open("wb") as file:
            np.savez_compressed(file, **arrays)

    @classmethod
    def load(cls, path: str | Path) -> Records:
        """Read what `save` wrote.

        Raises:
            DataError: The file is damaged or holds something else.
        """
        names = [f.name for f in fields(cls)]
        try:
            with Path(path).open("rb") as file:  # np.load leaves a damaged one open
                stored = np.load(file, allow_pickle=False)
                return cls(**{name: stored[name] for name in names})
        except FileNotFoundError:
            raise
        except (KeyError, IndexError, OSError, *UNREADABLE_ZIP) as error:
            raise DataError(
                f"{path} holds no records of an evaluation; expected an .npz file with "
                f"{', '.join(names)}, got: {error}. Write it again with `evaluate`."
            ) from error


def join_records(parts: Iterable[Records]) -> Records:
    """Put the rows of several evaluations into one: the out-of-fold parts of a cross-validation.

    Raises:
        DataError: No part is given, the labels differ, or a picture stands in two parts.
    """
    parts = list(parts)
    if not parts or any(not np.array_equal(part.labels, parts[0].labels) for part in parts):
        raise DataError(
            "Evaluations can be joined when there is at least one and all have the same labels; "
            f"got {[list(part.labels) for part in parts]}. Score all parts with the same labels."
        )
    names = [f.name for f in fields(Records) if f.name != "labels"]
    stacked = {name: np.concatenate([getattr(part, name) for part in parts]) for name in names}
    known, times = np.unique(stacked["ids"], return_counts=True)
    if (times > 1).any():
        raise DataError(
            f"{counted(int((times > 1).sum()), 'picture')} in more than one part, "
            f"{known[times > 1][0]} first; expected each once. Join parts whose test sets do not "
            "overlap."
        )
    unknown = stacked["group"] < 0
    stacked["group"] = np.where(unknown, -1 - np.arange(len(unknown)), stacked["group"])
    return Records(labels=parts[0].labels, **stacked)


class Recorder:
    """Scores picture after picture into rows."""

    def __init__(self, labels: Sequence[str]) -> None:
        """Start without rows; `labels` are the class names by index, background first."""
        self._labels = tuple(labels)
        self._rows: list[dict[str, Any]] = []

    def add(
        self,
        sample: Sample,
        result: Segmentation,
        target: npt.NDArray[np.uint8],
        *,
        empty: bool,
    ) -> None:
        """Score one picture.

        Args:
            sample: What the picture is filed as.
            result: The prediction, in the protocol's geometry.
            target: (H, W) uint8 class indices, in the same geometry; what is `IGNORED` counts
                nowhere.
            empty: The target had no defect pixel before the geometry was applied.

        Raises:
            DataError: The sample's label is not among the labels, or a mask does not fit.
        """
        label, left_out = self._index(sample), int(np.count_nonzero(target == IGNORED))
        result, target = without_ignored(result, target)
        counts = binary_counts(result.mask, target)
        confusion = confusion_matrix(result.classes, target, len(self._labels))
        histogram = probability_histogram(result.probability, target)
        counts[3] -= left_out
        confusion[0, 0] -= left_out
        histogram[0, 0] -= left_out
        self._rows.append(
            {
                "ids": sample.id,
                "label": label,
                "group": sample.group if sample.group >= 0 else -1 - len(self._rows),
                "score": result.score,
                "verdict": result.verdict,
                "empty": empty and label > 0,
                "suspect": sample.suspect,
                "label_issue": sample.label_issue,
                "counts": counts,
                "confusion": confusion,
                "histogram": histogram,
            }
        )

    def records(self) -> Records:
        """Return the rows scored so far.

        Raises:
            DataError: Nothing was scored.
        """
        if not self._rows:
            raise DataError(
                "There is nothing to score: no picture is left. Expected at least one; check the "
                "folder, the split's test part, and whether the protocol leaves out Free pictures."
            )
        dtypes: dict[str, Any] = {"label": np.int64, "group": np.int64, "histogram": np.int32}
        columns = {
            name: np.asarray([row[name] for row in self._rows], dtypes.get(name))
            for name in self._rows[0]
        }
        return Records(labels=np.asarray(self._labels), **columns)

    def _index(self, sample: Sample) -> int:
        if sample.label == FREE:
            return 0
        if sample.label not in self._labels[1:]:
            raise DataError(
                f"{sample.id} is filed under {sample.label!r}; expected {FREE!r} or one of "
                f"{', '.join(self._labels[1:])}. Evaluate with the labels of the data set."
            )
        return self._labels.index(sample.label)


PictureProgress: TypeAlias = Callable[[int, int], None]
"""Called after each picture with how many are done and how many there are."""

Watch: TypeAlias = Callable[[Sample, Segmentation, npt.NDArray[np.uint8]], None]
"""Shown each sample, the answer, and the target (H, W) uint8 of class indices."""


def score(
    predictor: Predictor,
    samples: Sequence[Sample],
    *,
    protocol: Protocol,
    mask_rule: MaskRule | None = None,
    decision: Decision | None = None,
    labels: Sequence[str] = LABELS,
    progress: PictureProgress | None = None,
    watch: Watch | None = None,
) -> dict[MaskRule, Records]:
    """Score a predictor picture by picture, for `summarize`; empty masks are still among the rows.

    Args:
        predictor: As for `evaluate`.
        samples: As for `evaluate`.
        protocol: A protocol.
        mask_rule: Overrides the protocol's mask rules.
        decision: Overrides the predictor's own decision.
        labels: Class names by index, background first.
        progress: Told after each picture.
        watch: Shown each picture's answer, and its target by the first mask rule.

    Raises:
        DataError: Nothing is left to score, or a picture, mask or prediction does not fit.
        ConfigError: The labels differ from the model's.
    """
    rules = (mask_rule,) if mask_rule else protocol.mask_rules
    scored = [sample for sample in samples if protocol.scores(sample)]
    recorders = {rule: Recorder(labels) for rule in rules}
    for done, sample in enumerate(scored, start=1):
        picture, first = load_pair(sample, labels=labels, rule=rules[0])
        image = fit_image(picture, protocol.geometry)
        answer: Answer = predictor(image)
        result = as_segmentation(
            answer, image, decide=lambda own: protocol.decision(decision or own), labels=labels
        )
        for rule, recorder in recorders.items():
            same = rule == rules[0]
            whole = first if same else load_target(sample, labels=labels, rule=rule)
            target = fit_mask(whole, protocol.geometry)
            recorder.add(sample, result, target, empty=not whole.any())
            if watch and same:
                watch(sample, *without_ignored(result, target))
        if progress:
            progress(done, len(scored))
    return {rule: recorder.records() for rule, recorder in recorders.items()}
