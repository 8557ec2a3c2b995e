"""CVAT for images: one XML file of pictures and what is drawn on them.

https://docs.cvat.ai/docs/dataset_management/formats/format-cvat/, version 1.1. Read are polygons,
masks, boxes, which are areas then, and ellipses; lines and points have no area and are left out,
with a note.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from magtiles_seg.dataset.formats.pictures import (
    Files,
    LabelledPicture,
    Notes,
    Progress,
    Reading,
    Region,
    check_size,
    drawn,
    ellipse,
    name_once,
    placed,
    size_of,
)
from magtiles_seg.errors import DataError
from magtiles_seg.files import write as write_file
from magtiles_seg.labels import color_rgb
from magtiles_seg.shapes import crop, encode_rle

NAME = "annotations.xml"
_FLAT = ("polyline", "points", "skeleton")
"""What has no area."""


def recognises(path: Path) -> bool:
    """Return whether an XML file is CVAT's, by its first element."""
    try:
        for _, element in ElementTree.iterparse(path, events=("start",)):
            return bool(element.tag == "annotations")
    except (ElementTree.ParseError, LookupError, ValueError, OSError):
        pass
    return False


def read(root: Path, *, progress: Progress | None = None) -> Reading:
    """Read every CVAT file under a folder, and the pictures that none names."""
    files, found = Files(root), Reading()
    owner: dict[Path, Path] = {}

    def picture_of(path: Path, image: ElementTree.Element) -> LabelledPicture:
        picture = _picture(path, image, files, found.notes)
        name_once(owner, picture, path, f"image {image.get('id')}")
        return picture

    for path in files.of(".xml"):
        if not recognises(path):
            continue
        try:
            tree = ElementTree.parse(path).getroot()
        except (ElementTree.ParseError, LookupError, ValueError, OSError) as error:
            found.problems.append(f"{path}: no XML: {error}; export it again")
            continue
        names = [name.text or "" for name in tree.iterfind("./meta//labels/label/name")]
        found.labels = tuple(dict.fromkeys([*found.labels, *names]))
        if tree.find("track") is not None:
            found.problems.append(f"{path}: of a video; expected CVAT's format 'for images'")
        found.take(tree.findall("image"), partial(picture_of, path), progress)
    found.take(files.unlabelled(owner), files.bare)
    return found


def _picture(path: Path, image: ElementTree.Element, files: Files, notes: Notes) -> LabelledPicture:
    source = files.find(image.get("name"), path)
    size = size_of(source)
    where = f"{path}: image {source.name}"
    declared = tuple(_number(image, key, where) for key in ("height", "width"))
    check_size(where, (declared[0], declared[1]), size)
    tags = tuple(tag.get("label", "") for tag in image.iterfind("tag"))
    shapes = [shape for shape in image if shape.tag != "tag"]
    shapes.sort(key=lambda shape: _number(shape, "z_order", where, 0))
    regions = [
        _region(shape, f"{where}: {shape.tag} {number}", size, notes)
        for number, shape in enumerate(shapes)
    ]
    return LabelledPicture(files.id_of(source), source, *size, tuple(regions), tags=tags)


def _region(shape: ElementTree.Element, where: str, size: tuple[int, int], notes: Notes) -> Region:
    label = shape.get("label")
    if not label:
        raise DataError(f"{where}: has no label; give it a class in CVAT")
    if shape.tag == "mask":
        return Region.of_mask(label, _mask(shape, where, size))
    if shape.tag == "polygon":
        points: object = [
            pair.split(",") for pair in (shape.get("points") or "").split(";") if pair
        ]
    elif shape.tag == "ellipse":
        cx, cy, rx, ry = (_number(shape, key, where) for key in ("cx", "cy", "rx", "ry"))
        points = ellipse(cx, cy, rx, ry, _number(shape, "rotation", where, 0))
    elif shape.tag == "box":
        x0, y0, x1, y1 = (_number(shape, key, where) for key in ("xtl", "ytl", "xbr", "ybr"))
        turned = np.deg2rad(_number(shape, "rotation", where, 0))
        centre, half = np.array([x0 + x1, y0 + y1]) / 2, np.array([x1 - x0, y1 - y0]) / 2
        across = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * half
        turn = np.array([[np.cos(turned), np.sin(turned)], [-np.sin(turned), np.cos(turned)]])
        points = across @ turn + centre
    elif shape.tag in _FLAT:
        return Region(label, lost=(where, f"a {shape.tag} has no area"))
    else:
        raise DataError(f"{where}: not read; expected polygons, masks, boxes or ellipses")
    return drawn(label, [points], where, size, notes)


def _mask(shape: ElementTree.Element, where: str, size: tuple[int, int]) -> np.ndarray:
    """Return the mask of run lengths, row by row within a box, (H, W) bool."""
    left, top, width, height = (
        int(_number(shape, key, where)) for key in ("left", "top", "width", "height")
    )
    try:
        counts = np.array((shape.get("rle") or "").split(","), np.int64)
    except (ValueError, OverflowError):
        raise DataError(f"{where}: rle {shape.get('rle')!r:.60}; expected numbers") from None
    if not (1 <= width <= size[1] and 1 <= height <= size[0]):
        raise DataError(
            f"{where}: {width} x {height} px; expected at most the picture's {size[1]} x {size[0]}"
        )
    wanted = width * height
    if ((counts < 0) | (counts > wanted)).any() or int(counts.sum()) != wanted:
        raise DataError(f"{where}: run lengths are not of {width} x {height} px")
    part = np.repeat(np.arange(len(counts)) % 2 == 1, counts).reshape(height, width)
    return placed(part, left, top, *size)


def _number(
    element: ElementTree.Element, key: str, where: str, default: float | None = None
) -> float:
    text = element.get(key)
    if text is None and default is not None:
        return default
    try:
        value = float(text or "")
    except ValueError:
        value = float("nan")
    if not np.isfinite(value):
        raise DataError(f"{where}: {key} is {text!r}; expected a number")
    return value


def write(
    pictures: Iterable[LabelledPicture],
    out: Path,
    labels: Sequence[str],
    *,
    as_polygons: bool = False,
    tolerance_px: float = 0.0,
) -> Path:
    """Write pictures into `images/`, and beside it annotations.xml; return its path.

    A CVAT task imports that. Masks that do not become polygons are CVAT's own.
    """
    (out / "images").mkdir(parents=True, exist_ok=True)
    tree, names = ElementTree.Element("annotations"), list(labels[1:])
    ElementTree.SubElement(tree, "version").text = "1.1"
    meta = ElementTree.SubElement(tree, "meta")
    for number, picture in enumerate(pictures):
        name = picture.copy_to(out / "images")
        image = ElementTree.SubElement(
            tree,
            "image",
            {"id": str(number), "name": name}
            | {"width": str(picture.width), "height": str(picture.height)},
        )
        for region in picture.regions:
            if region.label not in names:
                names.append(region.label)
            _add(image, region, picture, as_polygons=as_polygons, tolerance_px=tolerance_px)
    listed = ElementTree.SubElement(ElementTree.SubElement(meta, "task"), "labels")
    for index, label in enumerate(names, start=1):
        entry = ElementTree.SubElement(listed, "label")
        ElementTree.SubElement(entry, "name").text = label
        ElementTree.SubElement(entry, "color").text = "#{:02x}{:02x}{:02x}".format(
            *color_rgb(index)
        )
        ElementTree.SubElement(entry, "type").text = "any"
        ElementTree.SubElement(entry, "attributes")
    ElementTree.indent(tree)
    text = ElementTree.tostring(tree, "unicode")
    write_file(out / NAME, f'<?xml version="1.0" encoding="utf-8"?>\n{text}\n')
    return out / NAME


def _add(
    image: ElementTree.Element,
    region: Region,
    picture: LabelledPicture,
    *,
    as_polygons: bool,
    tolerance_px: float,
) -> None:
    """Add a region to a picture's element."""
    height, width = picture.height, picture.width
    head = {"label": region.label, "source": "auto", "occluded": "0", "z_order": "0"}
    if region.runs is not None and not as_polygons:
        part, left, top = crop(region.mask(height, width))
        counts = encode_rle(part.T).tolist()  # row by row
        box = {"left": left, "top": top, "width": part.shape[1], "height": part.shape[0]}
        place = {key: str(value) for key, value in box.items()}
        runs = {"rle": ", ".join(map(str, counts)), **place}
        ElementTree.SubElement(image, "mask", head | runs)
        return
    for points in region.outlines(height, width, tolerance_px=tolerance_px):
        text = ";".join(f"{x:.10g},{y:.10g}" for x, y in points)
        ElementTree.SubElement(image, "polygon", head | {"points": text})
