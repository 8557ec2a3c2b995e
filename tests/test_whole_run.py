from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnxruntime
import pytest

pytest.importorskip("torch")
pytest.importorskip("dvclive")
pytest.importorskip("onnxscript")

from magtiles_seg.cli import main as magtiles
from magtiles_seg.train.crossval import Processes

SCRIPT = Path(__file__).parents[1] / "examples" / "experiments" / "whole_run.py"
SETTINGS = (
    "data_load.checksums=null", "data_split.folds=2", "data_split.validation_fraction=0.5",
    "train.pretrained=false", "train.epochs=1", "train.device=cpu",
    "train.pictures_per_epoch=8", "train.crop_px=64", "train.threads=1",
)  # fmt: skip
WORDS = ["synthetic:tiles=10,seed=1", "--out", "whole", "--seeds", "0", "1", "--parallel", "1"]
WORDS += [word for setting in SETTINGS for word in ("--set", setting)]
RUNS = ("f0", "f1", "all")
STEPS = [
    "data", *(f"train seed{seed} f{fold}" for seed in (0, 1) for fold in (0, 1)),
    "train all", "train all-other",
    *(f"train {pupil} {run}" for run in RUNS for pupil in ("small", "small-other", "nano")),
    *(f"join {run}" for run in RUNS),
    *(f"{verb} {run}" for verb in ("evaluate", "tiles") for run in ("seed0", "seed1", "ensemble")),
    "bundle",
]  # fmt: skip


class InThisProcess:
    """Stands in for the processes: each step is called here, and counted; the time is up at one."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[str] = []
        self.up_at: int | None = None
        monkeypatch.setattr(Processes, "run", lambda _, *words: self.run(*words))

    def run(
        self, command: Sequence[str], environment: Mapping[str, str], log: Path, title: str
    ) -> bool:
        assert command[:3] == [sys.executable, "-m", "magtiles_seg"]
        assert environment["OMP_NUM_THREADS"].isdecimal()
        assert log.parent.is_dir()
        if len(self.calls) == self.up_at:
            return False
        self.calls.append(title)
        assert magtiles(list(command[3:])) == 0, title
        return True


def whole_run(monkeypatch: pytest.MonkeyPatch, *more: str) -> int:
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *WORDS, *more])
    main = runpy.run_path(str(SCRIPT))["main"]
    code: int = main()
    return code


def figures(name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(Path("whole/figures", name).read_text(encoding="utf-8"))
    return content


@pytest.fixture(autouse=True)
def _in_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_whole_run_whose_time_is_up_goes_on_and_gives_every_figure_and_the_model(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    steps = InThisProcess(monkeypatch)
    steps.up_at = 3
    assert whole_run(monkeypatch) == 3
    assert "start the same line again" in capsys.readouterr().out
    steps.up_at = None
    assert whole_run(monkeypatch) == 0
    assert steps.calls == STEPS
    assert figures("T-seed1.json")["tiles"] == 10
    assert {"iou", "auroc"} <= figures("T-seed0.json")["figures"].keys()
    assert "tile_auroc" in figures("T-tile-seed0.json")["figures"]
    spread = figures("T-seeds.json")
    assert spread["runs"].keys() == {"seed0", "seed1"}
    both = [spread["runs"][seed]["auroc"] for seed in ("seed0", "seed1")]
    assert both[0] != both[1]
    assert spread["mean"]["auroc"] == pytest.approx(sum(both) / 2)
    assert figures("training.json")["crops_per_s"] > 0
    session = onnxruntime.InferenceSession("whole/bundle.onnx")
    card = json.loads(session.get_modelmeta().custom_metadata_map["magtiles_seg.card"])
    assert card["architecture"] == "lite0+lite0+small+small+nano"
    assert card["training"]["shares"] == [0.35, 0.35, 0.1, 0.1, 0.1]
    seeds = [member["seed"] for member in card["training"]["members"]]
    assert seeds == [0, 1, 0, 1, 0]
    assert whole_run(monkeypatch) == 0
    assert steps.calls == STEPS  # nothing is done twice


def test_whole_run_with_a_step_that_fails_says_which_and_where(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert whole_run(monkeypatch, "--set", "data_load.layout=coco") == 2
    assert "data failed, exit code 2" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        (("--seeds", "0", "0"), "different whole numbers, at least 0, got 0 0"),
        (("--seeds", "1", "-1"), "at least 0, got 1 -1"),
        (("--parallel", "-1"), "--parallel: expected at least 0, got -1"),
        (("--minutes", "0"), "--minutes: expected more than 0, got 0.0"),
        (("--minutes", "nan"), "--minutes: expected more than 0, got nan"),
    ],
)
def test_whole_run_refuses_numbers_that_say_nothing_before_it_begins(
    more: tuple[str, ...],
    reason: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit, match="2"):
        whole_run(monkeypatch, *more)
    assert reason in capsys.readouterr().err
    assert not Path("whole").exists()


def test_whole_run_says_what_is_wrong_with_parameters_folder_and_record(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert whole_run(monkeypatch, "--set", "train.epochs=abc") == 2
    assert "train.epochs: expected int" in capsys.readouterr().err
    Path("taken").touch()
    assert whole_run(monkeypatch, "--out", "taken") == 2
    assert "taken" in capsys.readouterr().err
    Path("whole").mkdir()
    Path("whole/steps.json").write_text("{", encoding="utf-8")
    assert whole_run(monkeypatch) == 2
    assert "steps.json is damaged: remove it" in capsys.readouterr().err


@pytest.mark.endurance
def test_whole_run_in_calls_of_half_a_minute_comes_to_its_end(tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), *WORDS, "--parallel", "2", "--minutes", "0.5"]
    codes: list[int] = []
    while (not codes or codes[-1] == 3) and len(codes) < 20:
        environment = {**os.environ, "PYTHONPATH": str(SCRIPT.parents[2])}
        codes.append(subprocess.run(command, cwd=tmp_path, env=environment, check=False).returncode)
    assert codes[-1] == 0
    assert len(codes) > 1
    assert (tmp_path / "whole/bundle.onnx").is_file()
