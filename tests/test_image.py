"""Every kind of input, good and bad, that the one door for pixels may meet."""

from __future__ import annotations

import io
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from PIL import Image, ImageOps

from magtiles_seg.errors import ImageError
from magtiles_seg.image import FORMATS, MAX_PIXELS, ImageSource, read_image

SEEDED = np.random.default_rng(7)
GREY = SEEDED.integers(0, 256, (12, 17), dtype=np.uint8)
RGB = SEEDED.integers(0, 256, (12, 17, 3), dtype=np.uint8)
RGBA = SEEDED.integers(0, 256, (12, 17, 4), dtype=np.uint8)
GREY_16 = SEEDED.integers(0, 65536, (12, 17), dtype=np.uint16)


def luma(rgb: NDArray[Any]) -> NDArray[Any]:
    """The documented rule, written out."""
    levels: NDArray[np.float64] = np.asarray(rgb, dtype=float)[..., :3] @ [0.299, 0.587, 0.114]
    return levels.round()


def encoded(image: NDArray[Any] | Image.Image, kind: str = "PNG", **options: object) -> bytes:
    stream = io.BytesIO()
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(
        stream, kind, **options
    )
    return stream.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A PNG that says its size and holds no pixels."""
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)), (b"IDAT", b"")]
    body = b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + body


def assert_picture(picture: NDArray[Any], shape: tuple[int, ...]) -> None:
    assert picture.dtype == np.uint8
    assert picture.shape == shape
    assert picture.flags.c_contiguous
    assert picture.flags.writeable


# ---- what is read


@settings(deadline=None)
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


@settings(deadline=None)
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
def test_read_image_exif_orientation_is_applied(orientation: int) -> None:
    image = Image.fromarray(GREY)
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = encoded(image, "PNG", exif=exif)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(content)))
    assert np.array_equal(read_image(content), np.asarray(upright))
    assert np.array_equal(read_image(Image.open(io.BytesIO(content))), np.asarray(upright))
    assert (read_image(content).shape == GREY.shape) == (orientation < 5)


def test_read_image_one_pixel_is_a_picture() -> None:
    one = np.array([[9]], np.uint8)
    assert read_image(one).tolist() == read_image(encoded(one)).tolist() == [[9]]


def test_read_image_leaves_the_pillow_image_open_and_as_it_was() -> None:
    image = Image.fromarray(RGB)
    read_image(image)
    assert image.mode == "RGB"
    assert np.array_equal(np.asarray(image), RGB)


# ---- what is refused


def assert_refused(source: object, reason: str, match: str, **options: int) -> None:
    with pytest.raises(ImageError, match=match) as caught:
        read_image(cast("ImageSource", source), **options)
    assert caught.value.reason == reason


@pytest.mark.parametrize(
    "array",
    [
        GREY.astype(np.float32) / 255,
        np.full((4, 4), np.nan),
        GREY.astype(np.int64),
        GREY > 3,
        GREY.astype(np.uint32),
        GREY.astype(object),
    ],
    ids=["float", "nan", "int64", "bool", "uint32", "object"],
)
def test_read_image_array_of_unknown_scale_is_refused(array: NDArray[Any]) -> None:
    assert_refused(array, "unsupported", "full scale is unknown; expected uint8")


@pytest.mark.parametrize("shape", [(), (5,), (4, 4, 2), (3, 4, 5), (2, 4, 4, 3)])
def test_read_image_array_of_wrong_dimensions_is_refused(shape: tuple[int, ...]) -> None:
    assert_refused(np.zeros(shape, np.uint8), "unsupported", r"has shape .*; expected \(H, W\)")


@pytest.mark.parametrize("shape", [(0, 0), (0, 5), (5, 0), (5, 0, 3)])
def test_read_image_without_pixels_is_refused(shape: tuple[int, ...]) -> None:
    assert_refused(np.zeros(shape, np.uint8), "invalid", "expected at least 1 x 1")


@pytest.mark.parametrize("size", [(0, 0), (0, 5), (5, 0)])
def test_read_image_file_or_image_without_pixels_is_refused(size: tuple[int, int]) -> None:
    assert_refused(png_header(*size), "invalid", "the picture")
    assert_refused(Image.new("L", size), "invalid", "expected at least 1 x 1")


@pytest.mark.parametrize("brightest", [1, 255, 4095])
def test_read_image_unscaled_12_bit_data_is_refused(brightest: int) -> None:
    array = np.array([[0, brightest]], np.uint16)
    assert_refused(array, "invalid", rf"no grey above {brightest}.*shift it up")
    assert_refused(encoded(array), "invalid", "shift it up")


def test_read_image_16_bit_black_or_just_bright_enough_is_read() -> None:
    assert read_image(np.zeros((2, 2), np.uint16)).max() == 0
    assert read_image(np.full((2, 2), 4096, np.uint16)).max() == 16


@pytest.mark.parametrize("size", [(20_000, 20_000), (9_000, 9_000), (12_000, 12_000)])
def test_read_image_huge_file_is_refused_before_it_is_decoded(size: tuple[int, int]) -> None:
    assert_refused(png_header(*size), "too_large", "px|pixels")


def test_read_image_8192_by_4096_is_within_the_bound() -> None:
    assert 8192 * 4096 < MAX_PIXELS < 20_000 * 20_000
    assert read_image(np.zeros((4096, 8192), np.uint8)).shape == (4096, 8192)


def test_read_image_above_max_pixels_is_refused_for_every_source() -> None:
    for source in (GREY, RGB, GREY_16, encoded(GREY), Image.fromarray(GREY)):
        assert read_image(source, max_pixels=GREY.size).shape == GREY.shape
        assert_refused(source, "too_large", "expected at most 203", max_pixels=GREY.size - 1)


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("share", [0.02, 0.3, 0.9])
def test_read_image_truncated_file_is_refused(kind: str, share: float) -> None:
    content = encoded(np.tile(RGB, (8, 8, 1)), kind)
    assert_refused(content[: max(4, int(len(content) * share))], "invalid", "picture")


@pytest.mark.parametrize("kind", FORMATS)
@settings(deadline=None)
@given(data=st.data())
def test_read_image_damaged_file_is_read_or_refused_but_never_crashes(
    kind: str, data: st.DataObject
) -> None:
    content = bytearray(encoded(RGB, kind))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    try:
        picture = read_image(bytes(content), max_pixels=10_000)
    except ImageError:
        return
    assert_picture(picture, picture.shape)


@settings(deadline=None)
@given(st.binary(max_size=60))
def test_read_image_arbitrary_bytes_are_refused(content: bytes) -> None:
    with pytest.raises(ImageError, match=r"expected .*; "):
        read_image(content)


def test_read_image_text_is_refused_with_the_formats_named() -> None:
    assert_refused(b"hello, tile", "unsupported", "expected PNG, JPEG, BMP, TIFF, WEBP; got")


def test_read_image_empty_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.png").touch()
    assert_refused(tmp_path / "empty.png", "invalid", "empty.png' is empty")


def test_read_image_format_outside_the_list_is_refused() -> None:
    assert_refused(encoded(GREY, "GIF"), "unsupported", "expected PNG")
    assert_refused(encoded(GREY, "PPM"), "unsupported", "expected PNG")


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
def test_read_image_several_frames_are_refused(kind: str) -> None:
    frames = [Image.fromarray(GREY), Image.fromarray(255 - GREY)]
    content = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
    assert_refused(content, "unsupported", "holds 2 frames or pages; expected a single picture")
    assert_refused(Image.open(io.BytesIO(content)), "unsupported", "holds 2 frames")


@pytest.mark.parametrize("mode", ["I", "F", "LAB"])
def test_read_image_pixel_mode_of_unknown_scale_is_refused(mode: str) -> None:
    assert_refused(Image.new(mode, (4, 4)), "unsupported", f"pixel mode '{mode}'")


def test_read_image_closed_pillow_image_is_refused(tmp_path: Path) -> None:
    Image.fromarray(GREY).save(tmp_path / "tile.png")
    image = Image.open(tmp_path / "tile.png")
    image.close()
    assert_refused(image, "invalid", "the Pillow image cannot be decoded")


def test_read_image_missing_path_is_file_not_found(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no such file: '.*gone\.png'; expected a picture"):
        read_image(tmp_path / "gone.png")


def test_read_image_directory_is_refused(tmp_path: Path) -> None:
    assert_refused(tmp_path, "invalid", "is a directory; expected a picture file")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_read_image_named_pipe_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert_refused(tmp_path / "pipe", "invalid", "no regular file")


def test_read_image_unreadable_file_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "tile.png"
    path.write_bytes(encoded(GREY))

    def refuse(self: Path, mode: str) -> None:
        raise PermissionError(13, f"Permission denied ({mode})", str(self))

    monkeypatch.setattr(Path, "open", refuse)
    assert_refused(path, "invalid", "cannot be opened: .*Permission denied")


@pytest.mark.parametrize("path", ["a\0b.png", "x" * 5000])
def test_read_image_impossible_path_is_refused(path: str) -> None:
    assert_refused(path, "invalid", "cannot be opened")


@pytest.mark.parametrize("source", [None, 7, [[1, 2]], np.uint8(3), b"x".hex, object()])
def test_read_image_other_python_type_is_a_type_error(source: object) -> None:
    with pytest.raises(TypeError, match=r"cannot read a picture from .*; expected a path, bytes"):
        read_image(cast("ImageSource", source))


def test_read_image_import_and_grey_array_need_neither_pillow_nor_opencv() -> None:
    code = (
        "import sys, numpy; from magtiles_seg.image import read_image;"
        "read_image(numpy.ones((2, 2), 'uint8'));"
        "sys.exit(bool({'PIL', 'cv2', 'torch', 'onnxruntime'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
