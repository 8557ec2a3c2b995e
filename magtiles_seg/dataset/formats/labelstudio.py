"""Label Studio: one JSON file of tasks, as its export "JSON" gives; brush masks and polygons.

https://labelstud.io/guide/export. Where a task has several annotations, the one that is marked as
ground truth counts, else the one that was changed last.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import unquote
from xml.sax.saxutils import quoteattr

import numpy as np
import numpy.typing as npt

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
    expect,
    read_json,
    size_of,
)
from magtiles_seg.dataset.layouts import PICTURE_SUFFIXES
from magtiles_seg.errors import DataError
from magtiles_seg.files import write as write_file
from magtiles_seg.files import write_json
from magtiles_seg.shapes import Mask, encode_rle

_MAX_BRUSH_PX = 64_000_000
NAME, CONFIG = "tasks.json", "label_config.xml"
_DRAWN = ("polygonlabels", "brushlabels", "rectanglelabels", "ellipselabels")
_APART = ("labels", "polygon", "brush", "rectangle", "ellipse", "bitmask")
"""Results of a configuration that draws by one tag and names classes by another."""
_FLAT = ("keypointlabels", "vectorlabels")
_UPLOADED = re.compile(r"^[0-9a-f]{8}-")
"""What Label Studio puts before the name of an uploaded file."""


def recognises(content: object) -> bool:
    """Return whether a JSON value is an export of tasks."""
    return isinstance(content, list) and bool(content) and all(
        isinstance(task, dict) and isinstance(task.get("data"), dict) for task in content[:10]
    )  # fmt: skip


def read(root: Path, *, progress: Progress | None = None) -> Reading:
    """Read every export under a folder, and the pictures that none names."""
    files, found = Files(root), Reading()
    owner: dict[Path, Path] = {}

    def picture_of(path: Path, numbered: tuple[int, Any]) -> LabelledPicture:
        index, task = numbered
        where = f"{path}: task {expect(task, dict, str(path)).get('id', index)}"
        picture = _picture(path, task, where, files, found.notes)
        if picture.path in owner:
            raise DataError(f"{where}: a second task of the picture {picture.path}")
        owner[picture.path] = path
        return picture

    for path in files.of(".json"):
        try:
            tasks = read_json(path)
        except DataError as error:
            found.problems.append(str(error))
            continue
        if recognises(tasks):
            found.take(list(enumerate(tasks, start=1)), partial(picture_of, path), progress)
    found.take(files.unlabelled(owner), files.bare)
    return found


def _picture(
    path: Path, task: dict[str, Any], where: str, files: Files, notes: Notes
) -> LabelledPicture:
    source = _source(path, expect(task.get("data"), dict, f"{where}: data"), where, files)
    size = size_of(source)
    chosen = _chosen(
        expect(task.get("annotations") or [], list, f"{where}: annotations"), where, notes
    )
    regions, tags = list[Region](), list[str]()
    result = chosen.get("result") or [] if chosen else []
    for number, item in enumerate(expect(result, list, f"{where}: result")):
        at = f"{where}: result {number}"
        region = _region(expect(item, dict, at), at, size, notes)
        if region is not None:
            regions.append(region)
        elif item.get("type") == "choices":
            tags += _choices(item.get("value"))
    return LabelledPicture(
        files.id_of(source),
        source,
        *size,
        tuple(regions),
        labelled=chosen is not None,
        tags=tuple(tags),
    )


def _choices(value: object) -> list[str]:
    """Return what was chosen for the whole picture, as far as it is text."""
    chosen = value.get("choices") if isinstance(value, dict) else None
    return [name for name in chosen if isinstance(name, str)] if isinstance(chosen, list) else []


def _source(path: Path, data: dict[str, Any], where: str, files: Files) -> Path:
    """Return the picture of a task; an uploaded one may lie here by its name before that.

    Raises:
        DataError: It names none, or several: which of them was drawn on is not in the export.
    """
    texts = [value for value in data.values() if isinstance(value, str)]
    names = [unquote(text.rpartition("?d=")[2].partition("?")[0]) for text in texts]
    named = [name for name in names if Path(name).suffix.lower() in PICTURE_SUFFIXES]
    if not named:
        raise DataError(f"{where}: data names no picture, {data!r:.80}")
    found, lost = list[Path](), list[DataError]()
    for name in named:
        try:
            found.append(_find(name, path, files))
        except DataError as error:
            lost.append(error)
    if not found:
        raise lost[0]
    if len(one := list(dict.fromkeys(found))) > 1:
        raise DataError(
            f"{where}: data names {len(one)} pictures, {one[0]} and {one[1]}; expected one, for "
            "nothing says which was drawn on: remove the others from its data"
        )
    return one[0]


def _find(name: str, path: Path, files: Files) -> Path:
    try:
        return files.find(name, path)
    except DataError:
        return files.find(_UPLOADED.sub("", name.rsplit("/", 1)[-1]), path)


def _chosen(annotations: list[Any], where: str, notes: Notes) -> dict[str, Any] | None:
    """Return the annotation that counts; a task that was skipped has none."""
    done = [a for a in annotations if isinstance(a, dict) and not a.get("was_cancelled")]
    if len(done) > 1:
        notes.add(where, "several annotations; the ground truth counts, else the last changed one")
    order = [(bool(a.get("ground_truth")), str(a.get("updated_at") or "")) for a in done]
    return done[max(range(len(done)), key=order.__getitem__)] if done else None


def _region(item: dict[str, Any], where: str, size: tuple[int, int], notes: Notes) -> Region | None:
    kind, value = str(item.get("type")), item.get("value")
    if kind in _APART:
        raise DataError(
            f"{where}: drawn as {kind!r}, apart from its class; expected PolygonLabels, "
            "BrushLabels, RectangleLabels or EllipseLabels in the labelling configuration"
        )
    if not kind.endswith("labels"):
        return None  # a choice is of the whole picture; a text or a rating says no class
    if kind in _FLAT:
        label = next(iter(value.get(kind) or ()), "") if isinstance(value, dict) else ""
        return Region(str(label), lost=(where, f"{kind} have no area"))
    if kind not in _DRAWN:
        raise DataError(f"{where}: {kind} are not read; expected polygons or brush masks")
    value = expect(value, dict, f"{where}: value")
    names = expect(value.get(kind), list, f"{where}: {kind}")
    if len(names) != 1:
        raise DataError(f"{where}: {len(names)} classes for one region; expected one")
    if item.get("image_rotation"):
        raise DataError(f"{where}: drawn on a picture turned by hand; save it upright, and relabel")
    declared = (item.get("original_height"), item.get("original_width"))
    check_size(where, declared, size)
    if kind == "brushlabels":
        return Region.of_mask(str(names[0]), _brush(value.get("rle"), where, size))
    shares = _outline(kind, value, where)
    return drawn(str(names[0]), [shares * size[::-1] / 100], where, size, notes)


def _outline(kind: str, value: dict[str, Any], where: str) -> npt.NDArray[np.float64]:
    """Return a region's outline, (P, 2) in hundredths of the picture's size."""
    if value.get("rotation"):
        raise DataError(f"{where}: a turned {kind}; expected polygons or brush masks")
    try:
        if kind == "polygonlabels":
            return np.array(value["points"], np.float64).reshape(-1, 2)
        x, y = float(value["x"]), float(value["y"])
        if kind == "rectanglelabels":
            w, h = float(value["width"]), float(value["height"])
            return np.array([[x, y], [x + w, y], [x + w, y + h], [x, y + h]])
        return ellipse(x, y, float(value["radiusX"]), float(value["radiusY"]), 0)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise DataError(f"{where}: no {kind}: {error!r:.80}") from error


def _brush(rle: object, where: str, size: tuple[int, int]) -> Mask:
    try:
        levels = decode_brush(expect(rle, list, f"{where}: rle"))
    except (ValueError, TypeError, IndexError, OverflowError) as error:
        raise DataError(f"{where}: no brush mask: {error}") from error
    if levels.size != 4 * size[0] * size[1]:
        raise DataError(
            f"{where}: a brush mask of {levels.size // 4} px; expected {size[0] * size[1]}"
        )
    return np.asarray(levels.reshape(*size, 4)[..., 3] > 0)


def decode_brush(rle: Sequence[int]) -> npt.NDArray[np.uint8]:
    """Return the values of a brush's run lengths, (4 H W,) uint8: red, green, blue, alpha.

    Source: https://github.com/thi-ng/umbrella, packages/rle-pack.

    Raises:
        ValueError: They are no such run lengths.
    """
    data = bytes(rle)
    position, total = 0, len(data) * 8

    def take(count: int) -> int:
        nonlocal position
        position += count
        if position > total:
            raise ValueError("it ends too early")
        start, end = (position - count) // 8, -(-position // 8)
        return int.from_bytes(data[start:end], "big") >> (end * 8 - position) & ((1 << count) - 1)

    count, word = take(32), take(5) + 1
    sizes = [take(4) + 1 for _ in range(4)]
    if count > 4 * _MAX_BRUSH_PX:
        raise ValueError(f"it is of {count // 4} px; expected at most {_MAX_BRUSH_PX}")
    values, filled = np.zeros(count, np.uint8), 0
    while filled < count:
        repeated = take(1)
        length = take(sizes[take(2)]) + 1
        if repeated:
            values[filled : filled + length] = take(word)
        else:
            words = [take(word) for _ in range(length)]
            room = values[filled : filled + length]
            room[:] = words[: len(room)]
        filled += length
    return values


def encode_brush(mask: Mask) -> list[int]:
    """Return the run lengths of a mask, (H, W) bool, as Label Studio's brush stores them."""
    sizes, bits = (3, 4, 8, 16), list[str]()
    bits.append(f"{4 * mask.size:032b}{7:05b}" + "".join(f"{size - 1:04b}" for size in sizes))
    value = False
    for length in (4 * encode_rle(mask.T)).tolist():  # row by row
        while length:
            now = min(length, 1 << 16)
            index = next(i for i, size in enumerate(sizes) if now <= 1 << size)
            bits.append(f"1{index:02b}{now - 1:0{sizes[index]}b}{255 * value:08b}")
            length -= now
        value = not value
    text = "".join(bits)
    text += "0" * (-len(text) % 8)
    return list(int(text, 2).to_bytes(len(text) // 8, "big"))


def write(
    pictures: Iterable[LabelledPicture],
    out: Path,
    labels: Sequence[str],
    *,
    as_polygons: bool = False,
    tolerance_px: float = 0.0,
    as_predictions: bool = False,
    prefix: str = "/data/local-files/?d=images/",
) -> Path:
    """Write pictures into `images/`, and beside it tasks.json and the labelling configuration.

    Masks that do not become polygons are brush masks. `as_predictions` writes the draft of a model,
    which a person accepts or corrects, else labels. `prefix` stands before a picture's name, for
    Label Studio to look there. Returns the path of tasks.json.
    """
    (out / "images").mkdir(parents=True, exist_ok=True)
    tasks, names = list[dict[str, Any]](), list(labels[1:])
    for number, picture in enumerate(pictures, start=1):
        name = picture.copy_to(out / "images")
        names += [r.label for r in picture.regions if r.label not in names]
        result = [
            item
            for region in picture.regions
            for item in _items(region, picture, as_polygons=as_polygons, tolerance_px=tolerance_px)
        ]
        for index, item in enumerate(result):
            item["id"] = f"{number}-{index}"
        kind = "predictions" if as_predictions else "annotations"
        task = {"id": number, "data": {"image": f"{prefix}{name}"}, kind: [{"result": result}]}
        tasks.append(task)
    write_json(out / NAME, tasks)
    write_file(out / CONFIG, label_config(list(dict.fromkeys(names))))
    return out / NAME


def label_config(names: Sequence[str]) -> str:
    """Return Label Studio's configuration for some classes: brushes and polygons."""
    entries = "\n".join(f"    <Label value={quoteattr(name)}/>" for name in names)
    return (
        '<View>\n  <Image name="image" value="$image" zoom="true"/>\n'
        f'  <BrushLabels name="brush" toName="image">\n{entries}\n  </BrushLabels>\n'
        f'  <PolygonLabels name="polygon" toName="image">\n{entries}\n  </PolygonLabels>\n</View>\n'
    )


def _items(
    region: Region, picture: LabelledPicture, *, as_polygons: bool, tolerance_px: float
) -> list[dict[str, Any]]:
    """Return a region as results of Label Studio."""
    height, width = picture.height, picture.width
    head = {"to_name": "image", "original_width": width, "original_height": height,
            "image_rotation": 0}  # fmt: skip
    if region.runs is not None and not as_polygons:
        rle = encode_brush(region.mask(height, width))
        value = {"format": "rle", "rle": rle, "brushlabels": [region.label]}
        return [{**head, "from_name": "brush", "type": "brushlabels", "value": value}]
    return [
        {
            **head,
            "from_name": "polygon",
            "type": "polygonlabels",
            "value": {
                "points": (points * 100 / (width, height)).tolist(),
                "closed": True,
                "polygonlabels": [region.label],
            },
        }
        for points in region.outlines(height, width, tolerance_px=tolerance_px)
    ]
