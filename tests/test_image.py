"""Every kind of input, good and bad, that the one door for pixels may meet."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from pictures import GREY, GREY_16, RGB, RGBA, assert_picture, encoded
from PIL import Image, ImageOps

from magtiles_seg.image import ImageSource, pad_to_min_side, read_image, read_levels


def luma(rgb: NDArray[Any]) -> NDArray[Any]:
    """The documented rule, written out."""
    levels: NDArray[np.float64] = np.asarray(rgb, dtype=float)[..., :3] @ [0.299, 0.587, 0.114]
    return levels.round()


@given(arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9))))
def test_read_image_grey_array_is_unchanged_and_not_shared(array: NDArray[Any]) -> None:
    picture = read_image(array)
    assert_picture(picture, array.shape)
    assert np.array_equal(picture, array)
    assert not np.shares_memory(picture, array)


@pytest.mark.parametrize("view", [GREY[::2, ::-1], GREY.T, np.asfortranarray(GREY)])
def test_read_image_strided_array_comes_out_contiguous(view: NDArray[Any]) -> None:
    picture = read_image(view)
    assert_picture(picture, view.shape)
    assert np.array_equal(picture, view)


def test_read_image_single_channel_axis_is_dropped() -> None:
    assert np.array_equal(read_image(GREY[:, :, None]), GREY)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF"])
def test_read_image_lossless_grey_file_is_unchanged(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "tile"
    path.write_bytes(encoded(GREY, kind))
    for source in (path, str(path), path.read_bytes(), Image.open(path)):
        picture = read_image(source)
        assert_picture(picture, GREY.shape)
        assert np.array_equal(picture, GREY)


@pytest.mark.parametrize("kind", ["JPEG", "WEBP"])
def test_read_image_lossy_file_is_what_pillow_decodes(kind: str) -> None:
    content = encoded(RGB, kind)
    expected = read_image(np.asarray(Image.open(io.BytesIO(content)).convert("RGB")))
    assert np.array_equal(read_image(content), expected)


def test_read_image_colour_follows_the_luma_rule() -> None:
    assert np.abs(read_image(RGB) - luma(RGB)).max() <= 1
    assert read_image(np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255]]], np.uint8)).tolist() == [
        [76, 150, 29]
    ]


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF"])
def test_read_image_colour_is_the_same_for_array_and_file(kind: str) -> None:
    assert np.array_equal(read_image(encoded(RGB, kind)), read_image(RGB))
    assert np.array_equal(read_image(Image.fromarray(RGB)), read_image(RGB))


@given(st.integers(0, 255))
def test_read_image_grey_stored_as_colour_keeps_its_level(level: int) -> None:
    assert read_image(np.full((2, 3, 3), level, np.uint8)).tolist() == [[level] * 3] * 2


def test_read_image_alpha_is_composited_over_black() -> None:
    expected = luma(RGBA) * RGBA[..., 3] / 255
    assert np.abs(read_image(RGBA) - expected).max() <= 1
    assert np.array_equal(read_image(encoded(RGBA)), read_image(RGBA))
    opaque = np.dstack([RGB, np.full(RGB.shape[:2], 255, np.uint8)])
    assert np.array_equal(read_image(opaque), read_image(RGB))


def test_read_image_grey_with_alpha_is_composited_over_black() -> None:
    alpha = Image.fromarray(RGBA[..., 3])
    merged = Image.merge("LA", (Image.fromarray(GREY), alpha))
    assert np.abs(read_image(encoded(merged)) - GREY * (RGBA[..., 3] / 255)).max() <= 1


def test_read_image_transparent_grey_level_is_black() -> None:
    content = encoded(np.array([[7, 200]], np.uint8), transparency=200)
    assert read_image(content).tolist() == [[7, 0]]


def test_read_image_palette_is_looked_up() -> None:
    image = Image.fromarray(np.array([[0, 1, 2]], np.uint8))
    palette = Image.frombytes("P", image.size, image.tobytes())
    palette.putpalette([10, 10, 10, 255, 0, 0, 90, 90, 90])
    assert read_image(encoded(palette)).tolist() == [[10, 76, 90]]
    assert read_image(encoded(palette, transparency=2)).tolist() == [[10, 76, 0]]


def test_read_image_one_bit_is_black_and_white() -> None:
    image = Image.fromarray(np.array([[0, 255, 0]], np.uint8)).convert("1")
    assert read_image(encoded(image)).tolist() == [[0, 255, 0]]


@pytest.mark.parametrize("mode", ["CMYK", "YCbCr", "HSV"])
def test_read_image_other_colour_space_goes_through_rgb(mode: str) -> None:
    image = Image.fromarray(RGB).convert(mode)
    assert np.array_equal(read_image(image), read_image(np.asarray(image.convert("RGB"))))


def test_read_image_cmyk_jpeg_of_grey_keeps_its_levels() -> None:
    content = encoded(Image.fromarray(np.full((8, 8, 3), 90, np.uint8)).convert("CMYK"), "JPEG")
    assert np.abs(read_image(content).astype(int) - 90).max() <= 2


def test_read_image_16_bit_is_divided_by_257_and_rounded() -> None:
    levels = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    assert np.array_equal(read_image(levels), np.rint(levels / 257))
    assert np.array_equal(read_image(GREY.astype(np.uint16) * 257), GREY)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_read_image_16_bit_is_the_same_for_array_and_file(kind: str) -> None:
    assert np.array_equal(read_image(encoded(GREY_16, kind)), read_image(GREY_16))
    assert np.array_equal(read_image(GREY_16.astype(">u2")), read_image(GREY_16))


def test_read_image_16_bit_colour_array_agrees_with_8_bit() -> None:
    deep = RGBA.astype(np.uint16) * 257
    assert np.abs(read_image(deep) - read_image(RGBA).astype(int)).max() <= 1


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "WEBP"])
@pytest.mark.parametrize("read", [read_image, read_levels])
def test_read_image_exif_orientation_is_applied(
    orientation: int, kind: str, read: Callable[[ImageSource], NDArray[np.uint8]]
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    plain = {"lossless": True} if kind == "WEBP" else {}
    grey = Image.fromarray(GREY)
    content = encoded(grey, kind, exif=exif, **plain)
    if read is read_levels and kind in ("JPEG", "WEBP"):  # lossy; of colour only
        return
    stored = read(encoded(grey, kind, **plain))
    upright = np.asarray(ImageOps.exif_transpose(_with_exif(stored, exif)))
    assert np.array_equal(read(content), upright)
    assert np.array_equal(read(Image.open(io.BytesIO(content))), upright)
    assert (upright.shape == GREY.shape) == (orientation < 5)


def _with_exif(levels: NDArray[np.uint8], exif: Image.Exif) -> Image.Image:
    return Image.open(io.BytesIO(encoded(levels, exif=exif)))


def test_read_image_one_pixel_is_a_picture() -> None:
    one = np.array([[9]], np.uint8)
    assert read_image(one).tolist() == read_image(encoded(one)).tolist() == [[9]]


def test_read_image_leaves_the_pillow_image_open_and_as_it_was() -> None:
    image = Image.fromarray(RGB)
    read_image(image)
    assert image.mode == "RGB"
    assert np.array_equal(np.asarray(image), RGB)


@pytest.mark.parametrize("shape", [(1, 1), (31, 40), (40, 5), (3, 20, 33)])
def test_pad_to_min_side_of_a_short_side_mirrors_it_at_bottom_and_right(
    shape: tuple[int, ...],
) -> None:
    pictures = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)

    padded = pad_to_min_side(pictures)

    height, width = shape[-2:]
    assert padded.shape == (*shape[:-2], max(height, 32), max(width, 32))
    rows, columns = (
        np.abs((np.arange(max(side, 32)) + side - 1) % max(1, 2 * (side - 1)) - (side - 1))
        for side in (height, width)
    )
    assert np.array_equal(padded, pictures[..., rows, :][..., columns])


def test_pad_to_min_side_of_large_pictures_is_the_same_array() -> None:
    pictures = np.zeros((2, 32, 40), np.uint8)

    assert pad_to_min_side(pictures) is pictures
