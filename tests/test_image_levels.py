"""The values of a mask file: what is stored, never what it looks like."""

from __future__ import annotations

import io
from typing import Any, cast

import numpy as np
import pytest
from numpy.typing import NDArray
from picturefiles import idat, ihdr, png_file
from pictures import GREY, RGB, RGBA, assert_picture, encoded
from PIL import Image, ImageOps

from magtiles_seg.errors import ImageError
from magtiles_seg.image import FORMATS, ImageSource, read_colours, read_image, read_levels

CLASSES = np.array([[0, 1, 2], [5, 3, 0]], np.uint8)


def palette_image(indices: NDArray[Any]) -> Image.Image:
    image = Image.frombytes("P", indices.shape[::-1], indices.tobytes())
    image.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0, 0, 0, 255, 9, 9, 9, 200, 200, 200])
    return image


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF"])
def test_read_levels_grey_mask_keeps_its_values(kind: str) -> None:
    for source in (CLASSES, CLASSES[:, :, None], encoded(CLASSES, kind), Image.fromarray(CLASSES)):
        levels = read_levels(source)
        assert_picture(levels, CLASSES.shape)
        assert np.array_equal(levels, CLASSES)
        assert not np.shares_memory(levels, CLASSES)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF"])
def test_read_levels_palette_gives_indices_not_colours(kind: str) -> None:
    content = encoded(palette_image(CLASSES), kind)
    assert np.array_equal(read_levels(content), CLASSES)
    assert not np.array_equal(read_image(content), CLASSES)


def test_read_levels_palette_with_a_transparent_colour_keeps_its_index() -> None:
    content = encoded(palette_image(CLASSES), transparency=0)
    assert np.array_equal(read_levels(content), CLASSES)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF"])
def test_read_levels_one_bit_mask_is_0_and_255(kind: str) -> None:
    image = Image.fromarray(np.array([[0, 255, 0]], np.uint8)).convert("1")
    assert read_levels(encoded(image, kind)).tolist() == [[0, 255, 0]]


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_read_levels_16_bit_mask_keeps_values_up_to_255(kind: str) -> None:
    small = CLASSES.astype(np.uint16)
    assert np.array_equal(read_levels(encoded(small, kind)), CLASSES)
    with pytest.raises(ImageError, match="16-bit mask with the value 256; expected at most 255"):
        read_levels(encoded(small + np.uint16(251), kind))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_read_levels_is_turned_as_the_picture_is(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    for kind in ("PNG", "TIFF"):
        content = encoded(Image.fromarray(GREY), kind, exif=exif)
        assert np.array_equal(read_levels(content), read_image(content))
    indices = encoded(palette_image(CLASSES), exif=exif)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(indices)))
    assert np.array_equal(read_levels(indices), np.asarray(upright))


@pytest.mark.parametrize("mask", [RGB, RGBA], ids=["RGB", "RGBA"])
def test_read_levels_of_colour_is_refused(mask: NDArray[Any]) -> None:
    for source in (mask, encoded(mask), Image.fromarray(mask), encoded(mask, "TIFF")):
        with pytest.raises(ImageError, match=r"mask of .*expected one channel") as caught:
            read_levels(source)
        assert caught.value.reason == "unsupported"


@pytest.mark.parametrize("kind", FORMATS)
def test_read_levels_has_the_limits_of_read_image(kind: str) -> None:
    content = encoded(np.tile(RGB, (8, 8, 1)), kind)
    with pytest.raises(ImageError, match="expected at most 99 px") as caught:
        read_levels(content, max_pixels=99)
    assert caught.value.reason == "too_large"
    with pytest.raises(ImageError) as caught:
        read_levels(content[:40])
    assert caught.value.reason == "invalid"


@pytest.mark.parametrize("mode", ["I", "F", "LAB", "LA", "CMYK"])
def test_read_levels_of_other_modes_is_refused(mode: str) -> None:
    with pytest.raises(ImageError, match=f"mask of {mode}"):
        read_levels(Image.new(mode, (4, 4)))


def test_read_levels_other_python_type_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="cannot read a picture from"):
        read_levels(cast("ImageSource", 7))


@pytest.mark.parametrize("mode", ["LA", "RGBA"])
def test_read_levels_with_an_alpha_channel_is_read_where_all_is_opaque(mode: str) -> None:
    image = Image.fromarray(CLASSES).convert(mode)
    assert np.array_equal(read_levels(encoded(image)), CLASSES)
    image.putpixel((0, 0), (*image.getpixel((0, 0))[:-1], 254))  # type: ignore[index]
    with pytest.raises(ImageError, match=f"mask of {mode}; expected one channel"):
        read_levels(encoded(image))


def test_read_levels_of_a_palette_with_black_beyond_index_0_is_refused() -> None:
    image = Image.frombytes("P", (3, 1), bytes([0, 0, 1]))
    for palette, wrong in (([200, 0, 0, 0, 0, 0], True), ([200, 0, 0, 0, 1, 0], False)):
        image.putpalette(palette)
        if not wrong:
            assert read_levels(encoded(image)).tolist() == [[0, 0, 1]]
            continue
        with pytest.raises(ImageError, match="palette in another order than its indices"):
            read_levels(encoded(image))


@pytest.mark.parametrize(
    ("kind", "options", "what"),
    [
        ("JPEG", {}, "a JPEG file"),
        ("WEBP", {"lossless": False}, "a lossy WebP file"),
        ("TIFF", {"compression": "jpeg"}, "a JPEG-compressed TIFF file"),
    ],
)
def test_read_levels_of_a_lossy_file_is_refused(
    kind: str, options: dict[str, Any], what: str
) -> None:
    with pytest.raises(ImageError, match=f"is {what}, which changes values"):
        read_levels(encoded(Image.fromarray(GREY), kind, **options))


def test_read_image_16_bit_colour_is_refused_up_to_4095_and_read_from_4096_on() -> None:
    for level, refused in ((4095, True), (4096, False)):
        rows = np.full((2, 9), level, ">u2").view(np.uint8)
        content = png_file(ihdr(3, 2, 16, 2), idat(rows))
        for source in (content, Image.open(io.BytesIO(content))):
            if not refused:
                assert (read_image(source) == level >> 8).all()
                continue
            with pytest.raises(ImageError, match="no value above 4095"):
                read_image(source)


RED, BLUE = 0xFF0000, 0x0000FF
COLOURS = np.array([[0, RED, 0], [0, 0, BLUE]], np.int32)


def shown(colours: NDArray[np.int32]) -> NDArray[np.uint8]:
    return np.stack([colours >> 16, colours >> 8, colours], axis=2).astype(np.uint8)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_read_colours_is_turned_as_the_picture_is(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.fromarray(shown(COLOURS))
    for kind in ("PNG", "TIFF"):
        content = encoded(image, kind, exif=exif)
        upright = ImageOps.exif_transpose(Image.open(io.BytesIO(content)))
        assert np.array_equal(shown(read_colours(content)), np.asarray(upright))


def test_read_colours_that_are_wholly_transparent_are_black() -> None:
    red = np.full_like(COLOURS, RED)
    alpha = np.where(COLOURS > 0, np.uint8(200), np.uint8(0))
    mask = np.dstack([shown(red), alpha])
    for source in (mask, encoded(mask), Image.fromarray(mask), encoded(mask, "TIFF")):
        assert np.array_equal(read_colours(source), np.where(COLOURS > 0, RED, 0))


def test_read_colours_of_greys_and_of_a_palette_are_those_colours() -> None:
    grey = CLASSES.astype(np.int32) * 0x010101
    assert np.array_equal(read_colours(encoded(CLASSES)), grey)
    assert read_colours(encoded(palette_image(CLASSES)))[0].tolist() == [0, RED, 0x00FF00]


def test_read_colours_of_more_than_8_bits_is_refused() -> None:
    deep = png_file(ihdr(3, 2, 16, 2), idat(np.full((2, 9), 3, ">u2").view(np.uint8)))
    with pytest.raises(ImageError, match="a mask of 16-bit colour; expected 8 bits"):
        read_colours(deep)
    with pytest.raises(ImageError, match="16-bit mask with the value 300"):
        read_colours(encoded(np.full((2, 3), 300, np.uint16)))
    with pytest.raises(ImageError, match="is a JPEG file, which changes values"):
        read_colours(encoded(shown(COLOURS), "JPEG"))
