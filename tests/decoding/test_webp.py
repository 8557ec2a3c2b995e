"""WebP: what the canvas and the bit stream say, before anything is allocated."""

from __future__ import annotations

import struct

import cv2
import numpy as np
import pytest
from picturefiles import exif_block
from pictures import RGB, RGBA, encoded
from PIL import Image

from magtiles_seg.errors import ImageError
from magtiles_seg.image import read_image, read_levels


def riff(*chunks: tuple[bytes, bytes]) -> bytes:
    body = b"WEBP" + b"".join(
        name + struct.pack("<I", len(data)) + data + bytes(len(data) % 2) for name, data in chunks
    )
    return b"RIFF" + struct.pack("<I", len(body)) + body


def test_read_image_lossless_webp_is_unchanged() -> None:
    assert np.array_equal(read_image(encoded(RGB, "WEBP", lossless=True)), read_image(RGB))
    content = encoded(RGBA, "WEBP", lossless=True, exact=True)
    assert np.array_equal(read_image(content), read_image(RGBA))


def test_read_image_lossy_webp_agrees_with_another_decoder() -> None:
    content = encoded(np.tile(RGB, (4, 4, 1)), "WEBP", quality=90)
    other = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
    assert other is not None
    assert np.abs(read_image(content).astype(int) - read_image(other[..., ::-1])).max() <= 2


@pytest.mark.parametrize("lossless", [False, True])
def test_read_image_webp_with_profile_and_exif_is_read(lossless: bool) -> None:
    options = {"lossless": lossless, "icc_profile": bytes(2 << 20), "exif": exif_block(6)}
    content = encoded(RGB, "WEBP", **options)
    plain = read_image(encoded(RGB, "WEBP", lossless=lossless))
    assert np.array_equal(read_image(content), np.rot90(plain, -1))


def test_read_image_webp_of_a_huge_canvas_is_refused_before_it_is_allocated() -> None:
    body = encoded(RGB, "WEBP")[20:]
    size = (16383).to_bytes(3, "little") * 2
    with pytest.raises(ImageError, match="contradicts itself about its size"):
        read_image(riff((b"VP8X", bytes(4) + size), (b"VP8 ", body)))
    frame = body[:6] + struct.pack("<HH", 16383, 16383) + body[10:]
    with pytest.raises(ImageError, match="16383 x 16383") as caught:
        read_image(riff((b"VP8 ", frame)))
    assert caught.value.reason == "too_large"


def test_read_image_webp_of_very_many_chunks_is_refused() -> None:
    with pytest.raises(ImageError, match="more than 1,000 chunks"):
        read_image(riff(*[(b"junk", b"")] * 2000))


def test_read_image_animated_webp_is_refused() -> None:
    frames = [Image.fromarray(RGB), Image.fromarray(255 - RGB), Image.fromarray(RGB // 2)]
    content = encoded(frames[0], "WEBP", save_all=True, append_images=frames[1:])
    for read in (read_image, read_levels):
        with pytest.raises(ImageError, match="holds 3 frames or pages") as caught:
            read(content)
        assert caught.value.reason == "unsupported"
