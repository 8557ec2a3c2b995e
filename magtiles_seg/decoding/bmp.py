"""BMP: one header of several sizes, a palette, rows."""

from __future__ import annotations

import struct

import numpy as np
from numpy.typing import NDArray

from magtiles_seg.decoding.header import Header, damaged, unsupported

_BITFIELDS = 3
_NAMES = {1: "RLE8", 2: "RLE4", 4: "JPEG", 5: "PNG"}
_MASKS: dict[int, set[tuple[int, ...]]] = {
    16: {(0xF800, 0x7E0, 0x1F), (0x7C00, 0x3E0, 0x1F)},
    32: {
        (0xFF0000, 0xFF00, 0xFF, 0),
        (0xFF0000, 0xFF00, 0xFF, 0xFF000000),
        (0xFF, 0xFF00, 0xFF0000, 0xFF000000),
        (0xFF000000, 0xFF0000, 0xFF00, 0),
        (0xFF000000, 0xFF0000, 0xFF00, 0xFF),
    },
}
"""Where the samples lie, in the layouts that Pillow reads."""


def read_bmp(data: bytes) -> Header:
    """Return what a BMP says of itself.

    Raises:
        ImageError: It is damaged, compressed, or of unusual bits per sample.
    """
    if len(data) < 26:
        raise damaged("ends within its header")
    offset, size = struct.unpack_from("<II", data, 10)
    if size not in (12, 40, 52, 56, 64, 108, 124) or len(data) < 14 + size:
        raise damaged(f"has a header of {size} bytes", "a header of a known size")
    if size == 12:
        width, signed, bits = struct.unpack_from("<HH2xH", data, 18)
        compression, colours = 0, 0
    else:
        width, signed, bits, compression, colours = struct.unpack_from("<ii2xHI12xI", data, 18)
    height = abs(signed)
    _check_kind(data, size, bits, compression)
    stride = (width * bits + 31) // 32 * 4
    if width > 0 and not 14 + size <= offset <= len(data) - stride * height:
        raise damaged("ends before its pixels do")
    content = data
    if bits <= 8:
        palette = _palette(data[14 + size : offset], 3 if size == 12 else 4, colours, bits)
        content = _indexed(data[offset : offset + stride * height], width, signed, bits, palette)
    return Header(format="BMP", height=height, width=width, content=content)


def _check_kind(data: bytes, size: int, bits: int, compression: int) -> None:
    if bits not in (1, 4, 8, 16, 24, 32):
        raise unsupported(f"is a BMP of {bits} bits per pixel", "1, 4, 8, 16, 24 or 32")
    if compression == _BITFIELDS and bits in _MASKS and size != 64 and len(data) >= 70:
        masks: tuple[int, ...] = struct.unpack_from("<III", data, 54)
        if bits == 32:
            masks += struct.unpack_from("<I", data, 66) if size >= 56 else (0,)
        if masks not in _MASKS[bits]:
            raise unsupported(f"has the bit masks {[hex(m) for m in masks]}", "usual ones")
    elif compression:
        name = _NAMES.get(compression, str(compression))
        raise unsupported(f"is a BMP of compression {name} and {bits} bits", "an uncompressed one")


def _palette(data: bytes, entry_size: int, colours: int, bits: int) -> NDArray[np.uint8]:
    """Return (2 ** bits, 4) uint8: blue, green, red, 0; absent colours are black."""
    full = 1 << bits
    entries = np.frombuffer(data, np.uint8)
    entries = entries[: min(colours or full, full, len(data) // entry_size) * entry_size]
    palette = np.zeros((full, 4), np.uint8)
    palette[: len(entries) // entry_size, :3] = entries.reshape(-1, entry_size)[:, :3]
    return palette


def _indexed(rows: bytes, width: int, height: int, bits: int, palette: NDArray[np.uint8]) -> bytes:
    """Return a BMP with a whole palette, of 8 bits in place of 4.

    Of a palette of other lengths or depths Pillow may think that it were levels of grey.
    """
    if bits == 4:
        packed = np.frombuffer(rows, np.uint8).reshape(abs(height), -1)
        levels = np.stack([packed >> 4, packed & 15], axis=2).reshape(abs(height), -1)
        padded = np.zeros((abs(height), (width + 3) // 4 * 4), np.uint8)
        padded[:, :width] = levels[:, :width]
        rows, bits = padded.tobytes(), 8
        palette = np.concatenate([palette, np.zeros((240, 4), np.uint8)])
    table = palette.tobytes()
    offset = 54 + len(table)
    start = struct.pack("<2sIII", b"BM", offset + len(rows), 0, offset)
    header = struct.pack(
        "<IiiHHIIiiII", 40, width, height, 1, bits, 0, len(rows), 0, 0, len(palette), 0
    )
    return start + header + table + rows
