"""Grey levels from a camera's pixels: Mono8, 10, 12 and 16, packed or not, become (n, W) uint8.

| format | bits per pixel | in the buffer |
|---|---|---|
| `Mono8` | 8 | |
| `Mono10`, `Mono12`, `Mono14`, `Mono16` | 16 | little-endian, the value in the low bits |
| `Mono10p`, `Mono12p` | 10, 12 | one stream of bits, the lowest first (GenICam PFNC) |
| `Mono10Packed`, `Mono12Packed` | 12 | two pixels in three bytes (GigE Vision) |

More than 8 bits are read by the rule of `magtiles_seg.image`: shifted up to 16 bits, divided by
257, rounded. A Mono16 frame without a value above 4095 is refused until a brighter one has come: 12
bits in 16 would come out black.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from magtiles_seg.errors import DataError

if TYPE_CHECKING:
    from numpy.typing import NDArray

_UNSCALED_MAX = 4095
_Words: TypeAlias = "NDArray[np.uint16]"


def _words(data: NDArray[np.uint8]) -> _Words:
    return np.ascontiguousarray(data).view("<u2").astype(np.uint16, copy=False)


def _stream_12(data: NDArray[np.uint8]) -> _Words:
    low, middle, high = (data[:, part::3].astype(np.uint16) for part in range(3))
    return _woven(low | (middle & 15) << 8, middle >> 4 | high << 4)


def _stream_10(data: NDArray[np.uint8]) -> _Words:
    a, b, c, d, e = (data[:, part::5].astype(np.uint16) for part in range(5))
    return _woven(a | (b & 3) << 8, b >> 2 | (c & 15) << 6, c >> 4 | (d & 63) << 4, d >> 6 | e << 2)


def _pairs_12(data: NDArray[np.uint8]) -> _Words:
    first, low, second = (data[:, part::3].astype(np.uint16) for part in range(3))
    return _woven(first << 4 | low & 15, second << 4 | low >> 4)


def _pairs_10(data: NDArray[np.uint8]) -> _Words:
    first, low, second = (data[:, part::3].astype(np.uint16) for part in range(3))
    return _woven(first << 2 | low & 3, second << 2 | low >> 4 & 3)


def _woven(*columns: NDArray[Any]) -> _Words:
    return np.stack(columns, axis=2).reshape(len(columns[0]), -1).astype(np.uint16, copy=False)


@dataclass(frozen=True)
class _Format:
    """How a format is stored: bits per pixel in the buffer, bits of its value, how it is read."""

    stored_bits: int
    value_bits: int
    read: Callable[[NDArray[np.uint8]], _Words] | None


FORMATS = {
    "Mono8": _Format(8, 8, None),
    "Mono10": _Format(16, 10, _words),
    "Mono12": _Format(16, 12, _words),
    "Mono14": _Format(16, 14, _words),
    "Mono16": _Format(16, 16, _words),
    "Mono10p": _Format(10, 10, _stream_10),
    "Mono12p": _Format(12, 12, _stream_12),
    "Mono10Packed": _Format(12, 10, _pairs_10),
    "Mono12Packed": _Format(12, 12, _pairs_12),
}
"""What is read, by GenICam's names."""


class Levels:
    """Reads the lines of one camera.

    Attributes:
        line_bytes: Bytes per line, without padding.
    """

    def __init__(self, pixel_format: str, width_px: int) -> None:
        """Prepare for a format.

        Args:
            pixel_format: GenICam's name.
            width_px: Pixels per line.

        Raises:
            DataError: The format is none of grey, or lines of this width end inside a byte.
        """
        if pixel_format not in FORMATS:
            raise DataError(
                f"the camera delivers {pixel_format}; expected one of {', '.join(FORMATS)}: set "
                "PixelFormat, as with --pixel-format Mono8"
            )
        self.pixel_format, self._format = pixel_format, FORMATS[pixel_format]
        self._width_px = width_px
        bits = width_px * self._format.stored_bits
        if bits % 8:
            raise DataError(
                f"lines of {width_px} px in {pixel_format} are {bits} bits, which are no whole "
                "bytes: choose a width that is a multiple of 4"
            )
        self.line_bytes = bits // 8
        shift = 16 - self._format.value_bits
        values = np.arange(1 << self._format.value_bits, dtype=np.uint32) << shift
        self._levels = np.rint(values / 257).astype(np.uint8)
        self._bright = False

    def unpacked(self) -> Levels:
        """Return those of the same values in 16 bits each: harvesters unpacks."""
        return Levels(f"Mono{self._format.value_bits}", self._width_px)

    def read(self, data: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return (n, W) uint8, the caller's own, of (n, line_bytes) uint8.

        Raises:
            DataError: A value does not fit the format, or Mono16 seems to hold 12 bits.
        """
        if self._format.read is None:
            return data.copy()
        values = self._format.read(data)
        brightest = int(values.max(initial=0))
        if brightest >= len(self._levels):
            raise DataError(
                f"the camera delivered the value {brightest} in {self.pixel_format}; expected "
                f"less than {len(self._levels)}: its values stand in the high bits; set "
                "PixelFormat to Mono16 or Mono8"
            )
        self._bright = self._bright or brightest > _UNSCALED_MAX
        if self.pixel_format == "Mono16" and brightest and not self._bright:
            raise DataError(
                f"the camera delivers Mono16 with no value above {brightest}; expected values that "
                "fill 0..65535; it looks like 12 bits in 16: set PixelFormat to Mono12 or Mono8"
            )
        return self._levels[values]
