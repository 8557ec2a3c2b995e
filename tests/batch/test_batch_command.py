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
