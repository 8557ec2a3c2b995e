"""The directories of TIFF and EXIF: tags and their values, read within the file's bounds."""

from __future__ import annotations

import struct
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from magtiles_seg.decoding.header import damaged
from magtiles_seg.errors import ImageError

ORIENTATION = 274
_NUMBERS = {1: "u1", 2: "u1", 3: "u2", 4: "u4", 7: "u1", 13: "u4", 16: "u8", 18: "u8"}
"""Field types that hold unsigned numbers or bytes, and their dtypes."""

Tags = dict[int, NDArray[Any]]


@dataclass(frozen=True)
class ByteOrder:
    """How a file's numbers are stored.

    Attributes:
        mark: `"<"` or `">"`, as `struct` writes it.
        big: Whether it is a BigTIFF, whose offsets have 8 bytes.
    """

    mark: str
    big: bool

    def number(self, data: bytes, at: int, code: str) -> int:
        """Return one number of `struct`'s type `code`; damaged where the file ends before it."""
        if at + struct.calcsize(code) > len(data):
            raise damaged("has a directory beyond its end")
        value: int = struct.unpack_from(self.mark + code, data, at)[0]
        return value


def read_byte_order(data: bytes) -> tuple[ByteOrder, int]:
    """Return a TIFF's byte order and the place of its first directory.

    Raises:
        ImageError: It is no TIFF.
    """
    mark = {b"II": "<", b"MM": ">"}.get(data[:2])
    if mark is None or len(data) < 8:
        raise damaged("has a damaged TIFF header")
    order = ByteOrder(mark, big=False)
    version = order.number(data, 2, "H")
    if version == 42:
        return order, order.number(data, 4, "I")
    order = ByteOrder(mark, big=True)
    if version != 43 or order.number(data, 4, "I") != (8 if mark == "<" else 8 << 16):
        raise damaged("has a damaged TIFF header")
    return order, order.number(data, 8, "Q")


def read_directory(
    data: bytes, at: int, order: ByteOrder, wanted: Collection[int]
) -> tuple[Tags, int]:
    """Return the values of the wanted tags of one directory, and the place of the next one.

    Args:
        data: The whole file.
        at: Where the directory starts.
        order: The file's byte order.
        wanted: Tags; all others are passed over unread.

    Raises:
        ImageError: The directory or a wanted value lies beyond the file's end, a wanted tag stands
            there twice or holds no unsigned numbers.
    """
    entry_size, count_code, place_code = (20, "Q", "Q") if order.big else (12, "H", "I")
    count = order.number(data, at, count_code)
    start = at + struct.calcsize(count_code)
    end = start + entry_size * count
    if not 0 < count <= 65535 or end > len(data):
        raise damaged("has a directory beyond its end")
    names = np.dtype({"names": ["tag"], "formats": [order.mark + "u2"], "itemsize": entry_size})
    found = np.frombuffer(data, names, count, start)["tag"]
    tags: Tags = {}
    for index in np.flatnonzero(np.isin(found, list(wanted))).tolist():
        tag = int(found[index])
        if tag in tags:
            raise damaged(f"has the tag {tag} twice")
        tags[tag] = _values(data, start + index * entry_size, order, tag)
    place = end if end + struct.calcsize(place_code) <= len(data) else None
    return tags, 0 if place is None else order.number(data, place, place_code)


def _values(data: bytes, at: int, order: ByteOrder, tag: int) -> NDArray[Any]:
    kind = order.number(data, at + 2, "H")
    count = order.number(data, at + 4, "Q" if order.big else "I")
    if kind not in _NUMBERS or count < 1:
        raise damaged(f"has no number in the tag {tag}")
    dtype = np.dtype(order.mark + _NUMBERS[kind])
    place = at + (12 if order.big else 8)
    if count * dtype.itemsize > (8 if order.big else 4):
        place = order.number(data, place, "Q" if order.big else "I")
    if place + count * dtype.itemsize > len(data):
        raise damaged(f"has the tag {tag} beyond its end")
    return np.frombuffer(data, dtype, count, place)


def exif_orientation(block: bytes) -> int:
    """Return the orientation, 1..8, that an EXIF block tells; 1 where it tells none.

    The block is no part of the pixels: a damaged one is as good as none.
    """
    try:
        order, at = read_byte_order(block.removeprefix(b"Exif\0\0"))
        tags, _ = read_directory(block.removeprefix(b"Exif\0\0"), at, order, {ORIENTATION})
    except ImageError:
        return 1
    return orientation_of(tags)


def orientation_of(tags: Tags) -> int:
    """Return the orientation among tags, 1 where it is absent or none of 1..8."""
    value = int(tags[ORIENTATION][0]) if ORIENTATION in tags else 1
    return value if 1 <= value <= 8 else 1
