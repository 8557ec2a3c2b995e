"""What `data load` passes, training can read: both read through the same functions."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
import pytest
import tifffile
from picturefiles import idat, ihdr, png_file
from PIL import Image

from magtiles_seg.dataset.archive import verify
from magtiles_seg.dataset.samples import load_image, load_mask
from magtiles_seg.errors import DataError

LABELS = ("background", "scratch")
HW = (60, 80)


def turned(
    root: Path, stem: str, orientation: int, mask_hw: tuple[int, int], mask_orientation: int = 0
) -> Path:
    """Write a picture with a bright first stored corner, and a mask of that corner upright."""
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    pixels, mask = np.full(HW, 50, np.uint8), np.zeros(mask_hw, np.uint8)
    pixels[:10, :10] = 250
    mask[:10, :10] = 255
    for array, value, path in (
        (pixels, orientation, root / "images" / f"{stem}.png"),
        (mask, mask_orientation, root / "masks" / f"{stem}.png"),
    ):
        exif = Image.Exif()
        if value:
            exif[0x0112] = value
        Image.fromarray(array).save(path, exif=exif)
    return root


@pytest.mark.parametrize("orientation", range(1, 9))
def test_turned_picture_and_mask_with_the_same_tag_fit(tmp_path: Path, orientation: int) -> None:
    turned(tmp_path, "a", orientation, HW, orientation)
    (sample,) = verify(tmp_path, labels=LABELS)
    assert np.array_equal(load_image(sample) > 200, load_mask(sample) > 0)


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_turned_picture_with_the_mask_of_its_stored_pixels_is_refused(
    tmp_path: Path, orientation: int
) -> None:
    turned(tmp_path, "a", orientation, HW)
    with pytest.raises(
        DataError,
        match=rf"mask is 80 x 60 px, its picture 60 x 80 px .* orientation {orientation}: "
        "the mask is of the pixels as they are stored",
    ):
        verify(tmp_path, labels=LABELS)


def test_mask_on_its_side_is_blamed_on_exif_only_where_the_picture_is_turned_by_it(
    tmp_path: Path,
) -> None:
    turned(tmp_path, "a", 3, HW[::-1])
    with pytest.raises(DataError, match=r"mask is 60 x 80 px, its picture 80 x 60 px$"):
        verify(tmp_path, labels=LABELS)


@pytest.mark.parametrize(("orientation", "noted"), [(0, False), (1, False), (3, True), (6, True)])
def test_turned_picture_with_an_untagged_mask_of_its_size_is_noted(
    tmp_path: Path, orientation: int, noted: bool
) -> None:
    turned(tmp_path, "a", orientation, HW[::-1] if orientation == 6 else HW)
    notes: list[str] = []
    verify(tmp_path, labels=LABELS, note=notes.append)
    assert [f"orientation {orientation}, and its mask is not" in note for note in notes] == (
        [True] if noted else []
    )


@pytest.mark.parametrize(("picture", "mask"), [(0, 3), (3, 2), (5, 6)])
def test_mask_with_another_orientation_than_its_picture_is_noted(
    tmp_path: Path, picture: int, mask: int
) -> None:
    turned(tmp_path, "a", picture, HW, mask)
    notes: list[str] = []
    verify(tmp_path, labels=LABELS, note=notes.append)
    (note,) = notes
    assert f"orientation {picture or 1}, and its mask is turned by {mask};" in note


def test_pictures_that_training_refuses_are_all_named_at_once(tmp_path: Path) -> None:
    for stem in "abcd":
        turned(tmp_path, stem, 0, HW)
    images = tmp_path / "images"
    page = Image.fromarray(np.full(HW, 90, np.uint8))
    (images / "a.png").unlink()
    page.save(images / "a.tif", save_all=True, append_images=[page])
    Image.fromarray(np.full(HW, 4000, np.uint16)).save(images / "b.png")
    (images / "c.png").write_bytes((images / "d.png").read_bytes()[:60])
    page.resize((40, 30)).save(images / "d.png")
    seen: list[int] = []
    with pytest.raises(DataError, match="4 problems") as raised:
        verify(tmp_path, labels=LABELS, progress=lambda done, _: seen.append(done))
    for part in ("a.tif' holds", "b.png' is 16-bit but", "c.png' ", "d.png: mask is 80 x"):
        assert part in str(raised.value)
    assert seen == [1, 2, 3, 4]


@pytest.mark.parametrize("name", ["zTXt", "eXIf", "pHYs", "gAMA", "tEXt"])
def test_picture_with_a_damaged_chunk_that_makes_no_pixels_is_whole(
    tmp_path: Path, name: str
) -> None:
    turned(tmp_path, "a", 0, HW)
    body = {"zTXt": b"a\0\0" + zlib.compress(bytes(70_000_000)), "eXIf": b"junk"}.get(name, b"")
    content = bytearray(png_file(ihdr(80, 60), (name.encode(), body), idat(np.zeros(HW, np.uint8))))
    if name == "tEXt":
        content[41] ^= 1  # its checksum
    (tmp_path / "images" / "a.png").write_bytes(content)
    assert len(verify(tmp_path, labels=LABELS)) == 1


def test_picture_as_a_bigtiff_of_big_endian_is_whole(tmp_path: Path) -> None:
    turned(tmp_path, "a", 0, HW)
    (tmp_path / "images" / "a.png").unlink()
    tifffile.imwrite(
        tmp_path / "images" / "a.tif", np.full(HW, 9, np.uint8), bigtiff=True, byteorder=">"
    )
    assert len(verify(tmp_path, labels=LABELS)) == 1


def test_orientation_in_xmp_turns_nothing_and_is_not_noted(tmp_path: Path) -> None:
    turned(tmp_path, "a", 0, HW)
    (tmp_path / "images" / "a.png").unlink()
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><y tiff:Orientation="3"/></x:xmpmeta>'
    Image.new("L", HW[::-1]).save(tmp_path / "images" / "a.jpg", xmp=xmp)
    notes: list[str] = []
    verify(tmp_path, labels=LABELS, note=notes.append)
    assert notes == []
