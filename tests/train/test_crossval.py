from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
import torch

from magtiles_seg.cli import main
from magtiles_seg.config import DataSplitParams, TrainParams
from magtiles_seg.dataset.samples import Sample, find_samples
from magtiles_seg.dataset.splits import Split
from magtiles_seg.dataset.synthetic import write_dataset
from magtiles_seg.errors import BackendUnavailableError, ConfigError, DataError, MagtilesError
from magtiles_seg.files import Lock
from magtiles_seg.train import crossval
from magtiles_seg.train.crossval import (
    Processes,
    _environment,
    runs_at_a_time,
    train_folds,
    write_splits,
)

PARAMS = DataSplitParams(folds=2)

SLEEPING = """
import sys
from magtiles_seg.cli import main
from magtiles_seg.train.crossval import Processes

SCRIPT = "import os, time; open({started!r}, 'w').write(str(os.getpid())); time.sleep(60)"
really = Processes.run
Processes.run = lambda self, _, *rest: really(self, [sys.executable, "-c", SCRIPT], *rest)
sys.exit(main())
"""
"""The command line, whose trainings sleep."""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("tiles"), tiles=24, seed=1)


@pytest.fixture(scope="module")
def samples(root: Path) -> tuple[Sample, ...]:
    return find_samples(root)


def test_write_splits_hold_every_picture_out_once(
    samples: tuple[Sample, ...], tmp_path: Path
) -> None:
    folders = write_splits(samples, PARAMS, tmp_path)
    assert [folder.name for folder in folders] == ["f0", "f1"]
    splits = [Split.from_json((folder / "split.json").read_text()) for folder in folders]
    tested = [name for split in splits for name in split.test]
    assert sorted(tested) == sorted(sample.id for sample in samples)
    assert write_splits(samples, PARAMS, tmp_path) == folders


def test_write_splits_over_other_splits_is_refused(
    samples: tuple[Sample, ...], tmp_path: Path
) -> None:
    (folder, *_) = write_splits(samples, PARAMS, tmp_path)
    before = (folder / "split.json").read_text()
    with pytest.raises(DataError, match=r"another split.*another --out"):
        write_splits(samples, DataSplitParams(folds=3), tmp_path)
    assert (folder / "split.json").read_text() == before


def test_write_splits_with_an_empty_part_writes_nothing(
    samples: tuple[Sample, ...], tmp_path: Path
) -> None:
    params = DataSplitParams(rule="random", folds=2, validation_fraction=0.01)
    with pytest.raises(DataError, match="fold 0 of 2 has no pictures in its validation part"):
        write_splits(samples, params, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_write_splits_of_a_rule_without_folds_is_refused(
    samples: tuple[Sample, ...], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"rule=P1 has no folds: take grouped"):
        write_splits(samples, DataSplitParams(rule="P1"), tmp_path)


def test_train_folds_without_cuda_starts_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(BackendUnavailableError, match=r"train\.device=cuda"):
        train_folds([tmp_path], TrainParams(device="cuda"), [])
    assert list(tmp_path.iterdir()) == []


def test_train_folds_that_fail_say_why_and_where(
    samples: tuple[Sample, ...], tmp_path: Path
) -> None:
    folders = write_splits(samples, PARAMS, tmp_path)
    words = ["--set", "train.epoch=1"]
    with pytest.raises(MagtilesError, match=r"f\d failed, exit code 2: .*train\.log"):
        train_folds(folders, TrainParams(device="cpu"), words, parallel=1)
    assert "did you mean 'train.epochs'" in (folders[0] / "train.log").read_text()


def test_processes_stop_ends_what_is_under_way_and_starts_no_more(tmp_path: Path) -> None:
    running = Processes()
    script = f"import time; open({str(tmp_path / 'started')!r}, 'w'); time.sleep(60)"

    job = threading.Thread(
        target=running.run, args=([sys.executable, "-c", script], os.environ, tmp_path / "log", "-")
    )
    job.start()
    while not (tmp_path / "started").exists():
        time.sleep(0.01)
    running.stop()
    job.join(timeout=20)
    assert not job.is_alive()
    later = [sys.executable, "-c", "raise SystemExit(3)"]
    assert not running.run(later, os.environ, tmp_path / "later", "-")


def test_runs_at_a_time_fit_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crossval, "available_cores", lambda: 16)
    assert runs_at_a_time(5, TrainParams(), "cuda") == 5
    assert runs_at_a_time(25, TrainParams(), "cuda") == 8
    assert runs_at_a_time(5, TrainParams(), "cpu") == 4
    assert runs_at_a_time(5, TrainParams(threads=8), "cpu") == 2
    assert runs_at_a_time(5, TrainParams(threads=32), "cpu") == 1


def test_environment_deals_gpus_and_cores_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crossval, "available_cores", lambda: 16)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
    single, pair = TrainParams(), TrainParams(devices=2)
    seen = [_environment("cuda", single, n, 5)["CUDA_VISIBLE_DEVICES"] for n in range(3)]
    assert seen == ["2", "5", "2"]
    assert _environment("cuda", pair, 1, 5)["CUDA_VISIBLE_DEVICES"] == "2,5"
    assert _environment("cpu", single, 0, 4)["OMP_NUM_THREADS"] == "4"


@pytest.mark.slow
def test_crossval_trains_the_folds_joins_them_and_leaves_finished_ones_alone(
    root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = [
        f"data_load.source={root}", "data_split.folds=2",
        "data_split.validation_fraction=0.5", "train.architecture=nano",
        "train.pretrained=false", "train.epochs=1", "train.pictures_per_epoch=8",
        "train.crop_px=64", "train.threads=1",
    ]  # fmt: skip
    words = ["crossval", "--out", "runs/T", "--device", "cpu", "--parallel", "2"]
    words += [word for setting in settings for word in ("--set", setting)]
    assert main(words) == 0
    assert "144 pictures of 24 tiles" in capsys.readouterr().out
    runs = tmp_path / "runs" / "T"
    assert (runs / "joined" / "metrics.json").is_file()
    models = [runs / fold / "model.safetensors" for fold in ("f0", "f1")]
    before = [model.stat().st_mtime_ns for model in models]
    assert main(words) == 0
    assert [model.stat().st_mtime_ns for model in models] == before


def test_crossval_in_a_folder_where_one_is_under_way_is_refused(
    root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "T").mkdir()
    with Lock(tmp_path / "T" / ".lock"):
        assert main(["crossval", "--out", "T", "--set", f"data_load.source={root}"]) == 2
    assert "another cross-validation in T is under way" in capsys.readouterr().err
    assert not list((tmp_path / "T").glob("f*"))


@pytest.mark.skipif(sys.platform == "win32", reason="Windows knows no SIGTERM")
def test_crossval_ended_by_sigterm_ends_its_folds(root: Path, tmp_path: Path) -> None:
    started = tmp_path / "started"
    code = SLEEPING.format(started=str(started))
    words = ["crossval", "--out", str(tmp_path / "T"), "--device", "cpu", "--parallel", "1"]
    words += ["--set", f"data_load.source={root}"]
    with subprocess.Popen([sys.executable, "-c", code, *words]) as process:
        while not started.exists() or not started.read_text():
            assert process.poll() is None
            time.sleep(0.01)
        process.terminate()
        assert process.wait(50) == 130
    assert not psutil.pid_exists(int(started.read_text()))


def test_crossval_from_one_model_for_all_folds_says_what_that_may_leak(
    root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = [f"data_load.source={root}", "data_split.folds=2", "train.start=missing.onnx"]
    words = ["crossval", "--out=-T", "--device", "cpu", "--parallel", "1"]  # an odd name, too
    assert main(words + [word for setting in settings for word in ("--set", setting)]) == 2
    said = capsys.readouterr().err
    assert "it knows what the folds hold out" in said
    assert "no model file at missing.onnx" in said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--protocol", "TT"), "There is no protocol 'TT'"),
        (("--parallel", "-1"), "--parallel is -1; expected 0 or more"),
        (("--triptychs", "-1"), "--triptychs is -1; expected 0 or more"),
    ],
)
def test_crossval_refuses_a_bad_option_before_it_reads_or_trains(
    words: tuple[str, str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)  # without a data set
    assert main(["crossval", *words]) == 2
    assert said in capsys.readouterr().err
