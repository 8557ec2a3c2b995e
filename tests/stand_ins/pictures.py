"""Small pictures, and files of them, for the tests of what is read and what is refused."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SEEDED = np.random.default_rng(7)
GREY = SEEDED.integers(0, 256, (12, 17), dtype=np.uint8)
RGB = SEEDED.integers(0, 256, (12, 17, 3), dtype=np.uint8)
RGBA = SEEDED.integers(0, 256, (12, 17, 4), dtype=np.uint8)
GREY_16 = SEEDED.integers(0, 65536, (12, 17), dtype=np.uint16)


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
