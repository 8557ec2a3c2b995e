"""WebP: RIFF chunks. The canvas is allocated when the file is opened: its size is read before."""

from __future__ import annotations

import struct

from magtiles_seg.decoding.header import Header, damaged, several
from magtiles_seg.decoding.ifd import exif_orientation

_MAX_CHUNKS = 1000


def read_webp(data: bytes) -> Header:
    """Return what a WebP says of itself.

    Raises:
        ImageError: It is damaged or animated.
    """
    if len(data) < 30 or data[8:12] != b"WEBP":
        raise damaged("has a damaged header")
    chunks = _chunks(data)
    sizes = {_size(name, body) for name, body in chunks if name in (b"VP8X", b"VP8 ", b"VP8L")}
    names = [name for name, _ in chunks]
    if b"ANIM" in names or b"ANMF" in names:
        raise several(names.count(b"ANMF"))
    if len(sizes) != 1 or names.count(b"VP8 ") + names.count(b"VP8L") != 1:
        raise damaged("contradicts itself about its size")
    width, height = sizes.pop()
    blocks = [body for name, body in chunks if name == b"EXIF"]
    orientation = exif_orientation(blocks[0]) if blocks else 1
    return Header(
        format="WEBP",
        height=height,
        width=width,
        content=data,
        orientation=orientation,
        lossy="lossy WebP" if b"VP8 " in names else "",
    )


def _chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    found: list[tuple[bytes, bytes]] = []
    at = 12
    end = min(len(data), 8 + struct.unpack_from("<I", data, 4)[0])
    while at + 8 <= end:
        name, length = struct.unpack_from("<4sI", data, at)
        if at + 8 + length > len(data):
            raise damaged(f"ends within its chunk {name!r}")
        if len(found) == _MAX_CHUNKS:
            raise damaged(f"has more than {_MAX_CHUNKS:,} chunks", "fewer")
        body = data[at + 8 : at + 8 + length] if name == b"EXIF" else data[at + 8 : at + 18]
        found.append((name, body))
        at += 8 + length + length % 2
    return found


def _size(name: bytes, body: bytes) -> tuple[int, int]:
    """Return width and height that the canvas (VP8X) or the bit stream tells."""
    if len(body) < (5 if name == b"VP8L" else 10):
        raise damaged(f"ends within its chunk {name!r}")
    if name == b"VP8X":
        width, height = (int.from_bytes(body[at : at + 3], "little") + 1 for at in (4, 7))
        return width, height
    if name == b"VP8L":
        packed = int.from_bytes(body[1:5], "little")
        return (packed & 0x3FFF) + 1, (packed >> 14 & 0x3FFF) + 1
    if body[3:6] != b"\x9d\x01\x2a":
        raise damaged("has a damaged header")
    width, height = struct.unpack_from("<HH", body, 6)
    return width & 0x3FFF, height & 0x3FFF
