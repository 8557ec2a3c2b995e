from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from magtiles_seg.cli import main
from magtiles_seg.commands.batch import describe


def test_describe_gives_rate_time_left_and_errors() -> None:
    assert describe(300, 7_500, 2, 200, 100.0) == (
        "300 of 7,500 pictures, 2.0 pictures/s, 1:00:00 left, 2 with an error"
    )
    assert describe(5, 10, 0, 0, 0.0) == "5 of 10 pictures"


def test_batch_of_a_source_that_is_not_there_says_so(
    capsys: pytest.CaptureFixture[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("batch")
    assert main(["batch", str(folder / "none"), "--out", str(folder / "out")]) == 2
    assert "there is no source" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["list", "folder"])
def test_batch_exits_2_only_where_no_picture_could_be_segmented(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, kind: str
) -> None:
    source = tmp_path / "shots"
    source.mkdir()
    (source / "bad.png").write_text("no picture", encoding="utf-8")
    words = [str(source), "--workers", "1"]
    if kind == "list":
        words[0] = str(tmp_path / "list.txt")
        Path(words[0]).write_text("shots/bad.png\nshots/none.png\n", encoding="utf-8")
    assert main(["batch", *words, "--out", str(tmp_path / "out")]) == 2
    assert "no picture could be segmented; the column 'error'" in capsys.readouterr().err
    assert main(["batch", *words, "--out", str(tmp_path / "out")]) == 2  # which is finished
    cv2.imwrite(str(source / "none.png"), np.zeros((64, 64), np.uint8))
    assert main(["batch", *words, "--out", str(tmp_path / "other")]) == 0


@pytest.mark.parametrize("pattern", [None, "(light)"])
def test_batch_that_is_refused_leaves_no_folder(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, pattern: str | None
) -> None:
    shots, out = tmp_path / "shots", tmp_path / "new" / "out"
    shots.mkdir()
    if pattern is not None:
        cv2.imwrite(str(shots / "tile.png"), np.zeros((64, 64), np.uint8))
    words = [] if pattern is None else ["--group-by", pattern]
    assert main(["batch", str(shots), "--out", str(out), *words]) == 2
    assert capsys.readouterr().err
    assert not out.parent.exists()
    out.mkdir(parents=True)
    assert main(["batch", str(shots), "--out", str(out), *words]) == 2
    assert not list(out.iterdir())


def test_batch_help_names_the_engines(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["batch", "--help"])
    assert "{local,ray}" in capsys.readouterr().out


def test_batch_takes_the_backend_that_is_asked_for(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "shots").mkdir()
    cv2.imwrite(str(tmp_path / "shots/tile.png"), np.zeros((64, 64), np.uint8))
    words = ["--out", str(tmp_path / "rows"), "--workers", "1", "--backend", "eager"]
    assert main(["batch", str(tmp_path / "shots"), *words]) == 2
    assert "eager" in capsys.readouterr().err


@pytest.mark.parametrize("theirs", ["listing/mine.txt", "listing.new/mine.txt", "parts/mine.txt"])
def test_batch_keeps_what_is_of_no_run(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, theirs: str
) -> None:
    shots, path = tmp_path / "shots", tmp_path / "out" / theirs
    shots.mkdir()
    path.parent.mkdir(parents=True)
    path.write_text("mine", encoding="utf-8")
    cv2.imwrite(str(shots / "tile.png"), np.zeros((64, 64), np.uint8))
    assert main(["batch", str(shots), "--out", str(tmp_path / "out")]) == 2
    assert f"has no run.json, but holds {theirs}" in capsys.readouterr().err
    assert path.read_text(encoding="utf-8") == "mine"
    assert [file for file in (tmp_path / "out").rglob("*") if file.is_file()] == [path]
