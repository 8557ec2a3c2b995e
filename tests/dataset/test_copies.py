from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from magtiles_seg import cli
from magtiles_seg.dataset.copies import find_copies
from magtiles_seg.dataset.synthetic import synthetic_tile


def write(folder: Path, name: str, pixels: NDArray[np.uint8]) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / name
    cv2.imwrite(str(path), pixels)
    return path


def tile(seed: int) -> NDArray[np.uint8]:
    return synthetic_tile(seed, size_hw=(64, 64)).image


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("quarters", [0, 1, 2, 3])
def test_find_copies_knows_a_turned_lighter_copy_saved_as_jpeg(
    tmp_path: Path, quarters: int, mirrored: bool
) -> None:
    turned = np.rot90(tile(1), quarters)
    turned = np.ascontiguousarray(turned[:, ::-1] if mirrored else turned)
    lighter = np.clip(turned.astype(int) + 8, 0, 255).astype(np.uint8)
    paths = [
        write(tmp_path, "a.png", tile(1)),
        write(tmp_path, "b.png", tile(2)),
        write(tmp_path, "c.jpg", lighter),
    ]
    assert find_copies(paths) == [0, 1, 0]


def test_find_copies_of_shifted_blank_or_cropped_pictures_finds_none(tmp_path: Path) -> None:
    surface = synthetic_tile(1, size_hw=(80, 80)).image
    paths = [
        write(tmp_path, "a.png", surface[:64, :64]),
        write(tmp_path, "b.png", surface[9:73, 9:73]),
        write(tmp_path, "c.png", surface[:64, :60]),
        write(tmp_path, "d.png", np.full((64, 64), 90, np.uint8)),
        write(tmp_path, "e.png", np.full((64, 64), 91, np.uint8)),
    ]
    assert find_copies(paths) == [0, 1, 2, 3, 4]
    assert find_copies([]) == []


def test_check_copies_counts_the_test_pictures_that_are_turned_copies(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed in range(3):
        write(tmp_path / "train", f"{seed}.png", tile(seed))
    for seed in (1, 2, 7, 8):
        write(tmp_path / "test", f"{seed}.png", np.ascontiguousarray(np.rot90(tile(seed))))
    words = ["data", "check", "--train", str(tmp_path / "train"), "--test", str(tmp_path / "test")]
    assert cli.main([*words, "--copies"]) == 1
    assert "test pictures with a tile-mate in train: 2 (50.0%)" in capsys.readouterr().out
