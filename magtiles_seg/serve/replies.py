"""An answer as bytes: the mask as JSON, run lengths or PNG, and what else was asked for."""

from __future__ import annotations

import base64
import gzip
import json
import math
from collections.abc import Collection
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from magtiles_seg.files import encode_png
from magtiles_seg.result import Segmentation
from magtiles_seg.shapes import encode_rle
from magtiles_seg.tile import TileResult

INCLUDES = ("defects", "probability", "classes", "verdict", "overlay")
"""What `?include=` may name."""

MASKS = ("pred", "rle", "none")
"""Forms of the mask in a JSON answer: rows of 0 and 1, COCO run lengths, not at all."""

TILES = ("false", "true")
"""What `?tile=` may say: whether the pictures of a request are exposures of one tile."""

_WORTH_ZIPPING = 1000


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What a request asks for.

    Attributes:
        include: Some of `INCLUDES`.
        mask: One of `MASKS`.
        png: The mask as a picture instead of JSON.
        zipped: Whether the client reads gzip.
        tile: Whether the pictures are exposures of one tile, which gets a verdict.
    """

    include: frozenset[str] = frozenset()
    mask: str = "pred"
    png: bool = False
    zipped: bool = False
    tile: bool = False


@dataclass(frozen=True)
class Reply:
    """Bytes and what they are."""

    body: bytes
    headers: dict[str, str]


def encode(results: Collection[Segmentation], wish: Wish) -> Reply:
    """Return the answer to a request.

    One result is an object, several are `{"results": […]}`; with a tile's verdict always
    `{"tile": {…}, "results": […]}`.
    """
    if wish.png:
        (result,) = results
        return Reply(encode_png(result.mask * np.uint8(255)), {"Content-Type": "image/png"})
    documents = [document(result, wish) for result in results]
    body = documents[0]
    if wish.tile or len(documents) > 1:
        tile = b'"tile": ' + tile_document(results, wish) + b", " if wish.tile else b""
        body = b"{" + tile + b'"results": [' + b", ".join(documents) + b"]}"
    headers = {"Content-Type": "application/json", "Vary": "Accept, Accept-Encoding"}
    if wish.zipped and len(body) >= _WORTH_ZIPPING:
        body = gzip.compress(body, compresslevel=1, mtime=0)
        headers["Content-Encoding"] = "gzip"
    return Reply(body, headers)


def document(result: Segmentation, wish: Wish) -> bytes:
    """Return one result as a JSON object; without wishes exactly `{"pred": [[0,1,…],…]}`."""
    parts = []
    if wish.mask == "pred":
        parts.append(b'"pred": ' + rows_of_digits(result.mask))
    fields = _fields(result, wish)
    if fields:
        parts.append(json.dumps(fields, allow_nan=False)[1:-1].encode())
    return b"{" + b", ".join(parts) + b"}"


def tile_document(results: Collection[Segmentation], wish: Wish) -> bytes:
    """Return the verdict on a tile as a JSON object, with its overlay where one is wished for."""
    tile = TileResult(exposures=tuple(results))
    fields: dict[str, Any] = {
        "verdict": tile.verdict,
        "score": tile.score,
        "pictures": len(tile.exposures),
    }
    if "overlay" in wish.include:
        fields |= {"overlay": _data_url(tile.overlay()), **tile.overlay_dict()}
    return json.dumps(fields, allow_nan=False).encode()


def _fields(result: Segmentation, wish: Wish) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    if wish.mask == "rle":
        fields["rle"] = run_lengths(result.mask)
    if "verdict" in wish.include:
        fields |= {"verdict": result.verdict, "score": result.score}
    if "defects" in wish.include:
        fields["defects"] = [asdict(defect) for defect in result.defects]
    if "probability" in wish.include:
        shades = np.rint(result.probability * 255)
        fields["probability"] = _data_url(shades.astype(np.uint8))
    if "classes" in wish.include:
        fields |= {"classes": _data_url(result.classes), "labels": list(result.labels)}
    if "overlay" in wish.include:
        fields["overlay"] = _data_url(result.overlay())
    return fields


def rows_of_digits(mask: NDArray[np.uint8]) -> bytes:
    """Return a mask as JSON rows, written by whole arrays: some hundred times `json.dumps`.

    Args:
        mask: (H, W) uint8, 0 or 1.
    """
    height, width = mask.shape
    text = np.full((height, 2 * width + 2), ord(","), np.uint8)  # "[", digits and commas, "]", ","
    text[:, 0] = ord("[")
    text[:, 1 : 2 * width : 2] = mask + np.uint8(ord("0"))
    text[:, 2 * width] = ord("]")
    return b"[" + text.tobytes()[:-1] + b"]"


def run_lengths(mask: NDArray[np.uint8]) -> dict[str, list[int]]:
    """Return a mask as COCO run lengths: `size` is [H, W], `counts` run down the columns, 0 first.

    Args:
        mask: (H, W) uint8, 0 or 1.
    """
    return {"size": list(mask.shape), "counts": encode_rle(mask > 0).tolist()}


def mask_of_run_lengths(rle: object, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Return the (H, W) uint8 mask of COCO run lengths; nothing is allocated before they fit.

    Args:
        rle: `size` and `counts`, as JSON has them.
        shape: (H, W) that is expected.

    Raises:
        ValueError: They are none, of another size, or do not fill it.
    """
    if not isinstance(rle, dict) or rle.get("size") != list(shape):
        raise ValueError(f"expected run lengths of size {list(shape)}")
    counts, total = rle.get("counts"), math.prod(shape)
    if not isinstance(counts, list) or not all(type(one) is int for one in counts):
        raise ValueError("counts: expected whole numbers")
    if any(one < 0 for one in counts) or sum(counts) != total:
        raise ValueError(f"counts: expected lengths that add up to {total}")
    values = (np.arange(len(counts)) % 2).astype(np.uint8)
    return np.repeat(values, counts).reshape(shape, order="F")


def _data_url(picture: NDArray[np.uint8]) -> str:
    return "data:image/png;base64," + base64.b64encode(encode_png(picture)).decode()
