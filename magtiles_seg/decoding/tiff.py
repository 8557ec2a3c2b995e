"""TIFF: a table of tags, by which what Pillow would read wrongly is refused; libtiff's errors."""

from __future__ import annotations

import ctypes
import functools
import re
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from magtiles_seg.decoding.header import Header, damaged, several, unsupported
from magtiles_seg.decoding.ifd import (
    ORIENTATION,
    ByteOrder,
    Tags,
    orientation_of,
    read_byte_order,
    read_directory,
)
from magtiles_seg.errors import ImageError

_SUBFILE, _OLD_SUBFILE, _WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC = (
    *(254, 255, 256, 257, 258, 259, 262),
)
_FILL_ORDER, _DESCRIPTION, _STRIPS, _SAMPLES, _ROWS, _STRIP_BYTES, _PLANAR = (
    *(266, 270, 273, 277, 278, 279, 284),
)
_FAX_3, _FAX_4, _PREDICTOR, _COLOUR_MAP, _TILE_WIDTH, _TILE_HEIGHT, _TILES, _TILE_BYTES = (
    *(292, 293, 317, 320, 322, 323, 324, 325),
)
_INK_SET, _EXTRA, _FORMAT, _JPEG_TABLES, _SUBSAMPLING, _DEPTH = 332, 338, 339, 347, 530, 32997

LAYOUT_TAGS = frozenset(
    (_BITS, _COMPRESSION, _PHOTOMETRIC, _FILL_ORDER, _SAMPLES, _PLANAR, _PREDICTOR, _COLOUR_MAP)
) | {_INK_SET, _EXTRA, _FORMAT, _DEPTH}
"""The tags that say what a pixel's bits mean."""
_KEPT = {_STRIPS, _ROWS, _STRIP_BYTES, _FAX_3, _FAX_4, _TILE_WIDTH, _TILE_HEIGHT, _TILES}
_KEPT |= {_TILE_BYTES, _JPEG_TABLES, _SUBSAMPLING, _WIDTH, _HEIGHT} | LAYOUT_TAGS
_READ = _KEPT | {_SUBFILE, _OLD_SUBFILE, _DESCRIPTION, ORIENTATION}

_NONE, _JPEG = 1, 7
_COMPRESSIONS = {_NONE, 2, 3, 4, 5, _JPEG, 8, 32773, 32946, 50000}
_PREDICTED = {5, 8, 32946, 50000}
_GREY, _RGB, _PALETTE, _CMYK, _YCBCR = (0, 1), 2, 3, 5, 6
_LAYOUTS = {
    0: (1, (1, 2, 4, 8, 16)),
    1: (1, (1, 2, 4, 8, 16)),
    _RGB: (3, (8, 16)),
    _PALETTE: (1, (1, 2, 4, 8)),
    _CMYK: (4, (8, 16)),
    _YCBCR: (3, (8,)),
}
"""Photometric interpretation: colours a pixel, and bits that a sample may have."""
_EXTRA_ALLOWED = {(1, 8): (2,), (_RGB, 8): (0, 1, 2), (_RGB, 16): (0, 1, 2)}
"""Photometric interpretation and bits per sample: meanings that one further sample may have."""
_MAX_REDUCED = 16
_CLASSIC_SIZE = 4_000_000_000


@dataclass(frozen=True)
class Layout:
    """What the pixels of a TIFF are.

    Attributes:
        bits: A sample.
        samples: A pixel.
        planar: Whether each sample has a plane of its own.
        inverted: 16-bit grey with 0 as white, which Pillow leaves as it is.
        photometric: Of `_LAYOUTS`.
    """

    bits: int
    samples: int
    planar: bool
    inverted: bool
    photometric: int


def read_tiff(data: bytes) -> Header:
    """Return what a TIFF says of itself.

    Raises:
        ImageError: It is damaged, holds several pages, or has pixels of a kind that is not read.
    """
    order, at = read_byte_order(data)
    tags, following = read_directory(data, at, order, _READ)
    _check_single(data, order, tags, (at, following))
    height, width = _number(tags, _HEIGHT), _number(tags, _WIDTH)
    if height < 1 or width < 1:
        raise damaged(f"is {width} x {height} px", "at least 1 x 1")
    layout = check_layout(tags)
    work_px = _check_parts(len(data), tags, layout, (height, width))
    return Header(
        format="TIFF",
        height=height,
        width=width,
        content=_written(data, order, _cleaned(tags, layout)),
        orientation=orientation_of(tags),
        inverted=layout.inverted,
        high_byte=layout.bits == 16 and layout.samples > 1,
        work_px=work_px,
        lossy="JPEG-compressed TIFF" if _number(tags, _COMPRESSION) == _JPEG else "",
    )


def _number(tags: Tags, tag: int, default: int = 0) -> int:
    return int(tags[tag][0]) if tag in tags else default


def _check_single(data: bytes, order: ByteOrder, tags: Tags, places: tuple[int, int]) -> None:
    """Refuse several pages; reduced copies of the first may follow it."""
    if _is_reduced(tags):
        raise unsupported("starts with a preview of its picture", "the picture itself first")
    description = tags[_DESCRIPTION].tobytes() if _DESCRIPTION in tags else b""
    stack = re.search(rb"^images=(\d{1,9})", description, re.MULTILINE)
    if description.startswith(b"ImageJ=") and stack and int(stack[1]) > 1:
        raise several(int(stack[1]))
    seen, following = {places[0]}, places[1]
    while following:
        if following in seen:
            raise damaged("has directories that point at each other")
        if len(seen) > _MAX_REDUCED:
            raise several(f"more than {_MAX_REDUCED}")
        seen.add(following)
        page, following = read_directory(data, following, order, {_SUBFILE, _OLD_SUBFILE})
        if not _is_reduced(page):
            raise several("several")


def _is_reduced(tags: Tags) -> bool:
    return bool(_number(tags, _SUBFILE) & 1) or _number(tags, _OLD_SUBFILE) == 2


def check_layout(tags: Tags) -> Layout:
    """Return what the pixels are.

    Args:
        tags: The values of `LAYOUT_TAGS`, where present.

    Raises:
        ImageError: They are of a kind that Pillow does not read, or reads wrongly.
    """
    if _PHOTOMETRIC not in tags:
        raise damaged("does not say what its samples mean", "PhotometricInterpretation (tag 262)")
    photometric, compression = _number(tags, _PHOTOMETRIC), _number(tags, _COMPRESSION, _NONE)
    if compression not in _COMPRESSIONS or (photometric == _YCBCR and compression != _JPEG):
        raise unsupported(f"has {_named(photometric, compression)}", "a usual compression")
    if photometric not in _LAYOUTS:
        raise unsupported(f"has {_named(photometric, compression)}", "grey, palette, RGB or CMYK")
    samples, planar = _number(tags, _SAMPLES, 1), _number(tags, _PLANAR, 1) == 2
    colours, depths = _LAYOUTS[photometric]
    bits = _bits(tags, samples, depths)
    _check_extra(tags, photometric, samples - colours, bits)
    _check_rest(tags, bits, compression)
    if planar and samples > 1 and (bits != 8 or photometric != _RGB or samples != 3):
        raise unsupported(
            f"has {samples} planes of {bits} bits per sample (PlanarConfiguration=2)",
            "samples side by side, or three planes of 8 bits",
        )
    inverted = photometric == 0 and bits == 16
    return Layout(bits, samples, planar and samples > 1, inverted, photometric)


def _named(photometric: int, compression: int) -> str:
    return f"PhotometricInterpretation={photometric} with Compression={compression}"


def _bits(tags: Tags, samples: int, depths: tuple[int, ...]) -> int:
    stored = tags.get(_BITS, np.ones(1, np.uint16))
    formats = tags.get(_FORMAT, np.ones(1, np.uint16))
    if samples < 1 or len(stored) not in (1, samples) or len(formats) not in (1, samples):
        raise damaged("contradicts itself about its samples")
    if (formats != 1).any():
        raise unsupported(
            "has signed, float or undefined samples, whose full scale is unknown (SampleFormat="
            f"{formats.tolist()})",
            "unsigned ones",
        )
    bits = int(stored[0])
    if (stored != bits).any() or bits not in depths:
        raise unsupported(f"has {stored.tolist()} bits per sample", f"one of {depths}")
    return bits


def _check_extra(tags: Tags, photometric: int, extra: int, bits: int) -> None:
    """Check the samples beyond the colours: at most one, and the file says what it is."""
    meanings = tags.get(_EXTRA, np.zeros(0, np.uint16)).tolist()
    if extra == 0 and not meanings:
        return
    allowed = _EXTRA_ALLOWED.get((photometric, bits), ())
    if extra != 1 or len(meanings) != 1 or meanings[0] not in allowed:
        raise unsupported(
            f"has {extra} samples beyond its colours, of the meanings {meanings} (ExtraSamples)",
            "at most an alpha channel",
        )


def _check_rest(tags: Tags, bits: int, compression: int) -> None:
    predictor, fill_order = _number(tags, _PREDICTOR, 1), _number(tags, _FILL_ORDER, 1)
    if predictor != 1 and compression in _PREDICTED and (predictor != 2 or bits not in (8, 16)):
        raise unsupported(f"has the predictor {predictor} for {bits} bits", "predictor 2")
    if fill_order not in (1, 2) or (fill_order == 2 and bits >= 8):
        raise unsupported(f"has FillOrder={fill_order} for {bits} bits", "FillOrder=1")
    if _number(tags, _INK_SET, 1) != 1 or _number(tags, _DEPTH, 1) != 1:
        raise unsupported("has other inks than CMYK, or is a volume", "a flat picture")
    if _number(tags, _PHOTOMETRIC) == _PALETTE:
        colours = tags.get(_COLOUR_MAP, np.zeros(0, np.uint16))
        if len(colours) != 3 << bits:
            raise damaged(f"has {len(colours)} values in its colour map", f"{3 << bits}")
        if 0 < colours.max() < 256:
            raise unsupported("has a colour map of 8-bit values", "values that fill 0..65535")


def _check_parts(size: int, tags: Tags, layout: Layout, shape: tuple[int, int]) -> int:
    """Check the strips or tiles against the file's size; return how many pixels they hold."""
    tiled = _TILES in tags
    offsets_tag, bytes_tag = (_TILES, _TILE_BYTES) if tiled else (_STRIPS, _STRIP_BYTES)
    height, width = shape
    across = _number(tags, _TILE_WIDTH) if tiled else width
    down = _number(tags, _TILE_HEIGHT) if tiled else min(_number(tags, _ROWS, height), height)
    if across < 1 or down < 1 or (tiled and (_STRIPS in tags or across % 16 or down % 16)):
        raise damaged("has strips or tiles of an impossible size")
    planes = layout.samples if layout.planar else 1
    count = -(-height // down) * -(-width // across) * planes
    if len(tags.get(offsets_tag, ())) != count:
        raise damaged(f"has {len(tags.get(offsets_tag, ()))} strips or tiles", f"{count}")
    if _number(tags, _COMPRESSION, _NONE) == _NONE:
        starts = np.tile(np.arange(0, height, down), planes)
        rows = np.full(count, down) if tiled else np.minimum(height - starts, down)
        lengths = rows * float(-(-across * layout.bits * layout.samples // planes // 8))
    elif len(tags.get(bytes_tag, ())) == count:
        lengths = tags[bytes_tag].astype(np.float64)
    else:
        raise damaged(f"has the lengths of {len(tags.get(bytes_tag, ()))} parts", f"{count}")
    if (tags[offsets_tag] + lengths).max() > size:
        raise damaged("ends before its pixels do")
    work_px = -(-height // down) * down * -(-width // across) * across if tiled else height * width
    if lengths.sum() > size + 8 * work_px:
        raise damaged("has strips or tiles that share their bytes")
    return work_px


def _cleaned(tags: Tags, layout: Layout) -> Tags:
    """Return what Pillow needs, in the words that it reads rightly."""
    kept = {tag: values for tag, values in tags.items() if tag in _KEPT - {_INK_SET, _DEPTH}}
    if not layout.planar:
        kept.pop(_PLANAR, None)
    if layout.inverted:
        kept[_PHOTOMETRIC] = np.ones(1, np.uint16)
    if _number(tags, _COMPRESSION, _NONE) not in _PREDICTED:
        kept.pop(_PREDICTOR, None)
    kept[_BITS] = np.full(layout.samples, layout.bits)
    if _ROWS in kept:
        kept[_ROWS] = np.minimum(kept[_ROWS], kept[_HEIGHT])
    return kept


def _written(data: bytes, order: ByteOrder, tags: Tags) -> bytes:
    """Return the file with a directory of these tags alone, at its end.

    It is no BigTIFF: Pillow reads those of one byte order only.
    """
    at = (len(data) + 7) // 8 * 8
    values_at = at + 2 + 12 * len(tags) + 4
    if values_at > _CLASSIC_SIZE:
        raise ImageError(
            f"has {len(data):,} bytes; expected at most {_CLASSIC_SIZE:,}; cut it into parts",
            reason="too_large",
        )
    entries, values = [struct.pack(order.mark + "H", len(tags))], b""
    for tag, numbers in sorted(tags.items()):
        kind, stored = _typed(tag, numbers, order)
        reference = stored.ljust(4, b"\0")
        if len(stored) > 4:
            reference = struct.pack(order.mark + "I", values_at + len(values))
            values += stored
        entries.append(struct.pack(order.mark + "HHI", tag, kind, len(numbers)) + reference)
    start = data[:2] + struct.pack(order.mark + "HI", 42, at)
    return b"".join([start, data[8:], bytes(at - len(data)), *entries, bytes(4), values])


def _typed(tag: int, numbers: NDArray[Any], order: ByteOrder) -> tuple[int, bytes]:
    """Return the field type and the bytes of a tag's values."""
    if tag == _JPEG_TABLES:
        return 7, numbers.astype(np.uint8).tobytes()
    if numbers.max() < 65536:
        return 3, numbers.astype(order.mark + "u2").tobytes()
    return 4, numbers.astype(order.mark + "u4").tobytes()


_Handler = ctypes.CFUNCTYPE(None, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_void_p)
_heard = threading.local()


@contextmanager
def errors_raised() -> Iterator[None]:
    """Raise ImageError where libtiff reports an error in this thread, and keep it from stderr."""
    _listen()
    _heard.errors = []
    try:
        yield
        if _heard.errors:
            raise damaged(f"has damaged pixels, by {_heard.errors[0]}")
    finally:
        del _heard.errors


@functools.cache
def _listen() -> object:
    """Take libtiff's reports for the life of the process; pass on those of other users of Pillow.

    Where Pillow hides its libtiff (Windows), nothing is heard.
    """
    from PIL import _imaging

    try:
        replace = ctypes.CDLL(_imaging.__file__).TIFFSetErrorHandler
    except (AttributeError, OSError):
        return None
    replace.restype = ctypes.c_void_p
    replace.argtypes = [ctypes.c_void_p]
    former: list[object] = []

    def hear(module: bytes, message: bytes, values: int) -> None:
        if hasattr(_heard, "errors"):
            _heard.errors.append(
                b": ".join(filter(None, (module, message))).decode("ascii", "replace")
            )
        elif former:
            former[0](module, message, values)  # type: ignore[operator]

    handler = _Handler(hear)
    place = replace(ctypes.cast(handler, ctypes.c_void_p))
    if place:
        former.append(_Handler(place))
    return handler
