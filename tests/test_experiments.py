"""examples/experiments: a mistake is said in one line, and nothing is left out silently."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import pytest

from magtiles_seg.dataset.synthetic import write_dataset

FOLDER = Path(__file__).parents[1] / "examples" / "experiments"
HEAD = "picture,class,tile,tp,fp,fn,tn,score,verdict"
NAMES = [f"01_2009160713{second}_{place}_270_crop_1"
         for place in (395000, 430000, 585000) for second in (10, 20, 30, 40)]  # fmt: skip


@pytest.fixture(autouse=True)
def _in_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def call(monkeypatch: pytest.MonkeyPatch, script: str, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", [script, *words])
    main = runpy.run_path(str(FOLDER / script))["main"]
    code: int = main()
    return code


def write_pictures(names: list[str]) -> None:
    rows = [
        f"{name},{('pitting', 'free')[index % 2]},0,{50 - index if index % 2 == 0 else 0},3,"
        f"{9 if index % 2 == 0 else 0},900,0.{9 - index % 3},reject"
        for index, name in enumerate(names)
    ]
    Path("pictures.csv").write_text("\n".join([HEAD, *rows]) + "\n", encoding="utf-8")


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("new-class", "data", "out"), "new-class needs --old"),
        (("new-class", "data", "out", "--old", "data", "--labels", "background,pitting"),
         "--labels: expected background,blowhole"),
        (("few", "data", "out", "--old", "data"), "--old and --start are of new-class"),
        (("few", "data", "out", "--count", "0"), "different even numbers, got 0"),
        (("few", "data", "out", "--count", "31"), "different even numbers, got 31"),
        (("few", "data", "out", "--count", "10", "10"), "different even numbers, got 10 10"),
        (("few", "data", "out", "--test", "0"), "--test: expected at least 2, got 0"),
    ],
)  # fmt: skip
def test_loop_figures_refuses_what_it_cannot_run(
    words: tuple[str, ...],
    reason: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("dvclive")
    with pytest.raises(SystemExit, match="2"):
        call(monkeypatch, "loop_figures.py", *words)
    assert reason in capsys.readouterr().err


def test_loop_figures_says_that_there_are_too_few_pictures_or_none(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("dvclive")
    assert call(monkeypatch, "loop_figures.py", "few", "nowhere", "out") == 2
    assert "no directory nowhere" in capsys.readouterr().err
    write_dataset(Path("data"), tiles=6, seed=0)
    assert call(monkeypatch, "loop_figures.py", "few", "data", "out", "--count", "1000") == 2
    assert "--count 1000: expected 500 defective pictures" in capsys.readouterr().err
    assert not Path("out").exists()


def test_bsdata_figures_print_a_row_for_each_variant(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_pictures(NAMES)
    images = [{"filename": f"{name}.png", "train_test_split": "test"} for name in NAMES[:6]]
    Path("image_data.json").write_text(json.dumps({"images": images}), encoding="utf-8")
    words = ("pictures.csv", "--leaked", "395000_270", "--published", "image_data.json")
    assert call(monkeypatch, "bsdata_figures.py", *words) == 0
    rows = capsys.readouterr().out.splitlines()[2:]
    counts = [row.split("|")[2].strip() for row in rows]
    assert counts[:2] == ["12", "8"]
    assert counts[-1] == "6"


def test_bsdata_figures_refuse_names_that_are_of_no_picture(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_pictures([*NAMES[:11], "tile_7"])
    assert call(monkeypatch, "bsdata_figures.py", "pictures.csv") == 2
    assert "1 of 12 pictures have no name of BSData, such as tile_7" in capsys.readouterr().err
    write_pictures(NAMES)
    assert call(monkeypatch, "bsdata_figures.py", "pictures.csv", "--leaked", "1_2") == 2
    assert "--leaked: no scored picture is of 1_2" in capsys.readouterr().err
    for content, reason in (("{}", "no image_data.json"), ('{"images": []}', "none of its test")):
        Path("image_data.json").write_text(content, encoding="utf-8")
        words = ("pictures.csv", "--published", "image_data.json")
        assert call(monkeypatch, "bsdata_figures.py", *words) == 2
        assert reason in capsys.readouterr().err
    assert call(monkeypatch, "bsdata_figures.py", "nowhere.csv") == 2
    assert "nowhere.csv" in capsys.readouterr().err


@pytest.mark.parametrize("script", ["bsdata_figures.py", "loop_figures.py", "whole_run.py"])
def test_help_of_an_experiment_says_what_it_does(
    script: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("dvclive")
    with pytest.raises(SystemExit, match="0"):
        call(monkeypatch, script, "--help")
    assert f"python examples/experiments/{script}" in capsys.readouterr().out
