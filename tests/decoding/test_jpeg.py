"""JPEG: the first picture of a file, whatever stands beside it, and files that cost too much."""

from __future__ import annotations

import io
import struct

import cv2
import numpy as np
import pytest
from picturefiles import exif_block
from pictures import GREY, RGB, encoded
from PIL import Image

from magtiles_seg.decoding import read_header
from magtiles_seg.errors import ImageError
from magtiles_seg.image import read_image

SMOOTH = np.add.outer(np.arange(48), np.arange(64)).astype(np.uint8)
COLOUR = np.dstack([SMOOTH, 255 - SMOOTH, SMOOTH // 2])


def segment(code: int, body: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, code, len(body) + 2) + body


def with_segments(content: bytes, *segments: bytes) -> bytes:
    return content[:2] + b"".join(segments) + content[2:]


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 2}])
def test_read_image_jpeg_agrees_with_another_decoder(options: dict[str, object]) -> None:
    for picture in (SMOOTH, COLOUR):
        content = encoded(picture, "JPEG", quality=95, **options)
        other = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_GRAYSCALE)
        assert np.abs(read_image(content).astype(int) - other).max() <= 2


def test_read_image_cmyk_jpeg_agrees_with_its_colours() -> None:
    content = encoded(Image.fromarray(COLOUR).convert("CMYK"), "JPEG", quality=98)
    assert np.abs(read_image(content).astype(int) - read_image(COLOUR)).max() <= 8
    anonymous = content.replace(b"Adobe", b"Unsay")
    with pytest.raises(ImageError, match="four colours and does not say which") as caught:
        read_image(anonymous)
    assert caught.value.reason == "unsupported"


def test_read_image_jpeg_with_profiles_and_comments_is_read() -> None:
    content = encoded(SMOOTH, "JPEG")
    profile = [
        segment(0xE2, b"ICC_PROFILE\0" + bytes([number + 1, 60]) + bytes(65_000))
        for number in range(60)
    ]
    other = [segment(0xFE, b"\xff\xda\xff\xd9"), segment(0xED, b"Photoshop 3.0\0" + bytes(99))]
    assert np.array_equal(read_image(with_segments(content, *profile, *other)), read_image(content))


def test_read_image_first_picture_of_a_file_with_several_is_taken() -> None:
    stream = io.BytesIO()
    first, second = Image.fromarray(SMOOTH), Image.fromarray(255 - SMOOTH)
    first.save(stream, "MPO", save_all=True, append_images=[second])
    content = stream.getvalue()
    assert Image.open(stream).n_frames == 2  # type: ignore[attr-defined]
    assert np.abs(read_image(content).astype(int) - SMOOTH).max() <= 8
    assert np.array_equal(read_image(Image.open(stream)), read_image(content))
    plain = encoded(SMOOTH, "JPEG")
    assert np.array_equal(read_image(plain + encoded(255 - SMOOTH, "JPEG")), read_image(plain))


def test_read_image_jpeg_without_its_end_is_refused_with_the_reason() -> None:
    for cut in (2, 40):
        with pytest.raises(
            ImageError, match="has no end-of-image marker, so part of it may be missing"
        ) as caught:
            read_image(encoded(SMOOTH, "JPEG")[:-cut])
        assert caught.value.reason == "invalid"


def test_read_image_progressive_bomb_is_refused() -> None:
    content = encoded(SMOOTH, "JPEG", progressive=True)
    last = content.rindex(b"\xff\xda")
    bomb = content[:-2] + content[last:-2] * 100 + content[-2:]
    with pytest.raises(ImageError, match="more than 64 scans") as caught:
        read_image(bomb)
    assert caught.value.reason == "unsupported"
    many = with_segments(content, *[segment(0xFE, b"")] * 20_000)
    with pytest.raises(ImageError, match="more than 10,000 segments"):
        read_image(many)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ((0xC3, 8), "lossless or hierarchical"),
        ((0xC1, 12), "12 bits per sample"),
    ],
)
def test_read_image_jpeg_of_other_kind_is_refused(change: tuple[int, int], match: str) -> None:
    content = encoded(GREY, "JPEG")
    at = content.index(b"\xff\xc0")
    changed = content[: at + 1] + bytes([change[0]]) + content[at + 2 : at + 4]
    with pytest.raises(ImageError, match=match) as caught:
        read_image(changed + bytes([change[1]]) + content[at + 5 :])
    assert caught.value.reason == "unsupported"


def test_read_image_jpeg_exif_of_huge_values_costs_nothing() -> None:
    entries = struct.pack("<HHII", 700, 7, 60_000, 8) * 5_000
    block = struct.pack("<2sHIH", b"II", 42, 8, 5_000) + entries
    content = encoded(RGB, "JPEG")
    loaded = with_segments(content, segment(0xE1, b"Exif\0\0" + block))
    assert np.array_equal(read_image(loaded), read_image(content))


def test_read_image_jpeg_orientation_is_that_of_its_first_block() -> None:
    content = encoded(SMOOTH, "JPEG")
    turned = with_segments(content, segment(0xE1, b"Exif\0\0" + exif_block(6)))
    assert np.array_equal(read_image(turned), np.rot90(read_image(content), -1))
    twice = with_segments(turned, segment(0xE1, b"Exif\0\0" + exif_block(3)))
    assert np.array_equal(read_image(twice), read_image(content)[::-1, ::-1])


def test_read_image_jpeg_with_two_frame_headers_is_refused() -> None:
    content = encoded(SMOOTH, "JPEG")
    at = content.index(b"\xff\xc0")
    frame = content[at : at + 4 + struct.unpack_from(">H", content, at + 2)[0] - 2]
    with pytest.raises(ImageError, match="has two frame headers"):
        read_image(content[:at] + frame + content[at:])


def test_read_header_jpeg_takes_as_many_scans_as_are_allowed_and_nothing_twice() -> None:
    content = encoded(COLOUR, "JPEG", progressive=True)
    assert read_header(content).content == content
    scan = content[content.rindex(b"\xff\xda") : -2]
    more = 64 - content.count(b"\xff\xda")
    assert read_header(content[:-2] + scan * more + content[-2:]).format == "JPEG"
    with pytest.raises(ImageError, match="more than 64 scans"):
        read_header(content[:-2] + scan * (more + 1) + content[-2:])
