from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from magtiles_seg.cli import main
from magtiles_seg.errors import ConfigError
from magtiles_seg.linescan.open import open_source


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder of three pictures of one web."""
    web = np.random.default_rng(0).integers(0, 256, (150, 60), np.uint8)
    for index, part in enumerate(np.split(web, 3)):
        cv2.imwrite(str(tmp_path / f"{index}.png"), part)
    return tmp_path


def test_stream_of_a_folder_prints_defects_and_writes_files(
    folder: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = folder / "out"
    words = ["stream", str(folder), "--model", str(model), "--threshold", "0.01"]
    code = main(
        [*words, "--mm-per-px", "0.1", "--out", str(out), "--pictures", "--strip-rows", "32"]
    )
    printed = capsys.readouterr().out
    assert code == 1
    assert "150 lines inspected" in printed
    assert "0.0 mm uninspected" in printed
    found = [json.loads(line) for line in (out / "defects.jsonl").read_text().splitlines()]
    assert found
    assert len((out / "defects.csv").read_text().splitlines()) == len(found) + 1
    assert (out / "web_000000000.png").exists()


def test_stream_as_json_ends_with_the_report(
    folder: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["stream", str(folder), "--model", str(model), "--json", "--threshold", "1.0"]
    assert main([*words, "--line-rate", "100000"]) == 0
    (report,) = map(json.loads, capsys.readouterr().out.splitlines())
    assert (report["kind"], report["lines"], report["defects"]) == ("report", 150, 0)


def test_stream_with_pictures_but_no_folder_is_an_error(
    folder: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["stream", str(folder), "--model", str(model), "--pictures"]) == 2
    assert "add --out DIR" in capsys.readouterr().err


def test_synthetic_source_has_the_tiles_asked_for() -> None:
    source = open_source("synthetic:tiles=4,width=460")
    assert source.width_px == 460
    assert sum(len(block.rows) for block in source) == 2 * 300


def test_synthetic_option_unknown_is_config_error() -> None:
    with pytest.raises(ConfigError, match="option 'tile=4' is unknown"):
        open_source("synthetic:tile=4")
