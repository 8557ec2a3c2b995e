"""Which pictures are results: each PNG that this package writes carries a mark in its header.

So a result is never taken for an input, wherever it lies and whoever moved it there. The mark is a
text chunk right behind the header, `Software: magtiles_seg`; a viewer ignores it.
"""

from __future__ import annotations

import json
import os
import re
import stat
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

from magtiles_seg.files import encode_png

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_HEADER_BYTES = 33  # signature and IHDR
_TEXT = b"tEXtSoftware\0magtiles_seg"
_CHUNK = (len(_TEXT) - 4).to_bytes(4, "big") + _TEXT + zlib.crc32(_TEXT).to_bytes(4, "big")

HEAD_BYTES = _HEADER_BYTES + len(_CHUNK)
"""So many first bytes of a file tell whether it is marked."""

RESULT_NAMES = re.compile(
    r"(^|[/\\_])(mask|overlay|panel|probability)\.png$"  # Segmentation.save
    r"|(^|[/\\.])tile\.png$"  # TileResult.save
    r"|(^|[/\\])(web_\d{9,}|\d{3}_[^/\\]+|bench)\.png$"  # stream, evaluate, bench
    r"|(^|[/\\])(picture_\d{2,}|curve_\d+)\.png$"  # report
    r"|(^|[/\\])masks[/\\]\d{8}[/\\]\d{5}\.png$"  # batch --masks
    r"|\.draft\.png$"  # --review-dir
    r"|(^|[/\\])(worker-\d+[/\\]\d{2}|(charts|plots)[/\\][^/\\]+)\.png$"  # shadow, evaluate
)
"""Names that results are given: only such files are opened to look for the mark."""

_KEYS = {"schema_version", "source", "verdict", "defects", "decision", "model"}
_TILE_KEYS = {"schema_version", "name", "verdict", "rule", "exposures", "overlay"}
_MAX_JSON_BYTES = 64 * 2**20


def encode_result(picture: NDArray[np.uint8]) -> bytes:
    """Return a result's picture, (H, W) or RGB (H, W, 3) uint8, as a PNG file with our mark.

    Raises:
        OSError: OpenCV cannot encode it.
    """
    return mark_png(encode_png(picture))


def mark_png(png: bytes) -> bytes:
    """Return a PNG file's bytes with the mark in them."""
    return png[:_HEADER_BYTES] + _CHUNK + png[_HEADER_BYTES:]


def is_marked(head: bytes) -> bool:
    """Return whether a file that begins so is a result."""
    return head[_HEADER_BYTES:HEAD_BYTES] == _CHUNK


def is_result(path: str | os.PathLike[str]) -> bool:
    """Return whether a file is a picture that this package wrote; one that is renamed is none."""
    if not RESULT_NAMES.search(os.fspath(path)):
        return False
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # noqa: PTH116  (any path-like)
            return False
        with Path(path).open("rb") as file:
            return is_marked(file.read(HEAD_BYTES))
    except OSError:
        return False


def read_manifest(path: Path, *, of_tile: bool = False) -> dict[str, object] | None:
    """Return what a `result.json` (or `tile.json`) holds, or None where it is none of ours."""
    try:
        if not path.is_file() or path.stat().st_size > _MAX_JSON_BYTES:
            return None
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    keys = _TILE_KEYS if of_tile else _KEYS
    return found if isinstance(found, dict) and found.keys() >= keys else None
