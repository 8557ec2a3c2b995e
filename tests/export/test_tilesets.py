from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from magtiles_seg.dataset.samples import Sample
from magtiles_seg.errors import DataError
from magtiles_seg.export.parity import TileSet, halves, real_tiles, synthetic_tiles
from magtiles_seg.labels import FREE, LABELS


def sample(folder: Path, name: str, label: str, size: int = 40, group: int = -1) -> Sample:
    path = folder / f"{name}.png"
    Image.fromarray(np.full((size, size), 99, np.uint8)).save(path)
    return Sample(name, label, path, None, group)


def test_real_tiles_are_balanced_and_the_same_each_time(tmp_path: Path) -> None:
    samples = [sample(tmp_path, f"f{index}", FREE) for index in range(9)]
    samples += [sample(tmp_path, f"c{index}", "crack") for index in range(2)]
    tiles = real_tiles(samples, 4)
    assert tiles.classes == ("crack",) * 2 + (FREE,) * 4
    assert tiles.classes == real_tiles(samples, 4).classes
    assert str(tiles) == "6 real tiles"


def test_real_tiles_leave_out_pictures_too_small_for_a_model(tmp_path: Path) -> None:
    small, large = sample(tmp_path, "a", FREE, size=31), sample(tmp_path, "b", FREE)
    assert len(real_tiles([small, large], 5).pictures) == 1
    with pytest.raises(DataError, match="no tile to compare on: expected pictures of at least 32"):
        real_tiles([small], 5)


def test_synthetic_tiles_show_every_class_and_none_is_in_both_sets() -> None:
    proof, for_int8 = synthetic_tiles(1), synthetic_tiles(1, for_int8=True)
    assert proof.classes == (FREE, *LABELS[1:])
    assert not {a.tobytes() for a in proof.pictures} & {b.tobytes() for b in for_int8.pictures}


def test_halves_share_no_physical_tile_and_each_class(tmp_path: Path) -> None:
    labels = (FREE, FREE, "crack", "crack", FREE, "fray")
    samples = [
        sample(tmp_path, f"{label}{group}{index}", label, group=group)
        for group, label in enumerate(labels)
        for index in range(3)
    ]
    first, second = halves(samples)
    assert not {entry.group for entry in first} & {entry.group for entry in second}
    assert len(first) + len(second) == len(samples)
    for label in (FREE, "crack"):
        assert label in {entry.label for entry in first} & {entry.label for entry in second}


def test_within_mirrors_and_cuts_to_the_bounds() -> None:
    picture = np.arange(40 * 50, dtype=np.uint8).reshape(40, 50)
    tiles = TileSet(pictures=(picture,), classes=(FREE,), origin="synthetic")
    fitted = tiles.within((64, 32), (99, 48)).pictures[0]
    assert fitted.shape == (64, 48)
    assert (fitted[:40] == picture[:, :48]).all()
    assert (fitted[40] == picture[39, :48]).all()
