from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from magtiles_seg.config import RENAMED, TrainParams
from magtiles_seg.dataset.samples import Sample, find_samples
from magtiles_seg.dataset.splits import taken_over
from magtiles_seg.dataset.synthetic import write_dataset
from magtiles_seg.errors import DataError
from magtiles_seg.labels import LABELS
from magtiles_seg.model.checkpoint import CHECKPOINT, STATE, read_tensors, write_tensors
from magtiles_seg.model.warmstart import training_of
from magtiles_seg.train.loop import train
from magtiles_seg.train.state import (
    Fingerprints,
    RunState,
    fingerprints,
    forget_other_run,
    identity,
)

PARAMS = TrainParams(
    architecture="nano",
    pretrained=False,
    epochs=3,
    pictures_per_epoch=4,
    batch_size=2,
    crop_px=32,
    threads=1,
)
FORMER = {
    now.removeprefix("train."): former.removeprefix("train.") for former, now in RENAMED.items()
}
Parts = tuple[list[Sample], list[Sample]]


class StoppedError(Exception):
    """Stands for a kill after the first epoch."""


class StopAfterOneEpoch:
    def log_metric(self, name: str, val: float) -> None: ...

    def log_image(self, name: str, val: object) -> None: ...

    def next_step(self) -> None:
        raise StoppedError


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Parts:
    samples = find_samples(write_dataset(tmp_path_factory.mktemp("tiles"), tiles=4))
    groups = sorted({sample.group for sample in samples})
    chosen = [sample for sample in samples if sample.group in groups[:2]]
    return chosen[::3], [sample for sample in samples if sample not in chosen][::6]


@pytest.fixture
def stopped(parts: Parts, tmp_path: Path) -> Path:
    """Path of a run that was stopped after the first of its epochs."""
    with pytest.raises(StoppedError):
        train(*parts, PARAMS, tmp_path, logger=StopAfterOneEpoch())
    return tmp_path


def test_stopped_run_of_the_same_arguments_goes_on(parts: Parts, stopped: Path) -> None:
    state = (stopped / STATE).read_bytes()
    assert not forget_other_run(*parts, PARAMS, stopped)
    assert (stopped / STATE).read_bytes() == state
    assert (stopped / CHECKPOINT).exists()


def test_stopped_run_with_former_names_of_parameters_and_tensors_goes_on(
    parts: Parts, stopped: Path
) -> None:
    for name, key in ((STATE, "identity"), (CHECKPOINT, "training")):
        tensors, meta = read_tensors(stopped / name)
        meta[key] = {FORMER.get(param, param): value for param, value in meta[key].items()}
        former = {
            name.replace("class_head.", "kind_head."): value for name, value in tensors.items()
        }
        write_tensors(stopped / name, former, meta)
    assert not forget_other_run(*parts, PARAMS, stopped)
    train(*parts, PARAMS, stopped)
    assert read_tensors(stopped / STATE)[1]["epoch"] == PARAMS.epochs


def test_stopped_run_of_other_parameters_is_forgotten(parts: Parts, stopped: Path) -> None:
    assert forget_other_run(*parts, replace(PARAMS, learning_rate=0.5), stopped)
    assert list(stopped.iterdir()) == []


def test_finished_run_of_the_same_arguments_stays(parts: Parts, tmp_path: Path) -> None:
    checkpoint = train(*parts, PARAMS, tmp_path)
    written = checkpoint.read_bytes()
    assert not forget_other_run(*parts, PARAMS, tmp_path)
    assert train(*parts, PARAMS, tmp_path).read_bytes() == written


def test_run_whose_fingerprints_are_handed_on_hashes_nothing(
    parts: Parts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = Fingerprints("c" * 64, "d" * 64)
    for name in ("code_sha256", "data_sha256"):
        monkeypatch.delattr(f"magtiles_seg.train.state.{name}")
    assert forget_other_run(*parts, PARAMS, tmp_path, known=known)
    train(*parts, PARAMS, tmp_path, known=known)
    assert not forget_other_run(*parts, PARAMS, tmp_path, known=known)
    assert forget_other_run(*parts, PARAMS, tmp_path, known=known._replace(data_sha256="e" * 64))


def test_finished_run_without_its_state_stays_as_after_a_pull(parts: Parts, tmp_path: Path) -> None:
    params = replace(PARAMS, epochs=1)
    checkpoint = train(*parts, params, tmp_path)
    written = checkpoint.read_bytes()
    (tmp_path / STATE).unlink()
    assert not forget_other_run(*parts, params, tmp_path)
    assert train(*parts, params, tmp_path).read_bytes() == written
    assert not (tmp_path / STATE).exists()
    assert forget_other_run(*parts, replace(params, learning_rate=0.5), tmp_path)
    assert not checkpoint.exists()


def test_finished_run_without_its_state_and_of_other_code_is_forgotten(
    parts: Parts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = replace(PARAMS, epochs=1)
    checkpoint = train(*parts, params, tmp_path)
    (tmp_path / STATE).unlink()
    monkeypatch.setattr("magtiles_seg.train.state.code_sha256", lambda _: "0" * 64)
    assert forget_other_run(*parts, params, tmp_path)
    assert not checkpoint.exists()


def test_stopped_run_without_its_state_is_forgotten(parts: Parts, stopped: Path) -> None:
    (stopped / STATE).unlink()
    assert forget_other_run(*parts, PARAMS, stopped)
    assert list(stopped.iterdir()) == []


def test_run_killed_before_its_checkpoint_was_sealed_seals_it(parts: Parts, tmp_path: Path) -> None:
    params = replace(PARAMS, epochs=1)
    checkpoint = train(*parts, params, tmp_path)
    sealed = checkpoint.read_bytes()
    tensors, meta = read_tensors(checkpoint)
    del meta["finished"]
    write_tensors(checkpoint, tensors, meta)
    assert not forget_other_run(*parts, params, tmp_path)
    assert train(*parts, params, tmp_path).read_bytes() == sealed


@pytest.mark.parametrize("changed", ["code_sha256", "data_sha256"])
def test_finished_run_of_other_code_or_pictures_is_forgotten(
    parts: Parts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: str
) -> None:
    train(*parts, replace(PARAMS, epochs=1), tmp_path)
    monkeypatch.setattr(f"magtiles_seg.train.state.{changed}", lambda _: "0" * 64)
    assert forget_other_run(*parts, replace(PARAMS, epochs=1), tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("patience", "best_epoch", "kept_epoch", "forgotten"),
    [
        (1, 0, 0, False),
        (2, 0, 0, False),
        (2, 1, 0, True),
        (2, 0, 1, True),
        (2, 0, 2, False),  # killed after the checkpoint of epoch 2, before its state
        (2, 0, 3, True),
    ],
)
def test_run_that_has_the_checkpoint_of_another_epoch_is_forgotten(
    parts: Parts,
    tmp_path: Path,
    patience: int,
    best_epoch: int,
    kept_epoch: int,
    forgotten: bool,
) -> None:
    params = replace(PARAMS, patience=patience)
    expected = identity(*parts, params, LABELS)
    state = {"identity": expected, "epoch": 2, "best_epoch": best_epoch}
    state |= zip(("code_sha256", "data_sha256"), fingerprints(*parts), strict=True)
    write_tensors(tmp_path / STATE, {}, state)
    write_tensors(tmp_path / CHECKPOINT, {}, {"training": expected, "epoch": kept_epoch})
    assert forget_other_run(*parts, params, tmp_path) == forgotten


def test_run_whose_checkpoint_is_gone_is_forgotten(parts: Parts, stopped: Path) -> None:
    (stopped / CHECKPOINT).unlink()
    assert forget_other_run(*parts, PARAMS, stopped)
    assert not (stopped / STATE).exists()


def test_run_whose_checkpoint_another_run_wrote_is_forgotten(
    parts: Parts, stopped: Path, checkpoint: Path
) -> None:
    (stopped / CHECKPOINT).write_bytes(checkpoint.read_bytes())
    assert forget_other_run(*parts, PARAMS, stopped)
    assert not (stopped / STATE).exists()


@pytest.mark.parametrize(
    ("epoch", "patience", "finished"),
    [(3, 2, False), (4, 2, True), (9, 0, False), (10, 0, True)],
)
def test_run_state_is_finished_by_its_last_epoch_or_after_patience_epochs_without_a_better(
    epoch: int, patience: int, finished: bool
) -> None:
    state = RunState(identity={}, epoch=epoch, best_epoch=1)
    assert state.finished(TrainParams(epochs=10, patience=patience)) == finished


@pytest.mark.parametrize("part", [0, 1])
def test_identity_of_other_pictures_in_either_part_is_another(parts: Parts, part: int) -> None:
    training, validation = (samples[index == part :] for index, samples in enumerate(parts))
    assert identity(training, validation, PARAMS, LABELS) != identity(*parts, PARAMS, LABELS)


def test_checkpoint_of_another_run_is_not_written_over_where_its_state_is_gone(
    parts: Parts, tmp_path: Path
) -> None:
    params = replace(PARAMS, epochs=1)
    checkpoint = train(*parts, params, tmp_path)
    written = checkpoint.read_bytes()
    (tmp_path / STATE).unlink()
    with pytest.raises(DataError, match=r"other learning_rate: .*another output .*--restart"):
        train(*parts, replace(params, learning_rate=0.5), tmp_path)
    assert checkpoint.read_bytes() == written


def test_other_run_is_named_by_a_parameter_that_it_alone_has(parts: Parts, tmp_path: Path) -> None:
    params = replace(PARAMS, epochs=1)
    train(*parts, replace(params, accumulate=2), tmp_path)
    with pytest.raises(DataError, match="is of a run with other accumulate: "):
        train(*parts, params, tmp_path)


def test_other_run_of_other_pictures_is_named_in_words(parts: Parts, tmp_path: Path) -> None:
    train(*parts, replace(PARAMS, epochs=1), tmp_path)
    with pytest.raises(DataError, match="is of a run with other pictures to train on: give"):
        train(parts[0][1:], parts[1], replace(PARAMS, epochs=1), tmp_path)


def test_empty_folder_has_nothing_to_go_on(parts: Parts, tmp_path: Path) -> None:
    assert forget_other_run(*parts, PARAMS, tmp_path)


def changed(parts: Parts, folder: Path) -> Parts:
    """Return the same parts by the same names, the first picture of them mirrored."""
    first, *others = parts[0]
    with Image.open(first.image_path) as picture:
        Image.fromarray(np.fliplr(np.asarray(picture))).save(folder / "mirrored.png")
    return [replace(first, image_path=folder / "mirrored.png"), *others], parts[1]


def test_stopped_run_whose_picture_was_changed_does_not_go_on(
    parts: Parts, stopped: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    others = changed(parts, tmp_path_factory.mktemp("changed"))
    with pytest.raises(DataError, match=r"other pictures or masks of the same names.*--restart"):
        train(*others, PARAMS, stopped)
    assert forget_other_run(*others, PARAMS, stopped)
    train(*others, replace(PARAMS, epochs=1), stopped)


def test_finished_run_whose_picture_was_changed_is_not_taken_for_the_answer(
    parts: Parts, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    params = replace(PARAMS, epochs=1)
    train(*parts, params, tmp_path)
    (tmp_path / STATE).unlink()
    with pytest.raises(DataError, match=r"other pictures or masks of the same names"):
        train(*changed(parts, tmp_path_factory.mktemp("changed")), params, tmp_path)


def test_run_tells_what_the_models_that_it_took_over_were_trained_on(
    parts: Parts, tmp_path: Path
) -> None:
    params = replace(PARAMS, epochs=1)
    first = train(*parts, params, tmp_path / "first")
    own = read_tensors(first)[1]["training"]["training_sha256"]
    more = replace(params, start=str(first), teacher=str(first))
    second = train(parts[0][1:], parts[1], more, tmp_path / "second")
    assert read_tensors(second)[1]["ancestors"] == [own]
    third = train(*parts, replace(params, start=str(second)), tmp_path / "third")
    meta = read_tensors(third)[1]
    assert meta["ancestors"] == sorted(
        [own, read_tensors(second)[1]["training"]["training_sha256"]]
    )
    assert meta["training"]["training_sha256"] == own  # so it is no other part
    assert taken_over(training_of(third)) == (
        read_tensors(second)[1]["training"]["training_sha256"],
    )
    assert taken_over({"start": "x" * 64}) == ("",)
    assert taken_over({}) == ()
