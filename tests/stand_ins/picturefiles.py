"""Picture files written field by field, for what no library writes."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

Values = int | Sequence[int] | bytes


def tiff_tags(levels: NDArray[np.generic], **changes: Values) -> dict[int, Values]:
    """The tags of an uncompressed picture, (H, W) or (H, W, C); `t262=0` changes one."""
    height, width = levels.shape[:2]
    samples = levels.shape[2] if levels.ndim == 3 else 1
    tags: dict[int, Values] = {
        256: width,
        257: height,
        258: [levels.dtype.itemsize * 8] * samples,
        259: 1,
        262: 2 if samples == 3 else 1,
        277: samples,
        278: height,
    }
    return tags | {int(name[1:]): value for name, value in changes.items()}


def tiff_file(
    tags: Mapping[int, Values], pixels: bytes, *, order: str = "<", following: int = 0
) -> bytes:
    """A classic TIFF of one strip, whose tags may contradict it."""
    tags = {273: 8, 279: len(pixels), **tags}
    at = 8 + len(pixels) + len(pixels) % 2
    entries, values = b"", b""
    values_at = at + 6 + 12 * len(tags)
    for tag, value in sorted(tags.items()):
        numbers = [value] if isinstance(value, int) else list(value)
        kind, code = (7, "B") if isinstance(value, bytes) else (4, "I")
        if kind == 4 and max(numbers) < 65536:
            kind, code = 3, "H"
        stored = struct.pack(f"{order}{len(numbers)}{code}", *numbers)
        place = stored.ljust(4, b"\0")
        if len(stored) > 4:
            place = struct.pack(order + "I", values_at + len(values))
            values += stored
        entries += struct.pack(order + "HHI", tag, kind, len(numbers)) + place
    mark = b"II" if order == "<" else b"MM"
    start = mark + struct.pack(order + "HI", 42, at) + pixels + bytes(len(pixels) % 2)
    return (
        start
        + struct.pack(order + "H", len(tags))
        + entries
        + struct.pack(order + "I", following)
        + values
    )


def png_file(*chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG of these chunks; IEND is added."""
    body = b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in (*chunks, (b"IEND", b""))
    )
    return b"\x89PNG\r\n\x1a\n" + body


def ihdr(width: int, height: int, depth: int = 8, colour: int = 0) -> tuple[bytes, bytes]:
    return b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)


def idat(rows: NDArray[np.uint8]) -> tuple[bytes, bytes]:
    """Unfiltered rows, (H, bytes) uint8."""
    return b"IDAT", zlib.compress(np.insert(rows, 0, 0, axis=1).tobytes())


def bmp_file(
    rows: bytes,
    size_wh: tuple[int, int],
    bits: int,
    *,
    compression: int = 0,
    colours: int = 0,
    palette: bytes = b"",
) -> bytes:
    """A BMP with the usual header; a negative height is from the top down."""
    offset = 54 + len(palette)
    head = struct.pack("<2sIII", b"BM", offset + len(rows), 0, offset)
    info = struct.pack(
        "<IiiHHIIiiII", 40, *size_wh, 1, bits, compression, len(rows), 0, 0, colours, 0
    )
    return head + info + palette + rows


def exif_block(orientation: int) -> bytes:
    return struct.pack("<2sHIHHHIII", b"II", 42, 8, 1, 274, 3, 1, orientation, 0)
