"""JPEG: segments. Tables and scans of the first picture go to the decoder, profiles do not."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator

from magtiles_seg.decoding.header import Header, damaged, unsupported
from magtiles_seg.decoding.ifd import exif_orientation

_MAX_SEGMENTS = 10_000
_MAX_SCANS = 64
"""Each scan of a progressive file costs a pass over the whole picture; encoders write about ten."""

_SOS, _EOI, _APP0, _APP1, _ADOBE = 0xDA, 0xD9, 0xE0, 0xE1, 0xEE
_TABLES = (0xDB, 0xC4, 0xCC, 0xDD)
"""Quantization and Huffman tables, arithmetic conditioning, restart interval."""
_READ_FRAMES = (0xC0, 0xC1, 0xC2, 0xC9, 0xCA)
_FRAMES = tuple(code for code in range(0xC0, 0xD0) if code not in (0xC4, 0xC8, 0xCC))
_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")


def read_jpeg(data: bytes) -> Header:
    """Return what a JPEG says of itself; a second picture behind the first is left out.

    Raises:
        ImageError: It is damaged, ends before its first picture does, or is lossless, hierarchical
            or of other than 8 bits.
    """
    head: list[bytes] = [b"\xff\xd8"]
    codes: list[int] = []
    frame, orientation, first_scan = b"", 1, len(data)
    for code, start, end in _segments(data):
        codes.append(code)
        if len(codes) > _MAX_SEGMENTS:
            raise damaged(f"has more than {_MAX_SEGMENTS:,} segments", "fewer")
        body = data[start + 4 : end]
        if code in _FRAMES:
            _check_frame(code, body, frame)
            frame = body
        if code == _SOS:
            first_scan = min(first_scan, start)
            _check_scan(codes, frame)
        if code == _APP1 and body.startswith(b"Exif\0\0") and orientation == 1:
            orientation = exif_orientation(body)
        if start < first_scan and _makes_pixels(code, body):
            head.append(data[start:end])
    if _SOS not in codes:
        raise damaged("has no scan")
    height, width, components = struct.unpack_from(">xHHB", frame)
    if components == 4 and _ADOBE not in [part[1] for part in head]:
        raise unsupported("has four colours and does not say which", "an Adobe marker")
    content = b"".join([*head, data[first_scan:end]])
    return Header(
        format="JPEG",
        height=height,
        width=width,
        content=content,
        orientation=orientation,
        lossy="JPEG",
    )


def _makes_pixels(code: int, body: bytes) -> bool:
    if code in (_APP0, _ADOBE):  # what they say of the colours
        return body.startswith((b"JFIF\0", b"Adobe"))
    return code in (*_FRAMES, *_TABLES)


def _check_scan(codes: list[int], frame: bytes) -> None:
    if not frame:
        raise damaged("has a scan before its frame header")
    if codes.count(_SOS) > _MAX_SCANS:
        raise unsupported(f"has more than {_MAX_SCANS} scans", "a usual progressive JPEG")


def _check_frame(code: int, body: bytes, former: bytes) -> None:
    if former:
        raise damaged("has two frame headers")
    if len(body) < 6 or len(body) != 6 + 3 * body[5]:
        raise damaged("has a damaged frame header")
    if code not in _READ_FRAMES:
        raise unsupported("is a lossless or hierarchical JPEG", "a baseline or progressive one")
    if body[0] != 8:
        raise unsupported(f"is a JPEG of {body[0]} bits per sample", "8 bits")
    if body[5] not in (1, 3, 4):
        raise unsupported(f"is a JPEG of {body[5]} components", "1, 3 or 4")


def _segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield code, start and end of each segment; EOI is the last."""
    at = 2
    while True:
        found = _MARKER.search(data, at)
        if found is None:
            raise damaged("has no end-of-image marker, so part of it may be missing")
        start, code = found.start(), data[found.end() - 1]
        if code == _EOI:
            yield code, start, start + 2
            return
        if start + 4 > len(data):
            raise damaged("ends within a segment")
        length = struct.unpack_from(">H", data, start + 2)[0]
        if length < 2 or start + 2 + length > len(data):
            raise damaged("ends within a segment")
        at = start + 2 + length
        yield code, start, at
