"""What becomes of masks of every scale: read right, or refused by name; never read as empty."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from magtiles_seg.dataset.archive import verify
from magtiles_seg.dataset.masks import meaning_of, values_in
from magtiles_seg.dataset.samples import Sample, find_samples, load_mask, load_target
from magtiles_seg.errors import DataError, ImageError

TWO, FOUR = ("background", "scratch"), ("background", "scratch", "dent", "stain")
SQUARE = (slice(10, 20), slice(10, 20))
AREA_PX = 100


def put(root: Path, stem: str, mask: NDArray[np.uint8] | Image.Image, suffix: str = ".png") -> Path:
    """Write a grey picture and its mask; return the mask's path."""
    image = mask if isinstance(mask, Image.Image) else Image.fromarray(mask)
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    Image.new("L", image.size, 120).save(root / "images" / f"{stem}.png")
    image.save(root / "masks" / f"{stem}{suffix}", lossless=True)
    return root / "masks" / f"{stem}{suffix}"


def square(level: int, ground: int = 0) -> NDArray[np.uint8]:
    mask = np.full((60, 80), ground, np.uint8)
    mask[SQUARE] = level
    return mask


def areas(root: Path, labels: tuple[str, ...] = TWO) -> list[int]:
    return [int(load_mask(sample).sum()) for sample in verify(root, labels=labels)]


@pytest.mark.parametrize("levels", [(1, 1), (255, 255), (254, 255), (128, 255), (0, 1), (0, 255)])
def test_masks_of_one_scale_are_read_right(tmp_path: Path, levels: tuple[int, ...]) -> None:
    for index, level in enumerate(levels):
        put(tmp_path, f"t{index}", square(level))
    assert areas(tmp_path) == [AREA_PX if level else 0 for level in levels]


@pytest.mark.parametrize("level", [2, 3, 100, 127])
def test_mask_that_would_become_empty_is_refused_by_name(tmp_path: Path, level: int) -> None:
    put(tmp_path, "whole", square(0))
    put(tmp_path, "faint", square(level))
    with pytest.raises(DataError, match=rf"faint\.png: values up to {level}, so that none"):
        find_samples(tmp_path, labels=TWO)


def test_masks_of_two_scales_are_refused_with_both_names(tmp_path: Path) -> None:
    for stem, level in (("a", 1), ("b", 255), ("c", 1)):
        put(tmp_path, stem, square(level))
    with pytest.raises(DataError, match=r"1 problem:\n.*b\.png: holds grey .*a\.png 0 and 1"):
        verify(tmp_path, labels=TWO)
    put(tmp_path, "d", square(255))
    put(tmp_path, "e", square(200))
    with pytest.raises(DataError, match=r"2 problems:\n.*a\.png: holds 0 and 1, but .*b\.png grey"):
        find_samples(tmp_path, labels=TWO)


@pytest.mark.parametrize(
    ("level", "ground", "third"), [(255, 1, 1), (1, 0, 255), (255, 0, 1), (254, 1, 1), (2, 1, 255)]
)
def test_mask_of_classes_beside_255_is_refused(
    tmp_path: Path, level: int, ground: int, third: int
) -> None:
    mask = square(level, ground)
    mask[40, 40] = third
    put(tmp_path, "voc", mask)
    with pytest.raises(DataError, match=r"voc\.png: values .* may be a class beside 25[45]"):
        find_samples(tmp_path, labels=TWO)


def test_mask_with_soft_edges_is_grey_and_cut_at_128(tmp_path: Path) -> None:
    import cv2

    soft = cv2.GaussianBlur(square(255), (5, 5), 1)
    put(tmp_path, "soft", np.asarray(soft, np.uint8))
    put(
        tmp_path,
        "noise",
        np.clip(square(250).astype(int) + np.eye(60, 80) * 3, 0, 255).astype("u1"),
    )
    assert areas(tmp_path) == [AREA_PX, int((soft >= 128).sum())]


def test_masks_of_many_classes_beyond_the_labels_are_refused_with_the_ignore_hint(
    tmp_path: Path,
) -> None:
    mask = square(3)
    put(tmp_path, "good", mask)
    mask[0, :5] = 255
    put(tmp_path, "voc", mask)
    put(tmp_path, "more", square(4))
    with pytest.raises(DataError, match="2 problems") as raised:
        find_samples(tmp_path, labels=FOUR)
    assert "more.png: value 4; expected class indices 0..3" in str(raised.value)
    assert "255 looks like 'ignore'" in str(raised.value)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "1", "L"])
def test_mask_saved_with_equal_channels_or_one_bit_is_read(tmp_path: Path, mode: str) -> None:
    put(tmp_path, "a", Image.fromarray(square(255)).convert(mode))
    assert areas(tmp_path) == [AREA_PX]


def palette_mask(greys: list[int], level: int) -> Image.Image:
    image = Image.fromarray(square(level)).convert("L")
    image.putpalette([channel for grey in greys for channel in (grey, grey, grey)])
    return image


@pytest.mark.parametrize(("greys", "level"), [([255, 0], 1), ([255, 0], 0), ([0, 255, 90], 2)])
def test_mask_whose_palette_reorders_its_greys_is_refused(
    tmp_path: Path, greys: list[int], level: int
) -> None:
    mask = palette_mask(greys, level)
    mask.putpixel((0, 0), level // 2)
    put(tmp_path, "shrunk", mask)
    with pytest.raises(
        DataError, match=r"shrunk\.png' is a mask with a palette of greys in another"
    ):
        find_samples(tmp_path, labels=FOUR)


def test_mask_whose_palette_keeps_the_order_of_its_greys_is_read(tmp_path: Path) -> None:
    put(tmp_path, "a", palette_mask([0, 255], 1))
    put(tmp_path, "b", palette_mask([0], 0))
    assert areas(tmp_path) == [AREA_PX, 0]


def test_mask_of_16_bit_with_class_indices_is_read_and_beyond_255_refused(tmp_path: Path) -> None:
    put(tmp_path, "a", Image.fromarray(square(1).astype(np.uint16)))
    assert areas(tmp_path) == [AREA_PX]
    put(tmp_path, "a", Image.fromarray(square(1).astype(np.uint16) * np.uint16(65535)))
    with pytest.raises(ImageError, match="16-bit mask with the value 65535") as raised:
        load_mask(Sample("a", "scratch", tmp_path, tmp_path / "masks/a.png"))
    assert raised.value.reason == "unsupported"
    with pytest.raises(DataError, match=r"mask '.*a\.png' is a 16-bit mask"):
        find_samples(tmp_path, labels=TWO)


def test_mask_of_16_bit_colour_is_refused_for_it_would_be_read_at_its_high_byte(
    tmp_path: Path,
) -> None:
    import cv2

    path = put(tmp_path, "a", square(1))
    cv2.imwrite(str(path), np.repeat(square(1)[..., None], 3, axis=2).astype(np.uint16))
    with pytest.raises(DataError, match=r"a\.png' is a mask of RGB; expected one channel"):
        find_samples(tmp_path, labels=TWO)


def test_mask_in_a_lossy_format_is_refused_whatever_its_suffix(tmp_path: Path) -> None:
    put(tmp_path, "lossless", square(1), ".webp")
    assert areas(tmp_path) == [AREA_PX]
    for stem, kind, options in (("jpeg", "JPEG", {}), ("lossy", "WEBP", {"lossless": False})):
        path = put(tmp_path, stem, square(255), ".png" if kind == "JPEG" else ".webp")
        Image.fromarray(square(255)).save(path, kind, **options)
    with pytest.raises(DataError, match="2 problems") as raised:
        find_samples(tmp_path, labels=TWO)
    assert "jpeg.png' is a JPEG file, which changes values" in str(raised.value)
    assert "lossy.webp' is a lossy WebP file" in str(raised.value)


def test_masks_that_look_inverted_are_noted_by_name_and_not_turned(tmp_path: Path) -> None:
    put(tmp_path, "usual", square(255))
    put(tmp_path, "white", square(0, 255))
    notes: list[str] = []
    samples = verify(tmp_path, labels=TWO, note=notes.append)
    assert [int(load_mask(sample).sum()) for sample in samples] == [AREA_PX, 4800 - AREA_PX]
    assert len(notes) == 1
    assert "1 of 2 masks mark more than half" in notes[0]
    assert "white.png; if defects are black on white there, invert them" in notes[0]


@pytest.mark.parametrize(("folder", "level"), [("Crack", 1), ("Crack", 127), ("Free", 255)])
def test_mask_of_the_public_layout_that_contradicts_its_folder_is_refused(
    tmp_path: Path, folder: str, level: int
) -> None:
    imgs = tmp_path / f"MT_{folder}" / "Imgs"
    imgs.mkdir(parents=True)
    Image.new("L", (80, 60), 120).save(imgs / "exp1_num_7.jpg")
    Image.fromarray(square(level)).save(imgs / "exp1_num_7.png")
    with pytest.raises(
        DataError, match=r"exp1_num_7\.png (holds values up to|marks a defect, but)"
    ):
        verify(tmp_path)
    (sample,) = find_samples(tmp_path)
    with pytest.raises(DataError, match=r"exp1_num_7\.png"):
        load_target(sample)


def test_target_by_other_labels_than_the_mask_was_made_for_is_refused(tmp_path: Path) -> None:
    put(tmp_path, "a", square(3))
    (found,) = find_samples(tmp_path, labels=FOUR)
    sample = replace(found, label="scratch")
    with pytest.raises(DataError, match=r"a\.png holds the value 3; expected class indices 0\.\.1"):
        load_target(sample, labels=TWO)
    grey = Sample("g", "dent", tmp_path / "g.png", put(tmp_path, "g", square(255)))
    with pytest.raises(DataError, match="filed under 'dent'; expected 'free' or one of"):
        load_target(grey, labels=TWO)


@given(st.lists(st.integers(1, 255), unique=True).map(sorted), st.integers(2, 5))
def test_meaning_of_any_values_never_leaves_a_mask_without_its_defect(
    values: list[int], count: int
) -> None:
    labels = [f"class{index}" for index in range(count)]
    try:
        meaning = meaning_of(values, labels)
    except DataError:
        assert values[-1] >= 2
        return
    assert (meaning == "empty") == (not values)
    assert meaning != "indices" or values[-1] < count
    assert meaning != "grey" or (values[-1] >= 128 and count == 2)


def test_values_in_any_levels_are_those_above_0_in_order() -> None:
    assert values_in(np.array([[0, 7], [255, 7]], np.uint8)) == [7, 255]
    assert values_in(np.zeros((2, 2), np.uint8)) == []


def test_meaning_of_soft_edges_that_leave_levels_out_is_grey() -> None:
    assert meaning_of([1, 5, 255], TWO) == "grey"


def test_meaning_of_255_alone_is_no_ignore_beside_classes() -> None:
    with pytest.raises(DataError, match=r"value 255; expected class indices 0\.\.2") as raised:
        meaning_of([255], ("background", "a", "b"))
    assert "ignore" not in str(raised.value)
