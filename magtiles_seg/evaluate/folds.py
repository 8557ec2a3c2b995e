"""Several runs as one evaluation: the folds of a cross-validation, or repeats over seeds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from magtiles_seg.dataset.from_params import read_split
from magtiles_seg.dataset.samples import MaskRule, Sample
from magtiles_seg.dataset.splits import SPLIT_NAME, Split, note_changed, taken_over
from magtiles_seg.errors import BackendUnavailableError, ConfigError, DataError
from magtiles_seg.evaluate.compare import Comparison
from magtiles_seg.evaluate.decide import (
    CalibrationCounts,
    Choice,
    DecisionSearch,
    Diagrams,
    choose_decision,
    choose_for_all_folds,
    diagrams,
    kind_of,
)
from magtiles_seg.evaluate.plots.charts import line_chart
from magtiles_seg.evaluate.plots.curves import save, write_csv
from magtiles_seg.evaluate.plots.gallery import Gallery
from magtiles_seg.evaluate.plots.page import save_page
from magtiles_seg.evaluate.protocols import Protocol as EvaluationProtocol
from magtiles_seg.evaluate.protocols import as_measured, get_protocol
from magtiles_seg.evaluate.report import EvaluationResult, summarize
from magtiles_seg.evaluate.scoring import PictureProgress, Records, Watch, join_records, score
from magtiles_seg.evaluate.summary import table
from magtiles_seg.files import write
from magtiles_seg.labels import FREE
from magtiles_seg.model.card import measurement
from magtiles_seg.names import counted
from magtiles_seg.result import Segmentation

MODEL_NAMES = ("model.onnx", "model.safetensors")
"""What the model of a run may be called; the first that is there is taken."""


@dataclass(frozen=True)
class Run:
    """A model and the split that it was trained on."""

    directory: Path
    model: Path
    split: Split

    def part(self, name: str, samples: Mapping[str, Sample]) -> list[Sample]:
        """Return the samples of a part of the split.

        Raises:
            DataError: The data lacks a picture of it.
        """
        ids = getattr(self.split, name)
        missing = [id_ for id_ in ids if id_ not in samples]
        if missing:
            raise DataError(
                f"{self.directory / SPLIT_NAME} names {counted(len(missing), 'picture')} that "
                f"the data set lacks, {missing[0]} among them; load the data that it was made from"
            )
        return [samples[id_] for id_ in ids]


def find_runs(directories: Iterable[Path]) -> tuple[Run, ...]:
    """Return the runs of some directories, in the order given.

    Raises:
        DataError: A directory lacks its split or its model, or has a model that was exported from
            another training than that of the checkpoint beside it.
    """
    runs = []
    for directory in directories:
        models = [directory / name for name in MODEL_NAMES if (directory / name).is_file()]
        manifest = directory / SPLIT_NAME
        if not models or not manifest.is_file():
            raise DataError(
                f"{directory} is no run: expected {SPLIT_NAME} and {' or '.join(MODEL_NAMES)} in it"
            )
        if len(models) > 1:
            _check_same_training(*models)
        runs.append(Run(directory, models[0], read_split(manifest)))
    return tuple(runs)


def _check_same_training(exported: Path, checkpoint: Path) -> None:
    """Refuse an exported model that is left from before its checkpoint was trained anew.

    Raises:
        DataError: They are of two trainings.
        ModelError: One is damaged.
    """
    try:
        from magtiles_seg.model.warmstart import training_of

        said, own = training_of(exported), training_of(checkpoint)
    except (ImportError, BackendUnavailableError):  # where nothing is trained, checkpoints are mute
        return
    common = (said.keys() & own.keys()) - {"validation"}  # figures, of the one or the other device
    if any(said[key] != own[key] for key in common):
        raise DataError(
            f"{exported} is not of the training that {checkpoint.name} beside it is of: export "
            "this one again, or delete the one that is not to be evaluated"
        )


def run_names(directories: Sequence[Path]) -> list[str]:
    """Return what runs are called: by their folders, or by whole paths where folders share a name.

    Raises:
        ConfigError: A run is named twice.
    """
    places = [directory.resolve() for directory in directories]
    twice = next((place for place in places if places.count(place) > 1), None)
    if twice is not None:
        raise ConfigError(f"the run {twice} is named twice; name each once")
    names = [place.name for place in places]
    return names if len({*names}) == len(names) else list(map(str, directories))


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
        choice: For a model that is trained on all tiles; None where a protocol fixes the threshold,
            all pictures are sound, or `no_choice` says why.
        reliability: Diagrams and calibration error; empty where there is no choice.
        no_choice: Why none could be made of pictures that ask for one; or nothing.
    """

    result: EvaluationResult
    run_of: dict[str, Run]
    choice: Choice | None
    reliability: Diagrams
    no_choice: str = ""


def evaluate_folds(
    runs: Sequence[Run],
    samples: Mapping[str, Sample],
    *,
    open_model: OpenModel,
    protocol: str = "T",
    recall: float = 0.95,
    false_reject: float = 0.05,
    resamples: int = 1000,
    progress: PictureProgress | None = None,
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
        false_reject: Share of sound pictures that it may, where a validation part has only such.
        resamples: For the bootstrap intervals.
        progress: Told after each scored picture.
        watch: Shown each out-of-fold answer.

    Raises:
        DataError: A picture is missing, or stands in two test parts.
        ConfigError: A run is named twice.
    """
    fixed, names = get_protocol(protocol), run_names([run.directory for run in runs])
    measured = [_measured(fixed, run, samples, open_model) for run in runs]
    fixed = next((one for one in measured if (one.name, one.leaky) != (fixed.name, fixed.leaky)),
                 measured[0])  # fmt: skip
    search, counts = DecisionSearch(), [CalibrationCounts() for _ in runs]
    parts: list[dict[MaskRule, Records]] = []
    networks: list[str | None] = []
    total = sum(fixed.scores(sample) for run in runs for sample in run.part("test", samples))
    left_out = sum(len(run.split.test) for run in runs) - total
    for run, count in zip(runs, counts, strict=True):
        done = sum(len(next(iter(part.values()))) for part in parts)
        tell = progress and _from(progress, done, total)
        look = _watcher(search, count, watch)
        with open_model(run.model) as model:
            labels, decision = model.spec.card.labels, None
            networks.append(kind_of(model.spec.card))
            if fixed.threshold is None:
                held = run.part("validation", samples)
                try:
                    decision = choose_decision(
                        model,
                        held,
                        recall=recall,
                        false_reject=false_reject,
                        protocol=fixed,
                        labels=labels,
                    )
                except ConfigError as error:
                    raise ConfigError(f"the validation part of {run.directory}: {error}") from error
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
    odd = note_changed([run.split for run in runs], list(samples.values())) + _unfinished(runs)
    joined = {rule: join_records(part[rule] for part in parts) for rule in parts[0]}
    by_fold = {
        name: summarize(part, protocol=fixed, resamples=0).figures
        for name, part in zip(names, parts, strict=True)
    }
    result = summarize(joined, protocol=fixed, resamples=resamples, left_out=left_out)
    free = fixed.threshold is None and not search.is_sound
    tiles = len(np.unique(result.records.group))
    choice, no_choice = None, ""
    if free:
        try:
            choice = choose_for_all_folds(search, counts, recall=recall, tiles=tiles)
        except ConfigError as error:
            no_choice = str(error)
    if choice is not None:
        name = f"{result.protocol.name}, of {len(runs)} networks made like this one"
        choice = replace(
            choice,
            measured=measurement(name, len(result.records), result.figures),
            networks=tuple(dict.fromkeys(kind for kind in networks if kind is not None)),
        )
    return OutOfFold(
        result=replace(result, by_fold=by_fold, notes=(*odd, *result.notes)),
        run_of={id_: run for run in runs for id_ in run.split.test},
        choice=choice,
        reliability=diagrams(counts, choice.decision.score_margin_px) if choice else {},
        no_choice=no_choice,
    )


def _unfinished(runs: Sequence[Run]) -> tuple[str, ...]:
    """Return a sentence for each run whose training has not ended.

    Raises:
        ModelError: A checkpoint is damaged.
    """
    try:
        from magtiles_seg.model.checkpoint import CHECKPOINT, unfinished
    except (ImportError, BackendUnavailableError):  # where nothing is trained, checkpoints are mute
        return ()
    paths = [run.directory / CHECKPOINT for run in runs]
    return tuple(said for path in paths if path.is_file() for said in unfinished(path))


def _measured(
    fixed: EvaluationProtocol, run: Run, samples: Mapping[str, Sample], open_model: OpenModel
) -> EvaluationProtocol:
    """Return what a run's figures may be called, by its split and its model's card."""
    with open_model(run.model) as model:
        training = model.spec.card.training
    return as_measured(
        fixed,
        run.split,
        run.part("train", samples),
        run.part("test", samples),
        training_sha256=training.get("training_sha256"),
        taken_over=taken_over(training),
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


def _from(progress: PictureProgress, done: int, total: int) -> PictureProgress:
    return lambda more, _: progress(done + more, total)


def _watcher(search: DecisionSearch, count: CalibrationCounts, watch: Watch | None) -> Watch:
    def show(sample: Sample, result: Segmentation, target: npt.NDArray[np.uint8]) -> None:
        label = 0 if sample.label == FREE else result.labels.index(sample.label)
        search.add(result, target, label)
        count.add(sample, result, target)
        if watch:
            watch(sample, result, target)

    return show


def save_folds(joined: OutOfFold, directory: Path, *, worst: Gallery | None = None) -> None:
    """Write what `curves.save` does, `choice.json`, the reliability tables, and `report.html`.

    Args:
        joined: The evaluation.
        directory: Where to write; made when missing.
        worst: Pictures to show.
    """
    save(joined.result, directory)
    save_page(joined.result, directory, worst=worst)
    plots = directory / "plots"
    lines = {}
    for name, (cells, _) in joined.reliability.items():
        write_csv(plots / f"reliability_{name}.csv", cells)
        lines[name] = [(row["confidence"], row["observed"]) for row in cells]
    for unit in ("pixels", "pictures"):
        mine = {"says true": [(0.0, 0.0), (1.0, 1.0)]}
        mine |= {name.split("_")[1]: lines[name] for name in lines if name.startswith(unit)}
        if len(mine) > 1:
            title = f"Reliability of {unit}"
            _write_chart(plots / f"reliability_{unit}.png", title, mine, "confidence", "observed")
    if joined.choice:
        write(directory / "choice.json", joined.choice.to_json())
    else:  # one of an earlier evaluation is not of these figures
        (directory / "choice.json").unlink(missing_ok=True)
    text = f"{joined.result.to_markdown()}\n{choice_to_markdown(joined)}"
    write(directory / "report.md", text)


def choice_to_markdown(joined: OutOfFold) -> str:
    """Return the calibration errors, and the choice for a model of all tiles, as Markdown."""
    parts = []
    if joined.reliability:
        errors = [[name, f"{error:.4f}"] for name, (_, error) in joined.reliability.items()]
        parts += [
            "Expected calibration error; what stands after calibration was fitted on the other "
            "folds alone:",
            table(["probabilities of", "error"], errors),
        ]
    if joined.choice:
        parts.append(
            f"For a model of all tiles, after the pixels' logit is taken times "
            f"{joined.choice.pixel.scale:.3f} plus {joined.choice.pixel.bias:.3f}: "
            f"{joined.choice.decision}."
        )
    if joined.no_choice:
        parts.append(
            f"No thresholds and no calibration for a model of all tiles: {joined.no_choice}."
        )
    return "\n\n".join(parts) + "\n"


def repeats_to_markdown(
    protocol: str,
    runs: Mapping[str, Mapping[str, float]],
    summary: Mapping[str, tuple[float, float]],
) -> str:
    """Return each run's figures with mean and standard deviation as Markdown.

    Args:
        protocol: Its name.
        runs: Figures by run.
        summary: As of `repeat`.
    """
    cells = [
        [
            name,
            f"{mean:.4f} ± {deviation:.4f}",
            *(f"{figures[name]:.4f}" for figures in runs.values()),
        ]
        for name, (mean, deviation) in summary.items()
    ]
    head = f"## Protocol {protocol}: {len(runs)} runs, mean ± standard deviation"
    return f"{head}\n\n{table(['figure', 'mean ± sd', *runs], cells)}\n"


def leak_to_markdown(leak: Comparison) -> str:
    """Return "random split minus grouped split" with its interval, figure by figure.

    Args:
        leak: `compare(grouped, random)`.
    """
    cells = [
        [
            change.name,
            f"{change.base:.3f}",
            f"{change.here:.3f}",
            f"{change.difference:+.3f} ({change.difference_95[0]:+.3f} to "
            f"{change.difference_95[1]:+.3f})",
        ]
        for change in leak.figures
    ]
    head = (
        f"Random split minus grouped split on the {leak.pictures} pictures of {leak.tiles} tiles "
        "that both tested; 95 % bootstrap interval over tiles."
    )
    return f"{head}\n\n{table(['figure', 'grouped', 'random', 'random - grouped'], cells)}\n"


def _write_chart(
    path: Path, title: str, lines: Mapping[str, list[tuple[float, float]]], x: str, y: str
) -> None:
    chart = line_chart(title, lines, x_label=x.replace("_", " "), y_label=y)
    if chart:
        write(path, chart)
