"""BMP of every depth against its definition and another decoder."""

from __future__ import annotations

import struct

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from picturefiles import bmp_file
from pictures import RGB, encoded

from magtiles_seg.errors import ImageError
from magtiles_seg.image import read_image, read_levels

HEIGHT, WIDTH = 9, 13


def rows_of(levels: NDArray[np.uint8], bits: int) -> bytes:
    """Indices as the file's rows, padded to 4 bytes."""
    single = np.unpackbits(levels[..., None], axis=2)[..., -bits:].reshape(len(levels), -1)
    packed = np.packbits(single, axis=1)
    return np.pad(packed, ((0, 0), (0, -packed.shape[1] % 4))).tobytes()


def palettes(bits: int) -> dict[str, NDArray[np.uint8]]:
    """Blue, green, red, 0 by index."""
    ramp = np.arange(1 << bits, dtype=np.uint8)
    whole = np.random.default_rng(bits).integers(0, 256, (1 << bits, 4), dtype=np.uint8)
    black_white = np.array([[0, 0, 0, 0], [255, 255, 255, 0]], np.uint8)
    steps = np.repeat(ramp[:, None], 4, axis=1)
    return {"whole": whole, "two": black_white, "swapped": black_white[::-1], "steps": steps}


@pytest.mark.parametrize("bits", [1, 4, 8])
@pytest.mark.parametrize("name", ["whole", "two", "swapped", "steps"])
@pytest.mark.parametrize("top_down", [False, True])
def test_read_image_indexed_bmp_is_looked_up(bits: int, name: str, top_down: bool) -> None:
    palette = palettes(bits)[name]
    shape = (HEIGHT, WIDTH)
    levels = np.random.default_rng(9).integers(0, len(palette), shape, dtype=np.uint8)
    rows = rows_of(levels if top_down else levels[::-1], bits)
    size_wh = (WIDTH, -HEIGHT if top_down else HEIGHT)
    content = bmp_file(rows, size_wh, bits, colours=len(palette), palette=palette.tobytes())
    assert np.array_equal(read_image(content), read_image(palette[levels][..., 2::-1]))
    if name == "swapped":
        with pytest.raises(ImageError, match="greys in another order than its indices"):
            read_levels(content)
        return
    if (bits, name) == (1, "two"):
        levels = levels * np.uint8(255)
    assert np.array_equal(read_levels(content), levels)


@pytest.mark.parametrize(
    ("bits", "masks"),
    [
        (16, ()),
        (16, (0xF800, 0x7E0, 0x1F)),
        (16, (0x7C00, 0x3E0, 0x1F)),
        (24, ()),
        (32, ()),
        (32, (0xFF0000, 0xFF00, 0xFF)),
        (32, (0xFF000000, 0xFF0000, 0xFF00)),
    ],
)
@pytest.mark.parametrize("top_down", [False, True])
def test_read_image_direct_bmp_agrees_with_another_decoder(
    bits: int, masks: tuple[int, ...], top_down: bool
) -> None:
    row = (WIDTH * bits + 31) // 32 * 4
    rows = np.random.default_rng(bits).integers(0, 256, HEIGHT * row, dtype=np.uint8).tobytes()
    palette = struct.pack(f"<{len(masks)}I", *masks) + bytes(4 if masks else 0)
    size_wh = (WIDTH, -HEIGHT if top_down else HEIGHT)
    compression = 3 if masks else 0
    content = bmp_file(rows, size_wh, bits, compression=compression, palette=palette)
    other = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
    if other is None or masks == (0xFF000000, 0xFF0000, 0xFF00):  # cv2 ignores these masks
        pixels = np.frombuffer(rows, np.uint8).reshape(HEIGHT, WIDTH, 4)[..., :0:-1]
        expected = read_image(pixels if top_down else pixels[::-1])
        assert np.array_equal(read_image(content), expected)
        return
    assert np.abs(read_image(content).astype(int) - read_image(other[..., ::-1])).max() <= 8


def test_read_image_bmp_that_would_take_gigabytes_is_refused() -> None:
    bomb = bmp_file(b"\0\2\0\xff" * 200, (2_000_000, 2000), 8, compression=1, palette=bytes(1024))
    with pytest.raises(ImageError, match="BMP of compression RLE8") as caught:
        read_image(bomb)
    assert caught.value.reason == "unsupported"
    with pytest.raises(ImageError, match="ends before its pixels do") as caught:
        read_image(bmp_file(b"", (2_000_000, 2000), 24))
    assert caught.value.reason == "invalid"


@pytest.mark.parametrize(
    ("bits", "compression", "masks", "match"),
    [
        (4, 2, (), "compression RLE4"),
        (24, 4, (), "compression JPEG"),
        (24, 5, (), "compression PNG"),
        (2, 0, (), "2 bits per pixel"),
        (32, 3, (0x3FF00000, 0xFFC00, 0x3FF), "bit masks"),
    ],
)
def test_read_image_bmp_of_other_kind_is_refused(
    bits: int, compression: int, masks: tuple[int, ...], match: str
) -> None:
    palette = struct.pack(f"<{len(masks)}I", *masks) + bytes(16)
    content = bmp_file(bytes(4000), (9, 9), bits, compression=compression, palette=palette)
    with pytest.raises(ImageError, match=match) as caught:
        read_image(content)
    assert caught.value.reason == "unsupported"


def test_read_image_os2_bmp_is_read() -> None:
    content = encoded(RGB, "BMP")
    head = struct.pack("<2sIIIIHHHH", b"BM", 0, 0, 26, 12, 17, 12, 1, 24)
    assert np.array_equal(read_image(head + content[54:]), read_image(RGB))


def test_read_image_bmp_whose_pixels_start_within_its_header_is_refused() -> None:
    content = bytearray(encoded(RGB, "BMP"))
    for offset in (53, 40, 0):
        content[10] = offset
        with pytest.raises(ImageError, match="ends before its pixels do"):
            read_image(bytes(content))


def test_read_image_bmp_header_without_an_alpha_mask_has_none() -> None:
    pixels = np.dstack([np.full((4, 5, 3), 200, np.uint8), np.full((4, 5), 7, np.uint8)])
    head = struct.pack("<2sIII", b"BM", 66 + pixels.size, 0, 66)
    info = struct.pack("<IiiHHIIiiII", 52, 5, 4, 1, 32, 3, pixels.size, 0, 0, 0, 0)
    masks = struct.pack("<III", 0xFF0000, 0xFF00, 0xFF)
    assert (read_image(head + info + masks + pixels.tobytes()) == 200).all()
