"""What no picture can be read from, and what is said then."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias, cast

import numpy as np
import pytest
import tifffile
from hypothesis import example, given
from hypothesis import strategies as st
from numpy.typing import NDArray
from pictures import GREY, RGB, assert_picture, encoded, png_header
from PIL import Image

from magtiles_seg import image as image_module
from magtiles_seg.errors import ImageError
from magtiles_seg.image import (
    FORMATS,
    MAX_PIXELS,
    MIN_SIDE_PX,
    ImageSource,
    read_image,
    read_levels,
)

Reader: TypeAlias = Callable[..., NDArray[np.uint8]]


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


@pytest.mark.parametrize("read", [read_image, read_levels])
def test_read_image_above_max_pixels_is_refused_for_every_source(read: Reader) -> None:
    grey = np.tile(GREY, (3, 3))
    for source in (grey, encoded(grey), Image.fromarray(grey), encoded(grey, "TIFF")):
        assert read(source, max_pixels=grey.size).shape == grey.shape
        with pytest.raises(ImageError, match="51 x 36 px; expected at most 1,835 px") as caught:
            read(source, max_pixels=grey.size - 1)
        assert caught.value.reason == "too_large"


@pytest.mark.parametrize("read", [read_image, read_levels])
@pytest.mark.parametrize("shape", [(1, 40), (40, 1), (2, 3)])
def test_read_image_short_side_counts_as_what_a_model_pads_it_to(
    shape: tuple[int, int], read: Reader
) -> None:
    area_px = max(shape[0], MIN_SIDE_PX) * max(shape[1], MIN_SIDE_PX)
    grey = np.zeros(shape, np.uint8)
    for source in (grey, encoded(grey), Image.fromarray(grey), encoded(grey, "BMP")):
        assert read(source, max_pixels=area_px).shape == shape
        with pytest.raises(ImageError, match=f"px, which counts as {area_px:,}.*at most") as caught:
            read(source, max_pixels=area_px - 1)
        assert caught.value.reason == "too_large"


def test_read_image_one_pixel_high_picture_of_four_megapixels_is_refused() -> None:
    assert_refused(png_header(4_000_000, 1), "too_large", "counts as 128,000,000")
    assert read_image(np.zeros((1, 250_000), np.uint8)).shape == (1, 250_000)


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("share", [0.02, 0.3, 0.9])
def test_read_image_truncated_file_is_refused(kind: str, share: float) -> None:
    content = encoded(np.tile(RGB, (8, 8, 1)), kind)
    assert_refused(content[: max(4, int(len(content) * share))], "invalid", "picture")


@pytest.mark.parametrize("kind", FORMATS)
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


@given(st.binary(max_size=60))
@example(b"version https://git-lfs.github.com/spec/v1")
def test_read_image_arbitrary_bytes_are_refused(content: bytes) -> None:
    with pytest.raises(ImageError, match=r"expected .*; |is a Git LFS pointer, not the picture"):
        read_image(content)


def test_read_image_text_is_refused_with_the_formats_named() -> None:
    assert_refused(b"hello, tile", "unsupported", "hello, t'; expected PNG, JPEG, BMP, TIFF")


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
    for source in (content, Image.open(io.BytesIO(content))):
        assert_refused(source, "unsupported", r"holds (2|several) frames .*a single picture")


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


@pytest.mark.parametrize(
    ("source", "fix"),
    [
        (None, r"a file that is not there, as by cv2\.imread"),
        (io.BytesIO(b"x"), r"pass what its \.read\(\) returns"),
        (bytearray(b"x"), r"pass bytes\(\.\.\.\) of it"),
        (iter(["a.png"]), r"several go to Segmenter\.batch"),
    ],
)
def test_read_image_other_python_type_says_what_to_pass(source: object, fix: str) -> None:
    with pytest.raises(TypeError, match=fix):
        read_image(cast("ImageSource", source))


def test_read_image_address_says_that_it_is_none_of_a_file() -> None:
    with pytest.raises(FileNotFoundError, match=r"addresses are not opened: download it"):
        read_image("https://127.0.0.1:1/a.png")


def test_read_image_array_with_hidden_pixels_is_refused() -> None:
    array = np.ma.masked_greater(np.array([[1, 200]], np.uint8), 100)
    with pytest.raises(ImageError, match=r"masked array.*filled\(0\)"):
        read_image(array)
    assert read_image(array.filled(0)).tolist() == [[1, 0]]


def test_read_image_import_and_grey_array_need_neither_pillow_nor_opencv() -> None:
    code = (
        "import sys, numpy; from magtiles_seg.image import read_image;"
        "read_image(numpy.ones((2, 2), 'uint8'));"
        "sys.exit(bool({'PIL', 'cv2', 'torch', 'onnxruntime'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_read_image_file_of_the_most_bytes_is_read_and_one_more_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = encoded(GREY) + bytes(100)
    path = tmp_path / "a.png"
    path.write_bytes(content)
    monkeypatch.setattr(image_module, "_MAX_BYTES_BESIDE", len(content) - 16 * 2000)
    assert np.array_equal(read_image(path, max_pixels=2000), GREY)
    path.write_bytes(content + b"\0")
    with pytest.raises(ImageError, match=f"more than {len(content):,} bytes") as caught:
        read_image(path, max_pixels=2000)
    assert caught.value.reason == "too_large"


def test_read_image_tiff_with_tiles_far_beyond_the_picture_is_refused() -> None:
    file = io.BytesIO()
    tifffile.imwrite(file, np.zeros((40, 40), np.uint8), tile=(2048, 2064), compression="zlib")
    with pytest.raises(ImageError, match=r"has tiles of 4,227,072 px") as caught:
        read_image(file.getvalue(), max_pixels=1_000_000)
    assert caught.value.reason == "too_large"
    assert read_image(file.getvalue(), max_pixels=1_100_000).shape == (40, 40)
