"""LabelMe: a JSON file beside each picture, which it may hold.

https://github.com/wkentaro/labelme. Read are polygons, rectangles, circles and masks, and the
turned rectangles of X-AnyLabeling; points and lines have no area and are left out, with a note.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from magtiles_seg.dataset.formats.pictures import (
    Files,
    LabelledPicture,
    Notes,
    Progress,
    Reading,
    Region,
    check_size,
    decode_png_mask,
    drawn,
    ellipse,
    expect,
    placed,
    read_json,
    size_of,
)
from magtiles_seg.dataset.layouts import PICTURE_SUFFIXES
from magtiles_seg.errors import DataError
from magtiles_seg.files import encode_png, write_json
from magtiles_seg.shapes import Mask, crop, labelme_content, labelme_shape

_CORNERS = ("polygon", "rotation", "oriented_rectangle", "quadrilateral")
"""Shapes whose points go around an area."""
_FLAT = ("point", "points", "line", "lines", "linestrip")


def recognises(content: object) -> bool:
    """Return whether a JSON value is a LabelMe file's."""
    return isinstance(content, dict) and "shapes" in content and "imagePath" in content


def read(root: Path, *, progress: Progress | None = None) -> Reading:
    """Read every LabelMe file under a folder, and the pictures that none is of."""
    files, found = Files(root), Reading()
    owner: dict[Path, Path] = {}

    def picture_of(path: Path) -> LabelledPicture | None:
        content = read_json(path)
        if not recognises(content):
            return None
        picture = _picture(path, content, files, found.notes)
        first = owner.setdefault(picture.path, path)
        if first != path:
            raise DataError(f"{path}: of the picture {picture.path}, as {first} is")
        return picture

    found.take(files.of(".json"), picture_of, progress)
    found.take(files.unlabelled(owner), files.bare)
    return found


def _picture(path: Path, content: dict[str, Any], files: Files, notes: Notes) -> LabelledPicture:
    embedded = content.get("imageData")
    try:
        source, where = files.find(content["imagePath"], path), "file"
        size = size_of(source)
    except DataError:
        if not embedded:
            raise
        source, where = path, "embedded"
        try:
            size = size_of(base64.b64decode(embedded, validate=True))
        except (ValueError, TypeError, DataError) as error:
            raise DataError(f"{path}: imageData is no picture: {error}") from error
    if where == "file" and (own := _of_its_name(path, files)) not in (None, source):
        raise DataError(
            f"{path}: names the picture {source}, but {own} has its own name; was one of them "
            "renamed? Correct imagePath, or rename the file as its picture"
        )
    check_size(str(path), (content.get("imageHeight"), content.get("imageWidth")), size)
    shapes = expect(content["shapes"], list, f"{path}: shapes")
    regions = [
        _region(shape, f"{path}: shape {number}", size, notes)
        for number, shape in enumerate(shapes)
    ]
    name = path.stem if where == "embedded" else files.id_of(source)
    flags = expect(content.get("flags") or {}, dict, f"{path}: flags")
    tags = tuple(name for name, is_set in flags.items() if is_set is True)
    return LabelledPicture(
        name, source, *size, tuple(regions), embedded=where == "embedded", tags=tags
    )


def _of_its_name(path: Path, files: Files) -> Path | None:
    """Return the picture beside a LabelMe file that is called as it is, if there is one."""
    beside = (path.with_suffix(suffix) for suffix in sorted(PICTURE_SUFFIXES))
    return next((picture for picture in beside if picture in files.known), None)


def _region(shape: object, where: str, size: tuple[int, int], notes: Notes) -> Region:
    given = expect(shape, dict, where)
    label = expect(given.get("label"), str, f"{where}: label")
    kind = given.get("shape_type") or "polygon"
    if kind == "mask":
        return Region.of_mask(label, _mask(given, where, size))
    points = given.get("points")
    if kind in _FLAT:
        return Region(label, lost=(where, f"a {kind} has no area"))
    if kind in ("rectangle", "circle"):
        points = _outline(kind, points, where)
    elif kind not in _CORNERS:
        raise DataError(
            f"{where}: a {kind!r:.40} is not read; expected polygons, rectangles, circles or masks"
        )
    return drawn(label, [points], where, size, notes)


def _outline(kind: str, points: object, where: str) -> object:
    """Return the polygon of a rectangle's corners, or of a circle's centre and a point on it.

    Some tools write a rectangle's two corners, some all four.
    """
    if kind == "rectangle" and isinstance(points, list) and len(points) == 4:
        return points
    try:
        (x0, y0), (x1, y1) = [[float(value) for value in point] for point in points]  # type: ignore[attr-defined]  # what it is not is told
    except (TypeError, ValueError, OverflowError):
        raise DataError(f"{where}: a {kind} of two points was expected: {points!r:.80}") from None
    if kind == "rectangle":
        return [[x0, y0], [x1, y0], [x1, y1], [x0, y1]]
    radius = float(np.hypot(x1 - x0, y1 - y0))
    return ellipse(x0, y0, radius, radius, 0)


def _mask(given: dict[str, Any], where: str, size: tuple[int, int]) -> Mask:
    part = decode_png_mask(given.get("mask") or "", where)
    try:
        left, top = (round(float(value)) for value in given["points"][0])
    except (TypeError, ValueError, KeyError, IndexError, OverflowError):
        raise DataError(f"{where}: no corner of the mask; expected two points") from None
    return placed(part, left, top, *size)


def write(
    pictures: Iterable[LabelledPicture],
    out: Path,
    labels: Sequence[str],  # noqa: ARG001 - as every format's
    *,
    as_polygons: bool = True,
    tolerance_px: float = 0.0,
) -> Path:
    """Write each picture and its LabelMe file side by side into `out`, and return that."""
    out.mkdir(parents=True, exist_ok=True)
    for picture in pictures:
        name = picture.copy_to(out)
        write_json(
            out / f"{picture.id}.json",
            content_of(picture, name, as_polygons=as_polygons, tolerance_px=tolerance_px),
        )
    return out


def content_of(
    picture: LabelledPicture, name: str, *, as_polygons: bool = True, tolerance_px: float = 0.0
) -> dict[str, Any]:
    """Return the content of a LabelMe file, from which `name` is the path of the picture's."""
    shapes = []
    for region in picture.regions:
        if region.runs is not None and not as_polygons:
            shapes.append(_mask_shape(region, picture))
            continue
        for points in region.outlines(picture.height, picture.width, tolerance_px=tolerance_px):
            shapes.append(labelme_shape(region.label, "polygon", points.tolist()))
    return labelme_content(shapes, name, picture.height, picture.width)


def _mask_shape(region: Region, picture: LabelledPicture) -> dict[str, Any]:
    mask = region.mask(picture.height, picture.width)
    part, left, top = crop(mask)
    corner = [left + part.shape[1] - 1, top + part.shape[0] - 1]
    shape = labelme_shape(region.label, "mask", [[left, top], corner])
    png = encode_png(part.astype(np.uint8) * np.uint8(255))
    return {**shape, "mask": base64.b64encode(png).decode("ascii")}
