from __future__ import annotations

import hashlib
import re
from pathlib import Path

import cv2
import numpy as np
import pytest

from magtiles_seg.dataset.samples import find_samples, load_image, load_mask
from magtiles_seg.dataset.synthetic import (
    DEFECTS,
    EXPOSURES,
    read_source,
    synthetic_tile,
    write_dataset,
)
from magtiles_seg.errors import ConfigError, DataError
from magtiles_seg.labels import FREE

# The public masks by class, widened: (smallest area_px, largest area_px, largest fraction).
_AREAS = {
    "blowhole": (25, 400, 0.01),
    "break": (50, 20_000, 0.23),
    "crack": (100, 2_500, 0.06),
    "fray": (150, 70_000, 0.45),
    "uneven": (1_500, 90_000, 0.55),
}
_SEEDS = range(12)


@pytest.mark.parametrize("defect", [None, *DEFECTS])
def test_synthetic_tile_same_arguments_same_pixels(defect: str | None) -> None:
    first = synthetic_tile(5, defect=defect, exposure=2)
    second = synthetic_tile(5, defect=defect, exposure=2)
    np.testing.assert_array_equal(first.image, second.image)
    np.testing.assert_array_equal(first.mask, second.mask)


def test_synthetic_tile_other_seed_other_picture() -> None:
    pictures = {synthetic_tile(seed, size_hw=(96, 80)).image.tobytes() for seed in range(8)}
    assert len(pictures) == 8


@pytest.mark.parametrize("defect", [None, *DEFECTS])
def test_mask_is_empty_only_without_defect(defect: str | None) -> None:
    for seed in _SEEDS:
        tile = synthetic_tile(seed, defect=defect)
        assert tile.label == (defect or FREE)
        assert tile.image.dtype == tile.mask.dtype == np.uint8
        assert tile.image.shape == tile.mask.shape
        assert set(np.unique(tile.mask)) == ({0} if defect is None else {0, 1})


@pytest.mark.parametrize("defect", DEFECTS)
def test_defect_changes_pixels_only_inside_mask_and_soft_rim(defect: str) -> None:
    rim = np.ones((7, 7), np.uint8)
    for seed in _SEEDS:
        tile = synthetic_tile(seed, defect=defect, exposure=4)
        sound = synthetic_tile(seed, exposure=4)
        change = np.abs(tile.image.astype(int) - sound.image)
        assert change[cv2.dilate(tile.mask, rim) == 0].max(initial=0) == 0
        assert change[tile.mask == 1].mean() > 4, f"seed {seed}: a defect that nobody sees"


@pytest.mark.parametrize("defect", DEFECTS)
def test_mask_is_tight_around_the_change(defect: str) -> None:
    touched = total = 0
    for seed in _SEEDS:
        tile = synthetic_tile(seed, defect=defect, exposure=4)
        sound = synthetic_tile(seed, exposure=4)
        inside = tile.mask == 1
        touched += int((tile.image != sound.image)[inside].sum())
        total += int(inside.sum())
    assert touched / total > 0.85


@pytest.mark.parametrize("defect", DEFECTS)
def test_defect_area_lies_in_the_range_of_the_real_class(defect: str) -> None:
    low_px, high_px, high_fraction = _AREAS[defect]
    for seed in range(25):
        mask = synthetic_tile(seed, defect=defect).mask
        assert low_px <= int(mask.sum()) <= high_px, f"seed {seed}"
        assert mask.mean() <= high_fraction, f"seed {seed}"


@pytest.mark.parametrize("defect", DEFECTS)
def test_exposures_share_geometry_and_mask_and_grow_brighter(defect: str) -> None:
    tiles = [synthetic_tile(3, defect=defect, exposure=exposure) for exposure in EXPOSURES]
    for tile in tiles[1:]:
        np.testing.assert_array_equal(tile.mask, tiles[0].mask)
        likeness = np.corrcoef(tile.image.ravel(), tiles[0].image.ravel())[0, 1]
        assert 0.9 < likeness < 0.9999
    means = [float(tile.image.mean()) for tile in tiles]
    assert means == sorted(means)
    assert means[-1] > 1.8 * means[0]


def test_sound_tiles_have_the_size_and_texture_of_the_real_ones() -> None:
    deviations, along, across = [], [], []
    for seed in range(24):
        image = synthetic_tile(seed, exposure=4).image.astype(np.float32)
        h, w = image.shape
        assert 222 <= h <= 403
        assert 103 <= w <= 632
        relative = (image / cv2.GaussianBlur(image, (0, 0), 6) - 1)[
            h // 6 : -h // 6, w // 6 : -w // 6
        ]
        relative -= relative.mean()
        variance = float(relative.var())
        deviations.append(variance**0.5)
        along.append(float((relative[:-8] * relative[8:]).mean()) / variance)
        across.append(float((relative[:, :-2] * relative[:, 2:]).mean()) / variance)
    assert 0.05 < np.median(deviations) < 0.09
    assert 0.3 < np.median(along) < 0.6
    assert abs(np.median(across)) < 0.1


def test_size_given_is_size_got() -> None:
    for defect in (None, *DEFECTS):
        tile = synthetic_tile(1, defect=defect, size_hw=(64, 200))
        assert tile.image.shape == (64, 200)
        assert bool(tile.mask.any()) == (defect is not None)


def test_synthetic_tile_bad_arguments_are_named() -> None:
    with pytest.raises(
        ConfigError, match="one of blowhole, break, crack, fray, uneven, got 'free'"
    ):
        synthetic_tile(0, defect="free")
    with pytest.raises(ConfigError, match="exposure must be 1 to 6, got 7"):
        synthetic_tile(0, exposure=7)
    with pytest.raises(ConfigError, match=r"at least 64 px, got size_hw=\(63, 80\)"):
        synthetic_tile(0, size_hw=(63, 80))
    with pytest.raises(ConfigError, match="seed must be 0 or more, got -1"):
        synthetic_tile(-1)


def _digest(root: Path) -> str:
    sha256 = hashlib.sha256()
    for path in sorted(root.rglob("*.*")):
        sha256.update(path.relative_to(root).as_posix().encode() + path.read_bytes())
    return sha256.hexdigest()


def test_write_dataset_makes_a_layout_that_find_samples_reads(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    root = write_dataset(
        tmp_path / "data", tiles=10, progress=lambda done, all_: seen.append((done, all_))
    )
    samples = find_samples(root)
    assert len(samples) == 60
    assert seen[-1] == (10, 10)
    assert {sample.label for sample in samples} == {FREE, *DEFECTS}
    by_group: dict[int, list[int | None]] = {}
    for sample in samples:
        by_group.setdefault(sample.group, []).append(sample.exposure)
        mask = load_mask(sample)
        assert load_image(sample).shape == mask.shape
        assert bool(mask.any()) == (sample.label != FREE)
    assert len(by_group) == 10
    assert all(
        sorted(map(int, filter(None, group))) == list(EXPOSURES) for group in by_group.values()
    )


def test_write_dataset_same_seed_same_files(tmp_path: Path) -> None:
    first = _digest(write_dataset(tmp_path / "a", tiles=2, seed=4))
    assert first == _digest(write_dataset(tmp_path / "b", tiles=2, seed=4))
    assert first != _digest(write_dataset(tmp_path / "c", tiles=2, seed=5))


def test_write_dataset_refuses_to_mix_with_another_set(tmp_path: Path) -> None:
    write_dataset(tmp_path, tiles=1)
    with pytest.raises(DataError, match="expected no data set there, found MT_"):
        write_dataset(tmp_path, tiles=1)
    with pytest.raises(ConfigError, match="tiles must be at least 1, got 0"):
        write_dataset(tmp_path / "none", tiles=0)


def test_write_dataset_of_more_tiles_than_the_disk_takes_writes_nothing(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"1,000,000,000,000 synthetic tiles take about 200,000,000"
    ):
        write_dataset(tmp_path / "data", tiles=10**12)
    assert not (tmp_path / "data").exists()


def test_read_source_with_some_options_leaves_the_others_as_usual() -> None:
    assert read_source("synthetic:", tiles=50, seed=0) == {"tiles": 50, "seed": 0}
    assert read_source("synthetic: seed = 7,", tiles=50, seed=0) == {"tiles": 50, "seed": 7}


@pytest.mark.parametrize("option", ["tile=4", "tiles=-4", "tiles", "width=9", "seed=" + "9" * 41])
def test_read_source_with_an_unknown_option_names_it_and_those_it_knows(option: str) -> None:
    message = f"option '{option}' is unknown; expected synthetic:tiles=50,seed=0"
    with pytest.raises(ConfigError, match=re.escape(message)):
        read_source(f"synthetic:seed=1,{option}", tiles=50, seed=0)
