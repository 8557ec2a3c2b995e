"""The pipeline: load, split, train, export, evaluate, as the command line, DVC and users call it.

| function | DVC stage | takes | leaves |
|---|---|---|---|
| `load` | data_load | a source | a whole data set on disk |
| `split` | data_split | a data set | a split manifest |
| `train` | train | a split | a checkpoint |
| `export` | export | a checkpoint and its split | the one model file |
| `evaluate` | evaluate | a model and a split | figures, tables, curves |

Each takes `Params`, as `load_params` reads them, and paths, also as text; nothing is printed. What
a function needs of an optional extra is imported when it is called.

Example:
    >>> params = load_params(None, ["data_load.source=synthetic:tiles=10", "train.epochs=1"])
    >>> load(params)
    >>> split(params, "data/split.json")
    >>> checkpoint = train(params, "data/split.json", "runs/train")
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from magtiles_seg.dataset.archive import converted_from, source_folder
from magtiles_seg.dataset.from_params import (
    grouped,
    layout_of,
    parts_of,
    read_split,
    samples_of,
    split_parts,
)
from magtiles_seg.dataset.reviewed import reviewed_samples, verify_parts
from magtiles_seg.dataset.samples import Sample
from magtiles_seg.dataset.splits import Split, note_changed, taken_over
from magtiles_seg.errors import ConfigError, DataError, ModelError
from magtiles_seg.files import Lock, read_text, write

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from magtiles_seg.config import Params
    from magtiles_seg.evaluate.decide import Choice
    from magtiles_seg.evaluate.folds import OutOfFold
    from magtiles_seg.evaluate.report import EvaluationResult
    from magtiles_seg.evaluate.scoring import Watch
    from magtiles_seg.export.artefacts import Order
    from magtiles_seg.export.parity import ParityReport, TileSet
    from magtiles_seg.infer.manifest import Manifest
    from magtiles_seg.infer.segmenter import Segmenter
    from magtiles_seg.model.card import ModelCard
    from magtiles_seg.review.handoff import Imported

__all__ = [
    "Artefact",
    "DataSet",
    "ModelFile",
    "count_tiles",
    "evaluate",
    "evaluate_folds",
    "export",
    "export_artefact",
    "import_reviewed",
    "load",
    "read_split",
    "samples_of",
    "screen",
    "split",
    "split_parts",
    "train",
]

AnyPath: TypeAlias = "str | os.PathLike[str]"
Progress: TypeAlias = Callable[[int, "int | None"], None]
"""Told `(done, total)`; the total is None where it is not known."""
Note: TypeAlias = Callable[[str], object]
"""Told in a sentence what is odd but no error."""


@dataclass(frozen=True)
class DataSet:
    """A data set on disk that was found to be whole.

    Attributes:
        root: Its folder.
        samples: Its pictures.
        summary: What was found when it was converted from another tool's format, or None.
    """

    root: Path
    samples: tuple[Sample, ...]
    summary: str | None = None

    @property
    def tiles(self) -> int:
        """Number of physical tiles."""
        return len({sample.group for sample in self.samples})


@dataclass(frozen=True)
class ModelFile:
    """The one model file that a checkpoint became.

    Attributes:
        path: The `.onnx` file.
        card: What it says about itself, its thresholds among it.
        parity: How far its answers are from those of the checkpoint.
    """

    path: Path
    card: ModelCard
    parity: ParityReport


@dataclass(frozen=True)
class Artefact:
    """A model for a runtime and in a precision.

    Attributes:
        path: The file; its manifest stands beside it.
        manifest: What it was made from, for which machine, and how it passed parity.
        proof: The tiles that it was compared on.
    """

    path: Path
    manifest: Manifest
    proof: TileSet


def load(
    params: Params,
    *,
    on_fetch: Progress | None = None,
    on_verify: Progress | None = None,
    note: Note = lambda _: None,
) -> DataSet:
    """Fetch, verify and unpack the data set of `params.data_load`.

    Args:
        params: Where it comes from and where it goes.
        on_fetch: Told bytes, or tiles that were drawn.
        on_verify: Told pictures.
        note: Told in a sentence what is odd but no error, and whom it waits for.

    Raises:
        DataError: It cannot be fetched or is not whole; names everything that is wrong.
        ConfigError: The source's options are unknown.
    """
    from magtiles_seg.dataset.archive import fetch, note_folder, read_summary, verify
    from magtiles_seg.dataset.formats.convert import Wanted

    wanted = params.data_load
    directory = Path(wanted.directory)
    root = fetch(
        wanted.source,
        directory,
        sha256=wanted.sha256,
        checksums=None if wanted.checksums is None else Path(wanted.checksums),
        wanted=Wanted.of(wanted),
        progress=on_fetch,
        waiting=note,
    )
    samples = verify(
        root, layout=layout_of(params), labels=wanted.labels, progress=on_verify, note=note
    )
    folder = source_folder(wanted.source)
    if folder is not None and not converted_from(folder, directory):
        note_folder(directory, samples)
    verify_parts(directory)
    reviewed = reviewed_samples(directory, wanted.labels, samples)
    return DataSet(root, (*samples, *reviewed), read_summary(root))


def count_tiles(loaded: DataSet, params: Params) -> int:
    """Return the number of physical tiles of a loaded data set, by `data_split.group_pattern` too.

    Raises:
        DataError: The pattern does not fit every name.
        ConfigError: It is invalid.
    """
    own = tuple(sample for sample in loaded.samples if not sample.train_only)
    reviewed = {sample.group for sample in loaded.samples if sample.train_only}
    known = {sample.group for sample in own}
    return len({sample.group for sample in grouped(own, params)}) + len(reviewed - known)


def import_reviewed(
    params: Params,
    export: AnyPath,
    *,
    manifest: AnyPath | None = None,
    tool: str | None = None,
    index: AnyPath | None = None,
    group_by: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Imported:
    """Take corrected labels into `params.data_load.directory`, as pictures to train on.

    Args:
        params: Where the data set lies, and its labels.
        export: What the labelling tool wrote.
        manifest: The split whose validation and test parts stay untouched; None: as `split` draws.
        tool: What wrote it; None: that which the pictures were exported for.
        index: The export's review.json; None: in `export`.
        group_by: Which pictures show the same part, by their sources; None: those of one web or
            request.
        progress: Told pictures that were compared with the data set.

    Raises:
        FileNotFoundError, DataError: The data set or the export is missing, or not whole; a label
            is of an unknown picture or class.
        ConfigError: `group_by` is invalid.
    """
    from magtiles_seg.dataset.splits import make_split
    from magtiles_seg.review.handoff import import_labels

    index = None if index is None else Path(index)
    samples = [sample for sample in samples_of(params) if not sample.train_only]
    if manifest is None:
        fixed = make_split(samples, **params.data_split.draw)
    else:
        fixed = read_split(manifest)
    return import_labels(
        Path(export),
        Path(params.data_load.directory),
        labels=params.data_load.labels,
        samples=samples,
        split=fixed,
        tool=tool,
        index=index,
        group_by=group_by,
        progress=progress,
    )


def split(params: Params, out: AnyPath | None = None) -> Split:
    """Draw the split of `params.data_split`, and write its manifest where `out` says.

    Raises:
        FileNotFoundError, DataError: The data set is missing, not whole, or too small.
    """
    from magtiles_seg.dataset.splits import make_split

    drawn = make_split(samples_of(params), **params.data_split.draw)
    if out is not None:
        write(Path(out), drawn.to_json())
    return drawn


def train(
    params: Params,
    manifest: AnyPath,
    out: AnyPath,
    *,
    logs: AnyPath | None = None,
    restart: bool = False,
    progress: Callable[..., Any] | None = None,
    note: Note | None = None,
) -> Path:
    """Train `params.train` on a split's training part and return the checkpoint's path.

    Args:
        params: What is trained, and how.
        manifest: The split manifest.
        out: Folder of the checkpoint and of the state that a stopped run goes on from.
        logs: Folder of DVCLive's curves; None: `out/dvclive`.
        restart: Whether to forget what `out` holds, unless it is this very run.
        progress: Wraps an iterable `(items, count, title)`, as `magtiles_seg.progress.wrap` does.
        note: As of `split_parts`.

    Raises:
        FileNotFoundError, DataError: The split or the data set is missing or does not fit; or `out`
            holds a run of other parameters, or of pictures that have changed since.
        ConfigError: The parameters do not fit each other, the training diverged, or another one
            is under way in `out`.
        BackendUnavailableError: The device or a package that training needs is missing.
    """
    from dvclive.live import Live

    from magtiles_seg.model.checkpoint import CHECKPOINT
    from magtiles_seg.train.devices import is_first
    from magtiles_seg.train.loop import train as run
    from magtiles_seg.train.state import (
        check_run,
        fingerprints,
        forget_other_run,
        history_of,
        identity,
    )

    parts, out = split_parts(manifest, params, note=note if is_first() else None), Path(out)
    what = (parts["train"], parts["validation"], params.train, out)
    labels, resume = params.data_load.labels, True
    if not is_first():  # started by the first one, which has cleared the folder and speaks for all
        return run(*what, labels=labels)
    known, expected = fingerprints(*what[:2]), identity(*what[:3], labels)
    out.mkdir(parents=True, exist_ok=True)
    taken = f"another training in {out} is under way: wait for its end, or name another folder"
    with Lock(out / ".lock", taken=taken):
        if restart:
            resume = not forget_other_run(*what, labels=labels, known=known)
        else:  # before the curves and parameters of what may be another run are touched
            check_run(out, expected, *what[:2], known)
        folder, history = Path(logs or out / "dvclive"), history_of(out)
        if history:
            _forget_curves(folder)
        resume = resume and (out / CHECKPOINT).exists()
        with Live(
            str(folder), resume=resume, report=None, save_dvc_exp=False, dvcyaml=None
        ) as logger:
            logger.log_params(asdict(params.train))
            for row in history:
                for figure, value in row.items():
                    logger.log_metric(figure, value)
                logger.next_step()
            return run(*what, labels=labels, known=known, progress=progress, logger=logger)


def _forget_curves(folder: Path) -> None:
    """Remove the curves of a run that goes on: they are drawn again from what it knows.

    A kill may have left a file half-written, which DVCLive does not read, or an epoch short; and
    after the first epoch it counts from 0 again. Pictures stay.
    """
    for name in ("metrics.json", "params.yaml"):
        (folder / name).unlink(missing_ok=True)
    shutil.rmtree(folder / "plots" / "metrics", ignore_errors=True)


def export(
    params: Params,
    checkpoint: AnyPath,
    out: AnyPath,
    *,
    manifest: AnyPath | None = None,
    choice: AnyPath | None = None,
    name: str | None = None,
    with_decision: bool = False,
    note: Note | None = None,
) -> ModelFile:
    """Write a checkpoint as the one model file, if it answers as the checkpoint does.

    Args:
        params: The gate's tolerances, and how the weights are stored.
        checkpoint: A `.safetensors` file.
        out: The `.onnx` file to write.
        manifest: The split that it was trained on: the card names it, and the thresholds are chosen
            on its validation part; None: those of the checkpoint.
        choice: Thresholds and calibration that `evaluate_folds` chose (`choice.json`), in place of
            those of the validation part.
        name: What people call the model; None: as the checkpoint says.
        with_decision: Whether its graph gives mask, score and verdict as well.
        note: As of `split_parts`.

    Raises:
        ParityError: The model answers differently; nothing is written.
        FileNotFoundError, DataError, ModelError: An input is missing or damaged.
    """
    from magtiles_seg.export.graph import export_onnx
    from magtiles_seg.export.parity import Tolerance
    from magtiles_seg.export.unseen import checkpoint_card
    from magtiles_seg.model.checkpoint import calibrate_checkpoint

    checkpoint, out = Path(checkpoint), Path(out)
    manifest = None if manifest is None else Path(manifest)
    if checkpoint.suffix.lower() != ".safetensors":
        raise ModelError(
            f"{checkpoint} is no checkpoint: expected a .safetensors file; for an artefact of an "
            "ONNX model, give a folder to write to"
        )
    chosen = _read_choice(Path(choice)) if choice else None
    _note_unfinished(checkpoint, note)
    with tempfile.TemporaryDirectory() as folder:
        if chosen is not None:
            source, checkpoint = checkpoint, Path(folder) / checkpoint.name
            calibrate_checkpoint(
                source, checkpoint, scale=chosen.pixel.scale, bias=chosen.pixel.bias
            )
        card = checkpoint_card(params, checkpoint, manifest, chosen, name, note=note)
        report = export_onnx(
            checkpoint,
            out,
            card=card,
            precision=params.export.precision,
            with_decision=with_decision,
            tolerance=Tolerance.of(params.export, "fp32"),
        )
    return ModelFile(out, card, report)


def _note_unfinished(checkpoint: Path, note: Note | None) -> None:
    from magtiles_seg.model.checkpoint import unfinished

    for said in unfinished(checkpoint):
        if note:
            note(said)


def _read_choice(path: Path) -> Choice:
    from magtiles_seg.evaluate.decide import Choice

    try:
        return Choice.from_json(read_text(path))
    except DataError as error:
        raise DataError(f"{path}: {error}") from error


def export_artefact(
    params: Params,
    model: AnyPath | None,
    out: AnyPath,
    order: Order,
    *,
    manifest: AnyPath | None = None,
    data: AnyPath | None = None,
    name: str | None = None,
    progress: Callable[[str, int, int | None], None] | None = None,
    note: Note | None = None,
) -> Artefact:
    """Write a model for a runtime and in a precision, if it passes parity.

    Args:
        params: How many pictures are compared, and how many int8 takes its ranges from.
        model: A checkpoint, an fp32 `.onnx` file, or a bundled model by name; None: `lite0`.
        out: Folder for the artefact and its manifest.
        order: What is to be made.
        manifest: The split that the model was trained by: int8 takes its ranges from the training
            part, the others are compared.
        data: Without a split: a folder of pictures that the model has not seen, half of its tiles
            for each. Without either, synthetic tiles serve, but for int8.
        name: What people call the model, where it is a checkpoint.
        progress: Told (stage, done, total).
        note: As of `split_parts`.

    Raises:
        ParityError: The artefact answers differently; nothing is written.
        FileNotFoundError, ModelError: An input is missing or damaged.
        DataError: So is the data set, or it is what the model was trained on.
        ConfigError: int8 has neither a split nor tiles.
        BackendUnavailableError: What builds it is not installed.
    """
    from magtiles_seg.export.artefacts import export_artefact as make
    from magtiles_seg.export.unseen import checkpoint_card, gate_tiles
    from magtiles_seg.model.bundled import model_path

    model, out = model_path(model), Path(out)
    manifest = None if manifest is None else Path(manifest)
    data = None if data is None else Path(data)
    is_checkpoint = model.suffix.lower() == ".safetensors"
    if is_checkpoint:
        _note_unfinished(model, note)
    card = checkpoint_card(params, model, manifest, None, name) if is_checkpoint else None
    proof, int8_tiles = gate_tiles(
        params, model, order.precision, manifest=manifest, data=data, note=note
    )
    path, written = make(
        model, out, order, proof=proof, int8_tiles=int8_tiles, card=card, progress=progress
    )
    return Artefact(path, written, proof)


def screen(
    params: Params,
    model: AnyPath | None,
    manifest: AnyPath,
    out: AnyPath,
    *,
    kept: float = 0.99,
    threshold: float | None = None,
    epochs: int = 150,
    progress: Callable[..., Any] | None = None,
    note: Note | None = None,
) -> ModelCard:
    """Train a screen for a model, and write it with its threshold.

    Args:
        params: Where the data set is.
        model: What the screen is to stand before, as `Segmenter` takes it.
        manifest: The split: the training part teaches the screen, the validation part chooses its
            threshold.
        out: The `.onnx` file to write.
        kept: Share of the labelled defects that the model finds which must stay found, in (0, 1].
        threshold: Of a cell's probability, instead of one that is chosen so, in (0, 1].
        epochs: Of 640 crops each.
        progress: Wraps an iterable `(items, count, title)`, as `magtiles_seg.progress.wrap` does.
        note: As of `split_parts`.

    Returns:
        The screen's card.

    Raises:
        ConfigError: `kept`, `threshold` or `epochs` is out of its range.
        FileNotFoundError, DataError, ModelError: An input is missing, damaged, or does not fit.
        ParityError: The file answers differently from the network; nothing is written.
    """
    from magtiles_seg.evaluate.protocols import get_protocol
    from magtiles_seg.export.screen import write_screen
    from magtiles_seg.infer.segmenter import Segmenter
    from magtiles_seg.train.data import training_pictures, trusted
    from magtiles_seg.train.screen import choose_threshold, findings, fit_screen, screen_card

    shares = {"kept": kept, "threshold": 1 if threshold is None else threshold}
    for name, value in shares.items():
        if not 0 < value <= 1:
            raise ConfigError(f"{name} is {value!r}; expected a number above 0 and at most 1")
    if epochs < 1:
        raise ConfigError(f"epochs is {epochs!r}; expected at least 1")
    parts = split_parts(manifest, params, note=note)
    protocol, labels = get_protocol(params.train.protocol), params.data_load.labels
    training, validation = trusted(parts["train"]), trusted(parts["validation"])
    shown, held_out = (training_pictures(part, protocol, labels) for part in (training, validation))
    with Segmenter(model) as segmenter:

        def find(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
            return segmenter(image).mask

        found = findings(held_out, find)  # first of all: without any, the training were for nothing
        network = fit_screen(
            training, shown, find, labels=labels, epochs=epochs, seed=0, progress=progress
        )
        choice = choose_threshold(network, held_out, found, kept=kept, threshold=threshold)
        card = screen_card(network, choice, segmenter.spec, epochs=epochs)
    write_screen(network, Path(out), card, [picture.image for picture in held_out[:4]])
    return card


def evaluate(
    params: Params,
    model: Segmenter | AnyPath | None = None,
    *,
    manifest: AnyPath | None = None,
    dataset: AnyPath | None = None,
    protocol: str | None = None,
    group_by: str | None = None,
    out: AnyPath | None = None,
    worst: int = 0,
    progress: Progress | None = None,
) -> EvaluationResult:
    """Score a model on a part of a split, or on a whole data set.

    Args:
        params: Protocol, part, and whether mirrored views count.
        model: A model file, which is opened for this, or what answers; None: the bundled model.
        manifest: A split, of which `params.evaluate.part` is scored.
        dataset: A folder, of which every picture is scored in place of a split's part.
        protocol: In place of `params.evaluate.protocol`; of a folder it is `native` by default.
        group_by: Which pictures show the same tile, as of `dataset.grouping.group_pictures`; None:
            as the data set says.
        out: Folder for figures, tables, curves and `report.html`; None writes nothing.
        worst: So many of the worst pictures are written there too, and shown on the page.
        progress: Told pictures.

    Raises:
        FileNotFoundError, DataError, ModelError: Data or model are missing or do not fit.
        ConfigError: The protocol is unknown, or the labels differ from the model's.
    """
    from magtiles_seg.dataset.grouping import regrouped
    from magtiles_seg.evaluate.plots import curves
    from magtiles_seg.evaluate.plots.gallery import Gallery
    from magtiles_seg.evaluate.plots.page import save_page
    from magtiles_seg.evaluate.protocols import as_measured, get_protocol
    from magtiles_seg.evaluate.report import evaluate as score
    from magtiles_seg.infer.segmenter import Segmenter

    part = params.evaluate.part
    parts: dict[str, list[Sample]] = {}
    drawn, notes = None, tuple[str, ...]()
    if dataset is not None:
        samples = list(samples_of(params, dataset))
        fixed = get_protocol(protocol or "native")
    elif manifest is not None:
        drawn, everything = read_split(manifest), samples_of(params)
        parts = parts_of(drawn, everything, manifest)
        notes = note_changed([drawn], everything)
        samples = [sample for name in parts for sample in parts[name] if part in (name, "all")]
        fixed = get_protocol(protocol or params.evaluate.protocol)
    else:
        raise DataError("nothing to evaluate on: expected a split manifest or a data set")
    if group_by is not None:
        samples = regrouped(samples, group_by)
    with ExitStack() as stack:
        if not isinstance(model, Segmenter):
            model = stack.enter_context(Segmenter(model, flips=params.evaluate.flips))
        card = model.spec.card
        if drawn is not None:
            fixed = as_measured(
                fixed,
                drawn,
                parts["train"],
                samples,
                part=part,
                training_sha256=card.training.get("training_sha256"),
                taken_over=taken_over(card.training),
            )
        gallery = Gallery(worst if out is not None else 0)
        result = score(
            model,
            samples,
            protocol=fixed,
            labels=card.labels,
            progress=progress,
            watch=gallery.watch if gallery.count else None,
        )
    result = replace(result, notes=(*notes, *result.notes))
    if out is not None:
        curves.save(result, Path(out))
        save_page(result, Path(out), worst=gallery)
    return result


def evaluate_folds(
    params: Params,
    directories: Sequence[AnyPath],
    *,
    protocol: str | None = None,
    resamples: int = 1000,
    progress: Progress | None = None,
    watch: Watch | None = None,
) -> OutOfFold:
    """Score each run's test part with its model, and join them: every picture by unseen weights.

    Args:
        params: Protocol and the recall at which the reject score is chosen.
        directories: Runs, each with `split.json` and its model.
        protocol: In place of `params.evaluate.protocol`.
        resamples: For the bootstrap intervals.
        progress: Told pictures.
        watch: Shown each out-of-fold answer.

    Raises:
        DataError: A folder is no run, a picture is missing, or stands in two test parts.
    """
    from magtiles_seg.evaluate import folds
    from magtiles_seg.infer.segmenter import Segmenter

    return folds.evaluate_folds(
        folds.find_runs([Path(directory) for directory in directories]),
        {sample.id: sample for sample in samples_of(params)},
        open_model=partial(Segmenter, flips=params.evaluate.flips),
        protocol=protocol or params.evaluate.protocol,
        recall=params.evaluate.recall,
        false_reject=params.evaluate.false_reject,
        resamples=resamples,
        progress=progress,
        watch=watch,
    )
