"""PNG: every kind of the standard against its definition, and chunks that are bombs."""

from __future__ import annotations

import struct
import zlib

import numpy as np
import pytest
from numpy.typing import NDArray
from picturefiles import exif_block, idat, ihdr, png_file
from pictures import GREY, encoded
from PIL import ImageCms

from magtiles_seg.errors import ImageError
from magtiles_seg.image import read_image, read_levels

HEIGHT, WIDTH = 9, 13
KINDS = [
    *((0, bits, 1) for bits in (1, 2, 4, 8, 16)),
    *((3, bits, 1) for bits in (1, 2, 4, 8)),
    *((colour, bits, n) for colour, n in ((2, 3), (4, 2), (6, 4)) for bits in (8, 16)),
]


def packed(levels: NDArray[np.int64], bits: int) -> NDArray[np.uint8]:
    """(H, N) levels as rows of bytes."""
    if bits == 16:
        return levels.astype(">u2").view(np.uint8)
    single = np.unpackbits(levels.astype(np.uint8)[..., None], axis=2)[..., -bits:]
    return np.packbits(single.reshape(len(levels), -1), axis=1)


@pytest.mark.parametrize(("colour", "bits", "samples"), KINDS)
@pytest.mark.parametrize("keyed", [False, True])
def test_read_image_png_of_every_kind_is_the_truth(
    colour: int, bits: int, samples: int, keyed: bool
) -> None:
    random, highest = np.random.default_rng(bits), (1 << bits) - 1
    levels = random.integers(0, highest + 1, (HEIGHT, WIDTH, samples))
    levels[0, 0] = highest
    alpha = levels[..., -1] / highest if samples in (2, 4) else np.ones((HEIGHT, WIDTH))
    rgb = levels[..., :3] / highest if samples >= 3 else levels[..., :1].repeat(3, 2) / highest
    chunks = [ihdr(WIDTH, HEIGHT, bits, colour)]
    if colour == 3:
        palette = random.integers(0, 256, (highest + 1, 3), dtype=np.uint8)
        chunks.append((b"PLTE", palette.tobytes()))
        rgb = palette[levels[..., 0]] / 255
    if keyed and colour == 3:
        opacity = random.integers(0, 256, highest + 1, dtype=np.uint8)
        chunks.append((b"tRNS", opacity.tobytes()))
        alpha = opacity[levels[..., 0]] / 255
    elif keyed and colour in (0, 2):
        chunks.append((b"tRNS", levels[3, 3].astype(">u2").tobytes()))
        alpha = (levels != levels[3, 3]).any(axis=2).astype(float)
    content = png_file(*chunks, idat(packed(levels.reshape(HEIGHT, -1), bits)))
    if keyed and (colour, bits) == (2, 16):
        with pytest.raises(ImageError, match="16-bit colour with a transparent colour"):
            read_image(content)
        return
    expected = rgb @ [0.299, 0.587, 0.114] * alpha * 255
    most = 0.51 if samples == 1 and not (keyed and colour == 3) else 1.5
    assert np.abs(read_image(content) - expected).max() <= most
    if colour == 3:
        assert np.array_equal(read_levels(content), levels[..., 0])


def test_read_image_16_bit_colour_that_fills_8_to_12_bits_is_refused() -> None:
    deep = np.random.default_rng(0).integers(0, 4096, (HEIGHT, WIDTH * 3))
    for levels in (deep, deep // 16):
        content = png_file(ihdr(WIDTH, HEIGHT, 16, 2), idat(packed(levels, 16)))
        with pytest.raises(ImageError, match="16-bit colour but no value above 4095") as caught:
            read_image(content)
        assert caught.value.reason == "invalid"


def test_read_image_png_with_a_large_colour_profile_is_read() -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    content = encoded(GREY, icc_profile=profile + np.random.default_rng(0).bytes(3 << 20))
    assert np.array_equal(read_image(content), GREY)


def test_read_image_png_interlaced_or_with_gamma_is_read() -> None:
    gamma = (b"gAMA", struct.pack(">I", 45455))
    content = png_file(ihdr(17, 12), gamma, idat(GREY))
    assert np.array_equal(read_image(content), GREY)
    one = bytearray(ihdr(1, 1)[1])
    one[12] = 1
    content = png_file((b"IHDR", bytes(one)), idat(GREY[:1, :1]))
    assert read_image(content).tolist() == GREY[:1, :1].tolist()


@pytest.mark.parametrize("name", [b"zTXt", b"iCCP"])
def test_read_image_png_with_a_compressed_bomb_beside_its_pixels_is_read(name: bytes) -> None:
    bomb = b"name\0\0" + zlib.compress(bytes(64 << 20))
    bombs = [(name, bomb)] * 20
    assert np.array_equal(read_image(png_file(ihdr(17, 12), *bombs, idat(GREY), *bombs)), GREY)


def test_read_image_png_of_very_many_chunks_is_refused() -> None:
    content = png_file(ihdr(17, 12), *[(b"IDAT", b"")] * 20_000)
    with pytest.raises(ImageError, match="more than 10,000 chunks"):
        read_image(content)


def test_read_image_png_with_wrong_checksum_is_refused() -> None:
    content = bytearray(encoded(GREY))
    content[-20] ^= 1
    with pytest.raises(ImageError, match="wrong checksum in its chunk b'IDAT'"):
        read_image(bytes(content))


def test_read_image_png_with_unknown_critical_chunk_is_refused() -> None:
    with pytest.raises(ImageError, match="unknown chunk b'CgBI'") as caught:
        read_image(png_file(ihdr(17, 12), (b"CgBI", b"1234"), idat(GREY)))
    assert caught.value.reason == "unsupported"


def test_read_image_exif_directory_of_huge_values_costs_nothing() -> None:
    entries = struct.pack("<HHII", 700, 7, 8 << 20, 8) * 60_000
    block = struct.pack("<2sHIH", b"II", 42, 8, 60_000) + entries + bytes(8 << 20)
    assert np.array_equal(read_image(png_file(ihdr(17, 12), (b"eXIf", block), idat(GREY))), GREY)


def test_read_image_damaged_exif_is_as_good_as_none() -> None:
    for block in (b"", b"II*\0", exif_block(6)[:12], exif_block(9), b"junk" * 9):
        content = png_file(ihdr(17, 12), (b"eXIf", block), idat(GREY))
        assert np.array_equal(read_image(content), GREY)


def test_read_image_animated_png_of_one_frame_is_read() -> None:
    content = png_file(ihdr(17, 12), (b"acTL", struct.pack(">II", 1, 0)), idat(GREY))
    assert np.array_equal(read_image(content), GREY)
