"""COCO: one JSON file of pictures, categories and regions; https://cocodataset.org/#format-data.

A region is polygons or run lengths, as text or as numbers. `iscrowd` says no more of it here than
that it is a mask: tools set it for every region with holes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

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
    expect,
    name_once,
    read_json,
    size_of,
)
from magtiles_seg.errors import DataError
from magtiles_seg.files import write_json
from magtiles_seg.shapes import crop, decode_rle, encode_rle, rle_from_text, rle_to_text

NAME = "annotations.json"


def recognises(content: object) -> bool:
    """Return whether a JSON value is that of a COCO file of regions."""
    wanted = ("images", "annotations", "categories")
    return isinstance(content, dict) and all(isinstance(content.get(k), list) for k in wanted)


def read(root: Path, *, progress: Progress | None = None) -> Reading:
    """Read every COCO file under a folder, and the pictures that none names."""
    files, found = Files(root), Reading()
    owner: dict[Path, Path] = {}
    for path in files.of(".json"):
        try:
            content = read_json(path)
            if recognises(content):
                _read_file(path, content, files, found, owner, progress)
        except DataError as error:
            found.problems.append(str(error))
    found.take(files.unlabelled(owner), files.bare)
    return found


def _read_file(
    path: Path,
    content: dict[str, Any],
    files: Files,
    found: Reading,
    owner: dict[Path, Path],
    progress: Progress | None,
) -> None:
    names = _by_id(content["categories"], f"{path}: category")
    labels = {key: str(category.get("name", key)) for key, category in names.items()}
    found.labels = tuple(dict.fromkeys([*found.labels, *labels.values()]))
    images = _by_id(content["images"], f"{path}: image")
    of_image: dict[Any, list[dict[str, Any]]] = defaultdict(list)
    for annotation in content["annotations"]:
        of_image[_key_of(annotation, "image_id", f"{path}: annotation")].append(annotation)
    for key in of_image.keys() - images.keys():
        found.problems.append(
            f"{path}: annotation {of_image[key][0].get('id')} is of the image {key!r}, which is "
            "not listed"
        )

    def picture_of(key: Any) -> LabelledPicture:  # noqa: ANN401 - a number or a text
        picture = _picture(path, images[key], of_image.get(key, []), labels, files, found.notes)
        name_once(owner, picture, path, f"image {key!r}")
        return picture

    found.take(list(images), picture_of, progress)


def _by_id(entries: list[Any], where: str) -> dict[Any, dict[str, Any]]:
    found: dict[Any, dict[str, Any]] = {}
    for entry in entries:
        key = expect(entry, dict, where).get("id")
        known = isinstance(key, int | float | str) and not isinstance(key, bool) and key == key
        if not known or key in found:
            raise DataError(
                f"{where} has the id {key!r:.80}; expected a number or a text that no other has"
            )
        found[key] = entry
    return found


def _key_of(entry: object, name: str, where: str) -> float | str | None:
    """Return the id that an entry refers to.

    Raises:
        DataError: It is no id.
    """
    key = expect(entry, dict, where).get(name)
    return None if key is None else expect(key, (int, float, str), f"{where}: {name}")


def _picture(
    path: Path,
    image: dict[str, Any],
    annotations: list[dict[str, Any]],
    labels: dict[Any, str],
    files: Files,
    notes: Notes,
) -> LabelledPicture:
    source = files.find(image.get("file_name"), path)
    size = size_of(source)
    check_size(f"{path}: image {source.name}", (image.get("height"), image.get("width")), size)
    regions = list[Region]()
    for annotation in annotations:
        where = f"{path}: annotation {annotation.get('id')} of {source.name}"
        category = _key_of(annotation, "category_id", where)
        if category not in labels:
            raise DataError(f"{where}: category {category!r} is not listed")
        label = labels[category]
        regions.append(_region(label, annotation.get("segmentation"), where, size, notes))
    return LabelledPicture(files.id_of(source), source, *size, tuple(regions))


def _region(
    label: str, segmentation: object, where: str, size: tuple[int, int], notes: Notes
) -> Region:
    if isinstance(segmentation, dict):
        counts = segmentation.get("counts")
        declared = expect(segmentation.get("size") or [None, None], list, f"{where}: size")
        check_size(where, tuple(declared), size)
        try:
            runs = rle_from_text(counts) if isinstance(counts, str) else _runs(counts)
            decode_rle(runs, *size)
        except DataError as error:
            raise DataError(f"{where}: {error}") from error
        return Region(label, runs=runs)
    if not segmentation:
        raise DataError(
            f"{where}: no segmentation; a box alone says not which pixels are defect: draw regions"
        )
    polygons = expect(segmentation, list, f"{where}: segmentation")
    return drawn(label, polygons, where, size, notes)


def _runs(counts: object) -> npt.NDArray[np.int64]:
    """Return run lengths that are numbers.

    Raises:
        DataError: They are none.
    """
    given = [expect(count, (int, float), "counts") for count in expect(counts, list, "counts")]
    if broken := [count for count in given if isinstance(count, float) and not count.is_integer()]:
        raise DataError(f"counts: expected whole numbers, got {broken[0]!r}")
    try:
        return np.array([int(count) for count in given], np.int64)
    except OverflowError:
        raise DataError(f"counts: a run of {max(given, key=abs):g} px") from None


def write(
    pictures: Iterable[LabelledPicture],
    out: Path,
    labels: Sequence[str],
    *,
    as_polygons: bool = False,
    tolerance_px: float = 0.0,
) -> Path:
    """Write pictures into `images/`, and beside it `annotations.json`; return its path.

    A category's id is the index of its label. Masks that do not become polygons are run lengths,
    which are the same pixels always.
    """
    (out / "images").mkdir(parents=True, exist_ok=True)
    images, annotations = list[dict[str, Any]](), list[dict[str, Any]]()
    names = list(labels[1:])
    for number, picture in enumerate(pictures, start=1):
        name = picture.copy_to(out / "images")
        size = {"height": picture.height, "width": picture.width}
        images.append({"id": number, "file_name": f"images/{name}", **size})
        for region in picture.regions:
            if region.label not in names:
                names.append(region.label)
            entry = annotation_of(
                region, picture, as_polygons=as_polygons, tolerance_px=tolerance_px
            )
            category = names.index(region.label) + 1
            head = {"id": len(annotations) + 1, "image_id": number, "category_id": category}
            annotations.append({**head, **entry})
    categories = [{"id": index, "name": name} for index, name in enumerate(names, start=1)]
    content = {
        "info": {"description": "written by magtiles-seg"},
        "images": images,
        "annotations": annotations,
        "categories": categories,
    }
    write_json(out / NAME, content)
    return out / NAME


def annotation_of(
    region: Region,
    picture: LabelledPicture,
    *,
    as_polygons: bool = False,
    tolerance_px: float = 0.0,
) -> dict[str, Any]:
    """Return segmentation, area and box of a picture's region."""
    height, width = picture.height, picture.width
    mask = region.mask(height, width)
    if region.runs is None or as_polygons:
        drawn: Any = [
            points.ravel().tolist()
            for points in region.outlines(height, width, tolerance_px=tolerance_px)
        ]
    else:
        drawn = {"size": [height, width], "counts": rle_to_text(encode_rle(mask))}
    part, left, top = crop(mask)
    return {
        "segmentation": drawn,
        "area": int(mask.sum()),
        "bbox": [left, top, part.shape[1], part.shape[0]],
        "iscrowd": 0,
    }
