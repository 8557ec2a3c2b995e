"""PNG: chunks. Only those that make the pixels go to the decoder, so no other can be a bomb."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Sequence
from typing import TypeAlias

from magtiles_seg.decoding.header import Header, damaged, several, unsupported
from magtiles_seg.decoding.ifd import exif_orientation

Buffer: TypeAlias = "bytes | memoryview"

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PIXELS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT")
_DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
"""Bits per sample that each colour type allows."""

_SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
_WHOLE = ((0, 0, 1, 1),)
_INTERLACED = (
    *((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4)),
    *((2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)),
)
"""First row and column, and steps between rows and columns, of each pass."""
_BLOCK_BYTES = 1 << 20


def read_png(data: bytes) -> Header:
    """Return what a PNG says of itself.

    Raises:
        ImageError: It is damaged, animated, or of a kind that Pillow reads wrongly.
    """
    if not data.startswith(_SIGNATURE):
        raise damaged("has a damaged header")
    chunks = _chunks(data)
    name, start = next(chunks, (b"", b""))
    if name != b"IHDR" or len(start) != 13:
        raise damaged("has a damaged header")
    width, height, depth, colour = struct.unpack_from(">IIBB", start)
    if depth not in _DEPTHS.get(colour, ()):
        raise damaged(
            f"has {depth} bits per sample of colour type {colour}", "a kind of the standard"
        )
    limit = 10_000 + height * width // 256
    kept, orientation = [(name, start)], 1
    for number, (name, body) in enumerate(chunks):
        if number > limit:
            raise damaged(f"has more than {limit:,} chunks", "fewer for its size")
        if name == b"acTL" and len(body) == 8 and (frames := struct.unpack_from(">I", body)[0]) > 1:
            raise several(frames)
        if name == b"eXIf" and orientation == 1:
            orientation = exif_orientation(bytes(body))
        elif name == b"tRNS":
            kept.append((name, _transparent(bytes(body), depth, colour)))
        elif name in _PIXELS:
            kept.append((name, body))
    return Header(
        format="PNG",
        height=height,
        width=width,
        content=_written(kept),
        orientation=orientation,
        high_byte=depth == 16 and colour != 0,
    )


def check_rows(data: bytes) -> None:
    """Refuse a PNG whose compressed data end, by their own words, before its last row.

    Args:
        data: What `read_png` returned, of a size that may be decoded.

    Raises:
        ImageError: Rows are missing; Pillow would leave them black.
    """
    width, height, depth, colour, interlaced = struct.unpack_from(">IIBB2xB", data, 16)
    missing = 0
    for row, column, down, across in _INTERLACED if interlaced else _WHOLE:
        rows, columns = len(range(row, height, down)), len(range(column, width, across))
        missing += rows * (1 + (columns * depth * _SAMPLES[colour] + 7) // 8) if columns else 0
    inflate = zlib.decompressobj()
    for name, body in _chunks(data):
        rest: Buffer = body if name == b"IDAT" else b""
        while rest and missing > 0:
            missing -= len(inflate.decompress(rest, _BLOCK_BYTES))
            rest = inflate.unconsumed_tail
    missing -= len(inflate.flush(_BLOCK_BYTES)) if missing > 0 else 0
    if missing > 0:
        raise damaged("ends before its last row")


def _chunks(data: bytes) -> Iterator[tuple[bytes, memoryview]]:
    """Yield names and bodies up to the end; damaged where one that makes pixels is."""
    view, at = memoryview(data), len(_SIGNATURE)
    while at + 12 <= len(data):
        length, name = struct.unpack_from(">I4s", data, at)
        end = at + 12 + length
        critical = not name[0] & 0x20  # upper case: the pixels cannot be understood without it
        if name == b"IEND" or (end > len(data) and not critical):
            return
        if critical or name == b"tRNS":
            if end > len(data):
                raise damaged(f"ends within its chunk {name!r}")
            if name not in _PIXELS:
                raise unsupported(f"has the unknown chunk {name!r}", "chunks of the PNG standard")
            if zlib.crc32(view[at + 4 : end - 4]) != struct.unpack_from(">I", data, end - 4)[0]:
                raise damaged(f"has a wrong checksum in its chunk {name!r}")
        yield name, view[at + 8 : end - 4]
        at = end


def _transparent(body: bytes, depth: int, colour: int) -> bytes:
    """Return the transparent colour as Pillow wants it: on the scale of the pixels it returns."""
    if colour == 2 and depth == 16:
        raise unsupported("has 16-bit colour with a transparent colour", "an alpha channel")
    if colour == 0 and depth < 8 and len(body) == 2:
        highest = (1 << depth) - 1
        return struct.pack(">H", (struct.unpack(">H", body)[0] & highest) * 255 // highest)
    return body


def _written(chunks: Sequence[tuple[bytes, Buffer]]) -> bytes:
    parts: list[Buffer] = [_SIGNATURE]
    for name, body in [*chunks, (b"IEND", b"")]:
        checksum = zlib.crc32(body, zlib.crc32(name))
        parts += [struct.pack(">I", len(body)), name, body, struct.pack(">I", checksum)]
    return b"".join(parts)
