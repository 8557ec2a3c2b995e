from __future__ import annotations

import argparse
from pathlib import Path

import cv2
import numpy as np
import pytest

from magtiles_seg.commands.stream import add
from magtiles_seg.errors import ConfigError
from magtiles_seg.linescan.open import CameraOptions, _source, open_source


def parsed(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add(parser.add_subparsers())
    return parser.parse_args(["stream", *words])


@pytest.fixture
def folders(tmp_path: Path) -> list[str]:
    picture = np.random.default_rng(0).integers(0, 256, (60, 50), np.uint8)
    for name, part in (("left", picture[:, :30]), ("right", picture[:, 22:])):
        (tmp_path / name).mkdir()
        cv2.imwrite(str(tmp_path / name / "1.png"), part)
    cv2.imwrite(str(tmp_path / "whole.png"), picture)
    return [str(tmp_path / name) for name in ("left", "right", "whole.png")]


def test_sources_side_by_side_are_the_whole_web(folders: list[str]) -> None:
    left, right, whole = folders
    source = _source(parsed(left, right, "--overlap-px", "8"))
    assert source.width_px == 50
    rows = np.concatenate([block.rows for block in source])
    source.close()
    assert (rows == cv2.imread(whole, cv2.IMREAD_GRAYSCALE)).all()


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("--overlap-px", "8"), "needs several sources"),
        (("--camera-file", "a", "--camera-file", "b"), "2 settings files are given for 1 sources"),
        (("--width", "9"), "is no camera, and options for one are given"),
        (("--timeout-s", "9"), "is no camera, and options for one are given"),
    ],
)
def test_options_that_do_not_fit_the_source_are_config_error(
    folders: list[str], words: tuple[str, ...], reason: str
) -> None:
    with pytest.raises(ConfigError, match=reason):
        _source(parsed(folders[0], *words))


def test_camera_is_set_up_by_the_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pypylon")
    monkeypatch.setenv("PYLON_CAMEMU", "1")
    words = ["--width", "320", "--height", "8", "--pixel-format", "Mono12", "--exposure-us", "99"]
    source = _source(parsed("basler:", *words, "--trigger", "Software", "--feature", "GainRaw=200"))
    camera = source._camera  # type: ignore[attr-defined]
    got = camera.Width.Value, camera.Height.Value, camera.PixelFormat.Value, camera.GainRaw.Value
    assert got == (320, 8, "Mono12", 200)
    assert camera.ExposureTime.Value == pytest.approx(99)
    assert camera.TriggerMode.Value == "On"
    source.close()


def test_source_without_options_is_opened_as_before(folders: list[str]) -> None:
    assert open_source(folders[0], CameraOptions()).width_px == 30
