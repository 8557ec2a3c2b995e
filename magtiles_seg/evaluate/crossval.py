"""Several runs as one evaluation: the folds of a cross-validation, or repeats over seeds.

Each run's model scores its own test part. Folds are joined: every picture is scored once, by a
model that has not seen its tile. Repeats give a mean and a standard deviation.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from magtiles_seg.dataset.samples import MaskRule, Sample
from magtiles_seg.errors import ConfigError
from magtiles_seg.evaluate.choices import Choice, Diagrams, Tally, choose, diagrams
from magtiles_seg.evaluate.protocols import get_protocol
from magtiles_seg.evaluate.records import Records, join_records
from magtiles_seg.evaluate.report import EvaluationResult, summarize
from magtiles_seg.evaluate.runs import Run
from magtiles_seg.evaluate.scoring import Progress, Watch, score
from magtiles_seg.evaluate.thresholds import Chooser, choose_decision
from magtiles_seg.labels import FREE
from magtiles_seg.result import Segmentation


class OpenModel(Protocol):
    """Opens a model file: `Segmenter`, or what answers alike."""

    def __call__(self, path: Path, /) -> Any:  # noqa: ANN401 - a Segmenter
        """Return a predictor and context manager with `spec.card.labels`."""


@dataclass(frozen=True, kw_only=True, eq=False)
class OutOfFold:
    """A joined evaluation, and what its predictions say of calibration and thresholds.

    Attributes:
        result: Figures over all folds, each picture scored by the model that has not seen it, and
            of each fold.
        run_of: Which run scored each picture, by sample id.
        choice: For a model that is trained on all tiles; None where a protocol fixes the threshold.
        reliability: Diagrams and calibration error; empty where the protocol fixes the threshold.
    """

    result: EvaluationResult
    run_of: dict[str, Run]
    choice: Choice | None
    reliability: Diagrams


def evaluate_folds(
    runs: Sequence[Run],
    samples: Mapping[str, Sample],
    *,
    open_model: OpenModel,
    protocol: str = "T",
    recall: float = 0.95,
    resamples: int = 1000,
    progress: Progress | None = None,
    watch: Watch | None = None,
) -> OutOfFold:
    """Score each fold's test part with its model and join them.

    Where the protocol leaves the thresholds to the model, those of each fold are chosen on its own
    validation part.

    Args:
        runs: The folds; no picture may stand in two test parts.
        samples: The data set by id.
        open_model: `Segmenter`.
        protocol: Name of one of `PROTOCOLS`.
        recall: Share of defective pictures that a reject score must catch.
        resamples: For the bootstrap intervals.
        progress: Told after each scored picture.
        watch: Shown each out-of-fold answer.

    Raises:
        DataError: A picture is missing, or stands in two test parts.
    """
    fixed = get_protocol(protocol)
    chooser, tallies = Chooser(), [Tally() for _ in runs]
    parts: list[dict[MaskRule, Records]] = []
    total = sum(fixed.scores(sample) for run in runs for sample in run.part("test", samples))
    left_out = sum(len(run.split.test) for run in runs) - total
    for run, tally in zip(runs, tallies, strict=True):
        done = sum(len(next(iter(part.values()))) for part in parts)
        tell = progress and _from(progress, done, total)
        look = _watcher(chooser, tally, watch)
        with open_model(run.model) as model:
            labels, decision = model.spec.card.labels, None
            if fixed.threshold is None:
                held = run.part("validation", samples)
                decision = choose_decision(
                    model, held, recall=recall, protocol=fixed, labels=labels
                )
            tested = run.part("test", samples)
            parts.append(
                score(
                    model,
                    tested,
                    protocol=fixed,
                    decision=decision,
                    labels=labels,
                    progress=tell,
                    watch=look,
                )
            )
    joined = {rule: join_records(part[rule] for part in parts) for rule in parts[0]}
    by_fold = {
        run.directory.name: summarize(part, protocol=fixed, resamples=0).figures
        for run, part in zip(runs, parts, strict=True)
    }
    result = summarize(joined, protocol=fixed, resamples=resamples, left_out=left_out)
    free = fixed.threshold is None
    tiles = len(np.unique(result.records.group))
    choice = choose(chooser, tallies, recall=recall, tiles=tiles) if free else None
    return OutOfFold(
        result=replace(result, by_fold=by_fold),
        run_of={id_: run for run in runs for id_ in run.split.test},
        choice=choice,
        reliability=diagrams(tallies, choice.decision.score_margin_px) if choice else {},
    )


def repeat(values: Iterable[Mapping[str, float]]) -> dict[str, tuple[float, float]]:
    """Return mean and sample standard deviation of each figure over repeats.

    Args:
        values: The figures of each repeat, at least two.

    Raises:
        ConfigError: There are fewer than two.
    """
    rows = list(values)
    if len(rows) < 2:
        raise ConfigError(f"a spread needs at least two repeats, got {len(rows)}; name more runs")
    names = [name for name in rows[0] if all(name in row for row in rows)]
    table = np.array([[row[name] for name in names] for row in rows])
    spread = zip(table.mean(0).tolist(), table.std(0, ddof=1).tolist(), strict=True)
    return dict(zip(names, spread, strict=True))


def _from(progress: Progress, done: int, total: int) -> Progress:
    return lambda more, _: progress(done + more, total)


def _watcher(chooser: Chooser, tally: Tally, watch: Watch | None) -> Watch:
    def show(sample: Sample, result: Segmentation, target: npt.NDArray[np.uint8]) -> None:
        label = 0 if sample.label == FREE else result.labels.index(sample.label)
        chooser.add(result, target, label)
        tally.add(sample, result, target)
        if watch:
            watch(sample, result, target)

    return show
