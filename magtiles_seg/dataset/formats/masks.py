"""Plain masks: a picture of the same name in a folder beside, of 0 and 255, indices or colours.

A value is a class by its number, a colour by `#rrggbb`; `data_load.class_map` gives them names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from magtiles_seg.dataset.formats.pictures import (
    TEXT_SUFFIXES,
    Files,
    LabelledPicture,
    Progress,
    Reading,
    Region,
    check_size,
    mask_regions,
    read_json,
)
from magtiles_seg.dataset.layouts import MASK_SUFFIXES, name_key
from magtiles_seg.dataset.masks import DEFECT_LEVEL, DESCRIPTION
from magtiles_seg.errors import DataError, ImageError
from magtiles_seg.files import encode_png, write_json
from magtiles_seg.files import write as write_file
from magtiles_seg.image import read_colours, read_levels
from magtiles_seg.labels import IGNORE, IGNORED
from magtiles_seg.shapes import Mask

PICTURES = ("images", "image", "imgs", "img", "pictures", "jpegimages", "data", "input", "inputs")
MASKS = (
    "masks",
    "mask",
    "labels",
    "label",
    "gt",
    "ground_truth",
    "groundtruth",
    "annotations",
    "annotation",
    "segmentation",
    "segmentations",
    "targets",
    "target",
)
_MARKS = ("", "_mask", "-mask", "_label", "_gt", "_seg", "_segmentation")
Key = TypeVar("Key")

LEFT_OUT = "left out, for no folder of masks belongs to its folder"
"""What is noted of a picture that lies elsewhere."""

_UNREAD_MASKS = (".jpg", ".jpeg", ".gif")

_FEW = 32
"""A mask of more values than these is grey: edges are smooth, and a defect is bright."""


def recognises(files: Files) -> bool:
    """Return whether two folders side by side hold pictures and masks by their names."""
    return bool(_pairs(files))


def read(root: Path, *, progress: Progress | None = None) -> Reading:
    """Read every picture with the mask of its name, and those that have none."""
    files, found = Files(root), Reading()
    pairs = _pairs(files)
    masks = {folder: by_stem(files, folder, found) for folder in dict.fromkeys(pairs.values())}
    unread = {folder: unread_of(files, folder) for folder in masks}
    pictures = [path for path in files.pictures if path.parent in pairs]
    files.set_aside(path for path in files.of(*MASK_SUFFIXES) if path.parent in masks)
    for path in files.pictures:
        if path.parent not in pairs:
            found.notes.add(f"{path}", LEFT_OUT)
    used = set[Path]()

    def mask_of(picture: Path) -> Path | None:
        some = _masks_of(picture, masks[pairs[picture.parent]])
        used.update(some)
        if len(some) > 1:
            raise DataError(f"{picture}: two masks, {some[0]} and {some[1]}; expected one")
        if not some:
            check_none(picture, next(iter(_masks_of(picture, unread[pairs[picture.parent]])), None))
        return some[0] if some else None

    read_masks(files, found, pictures, mask_of, progress)
    found.problems += [
        f"{mask}: its picture is missing"
        for beside in masks.values()
        for mask in beside.values()
        if mask not in used
    ]
    return found


def read_masks(
    files: Files,
    found: Reading,
    pictures: Sequence[Path],
    mask_of: Callable[[Path], Path | None],
    progress: Progress | None = None,
    names: Callable[[Path], Iterator[tuple[str, Mask]]] | None = None,
) -> None:
    """Add pictures with the masks that a function finds to a reading.

    Args:
        files: Of the data set.
        found: What is added to.
        pictures: Which.
        mask_of: Returns the mask of a picture, or None where it has none.
        progress: Told pictures.
        names: Yields what a mask holds; None: `classes_in`.
    """
    described = read_description(files.root)
    found.labels = found.labels or described[1:]
    found.of_masks = True

    def picture_of(path: Path) -> LabelledPicture:
        mask = mask_of(path)  # first: a mask whose picture is damaged has one
        picture = files.bare(path, labelled=mask is not None)
        regions = list[Region]()
        for label, part in (names or classes_in)(mask) if mask else ():
            check_size(f"{mask}", part.shape, (picture.height, picture.width))
            name = _named(label, described)
            regions += mask_regions(name, part) if part.any() else [_faint(name, mask)]
        return replace(picture, regions=tuple(regions))

    found.take(pictures, picture_of, progress)


def _faint(label: str, mask: Path | None) -> Region:
    return Region(label, lost=(f"{mask}", f"no pixel of it is {DEFECT_LEVEL} or brighter"))


def read_description(root: Path) -> tuple[str, ...]:
    """Return the class names, background first, that a data set written here says of itself.

    Raises:
        DataError: The file is no such description.
    """
    path = root / DESCRIPTION
    content = read_json(path) if path.is_file() else {}
    labels = content.get("labels", []) if isinstance(content, dict) else None
    if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
        raise DataError(f"{path}: names no labels; expected a list of class names")
    return tuple(labels)


def _named(value: str, labels: Sequence[str]) -> str:
    """Return the class of a mask's value in a data set that says its classes."""
    if not labels or not value.isdecimal():
        return value
    index = int(value)
    return labels[index] if index < len(labels) else IGNORE if index == IGNORED else value


def _pairs(files: Files) -> dict[Path, Path]:
    """Return the folders of pictures, each with that of its masks."""
    found: dict[Path, Path] = {}
    with_masks, with_unread = (
        {path.parent.relative_to(files.root).parts for path in files.of(*suffixes)}
        for suffixes in (MASK_SUFFIXES, _UNREAD_MASKS)
    )
    for folder in {path.parent for path in files.pictures}:
        parts = folder.relative_to(files.root).parts
        places = [index for index, part in enumerate(parts) if part.lower() in PICTURES]
        for at in places[-1:]:  # a folder of unread masks alone is told
            others = _beside(parts, at, with_masks) or _beside(parts, at, with_unread)
            if len(others) == 1:
                found[folder] = files.root.joinpath(*others[0])
    return found


def _beside(
    parts: tuple[str, ...], at: int, folders: Iterable[tuple[str, ...]]
) -> list[tuple[str, ...]]:
    """Return the folders that differ from one in a single part, which is a name of masks."""
    return [
        other
        for other in folders
        if len(other) == len(parts)
        and other[at].lower() in MASKS
        and (*other[:at], *other[at + 1 :]) == (*parts[:at], *parts[at + 1 :])
    ]


def by_stem(files: Files, folder: Path, found: Reading) -> dict[str, Path]:
    """Return the masks of a folder by the keys of their stems."""
    masks = [path for path in files.of(*MASK_SUFFIXES) if path.parent == folder]
    return by_key(masks, lambda path: name_key(path.stem), found)


def unread_of(files: Files, folder: Path) -> dict[str, Path]:
    """Return the files of a folder of masks that are of no format of masks, by their stems' keys.

    Texts are none of them.
    """
    known = MASK_SUFFIXES | TEXT_SUFFIXES
    return {
        name_key(path.stem): path
        for path in files.all
        if path.parent == folder and path.suffix.lower() not in known
    }


def check_none(picture: Path, unread: Path | None) -> None:
    """Refuse a picture whose mask is there, but of another format: it is not without a label.

    Raises:
        DataError: It is such a one.
    """
    if unread is not None:
        raise DataError(
            f"{picture}: mask is missing; {unread} is not read: save it as PNG, made again if "
            "that is lossy"
        )


def by_key(masks: Iterable[Path], key_of: Callable[[Path], Key], found: Reading) -> dict[Key, Path]:
    """Return masks by their keys; a second one of a key is a problem of the reading."""
    by: dict[Key, Path] = {}
    for mask in masks:
        first = by.setdefault(key_of(mask), mask)
        if first is not mask:
            found.problems.append(f"{mask}: a second mask beside {first}; expected one a picture")
    return by


def _masks_of(picture: Path, masks: dict[str, Path]) -> list[Path]:
    """Return the masks of a picture: of its name, which some mark may follow."""
    found = (masks.get(name_key(picture.stem + mark)) for mark in _MARKS)
    return [mask for mask in found if mask is not None]


def classes_in(path: Path) -> Iterator[tuple[str, Mask]]:
    """Yield the values of a mask but 0, or its colours but black, each with its pixels.

    A mask of many values is grey: what is at least 128 is its 255.

    Raises:
        DataError: It is damaged, or of many colours.
    """
    try:
        levels: npt.NDArray[np.integer] = read_levels(path)
    except ImageError as error:
        if error.reason != "unsupported":
            raise ImageError(f"mask {error}", reason=error.reason) from error
        yield from _colours_in(path)
        return
    values = np.flatnonzero(np.bincount(levels.ravel()))
    if len(values) > _FEW:
        levels = np.where(levels >= DEFECT_LEVEL, 255, 0)
        values = np.array([0, 255])
    for value in values:
        if value:
            yield str(value), levels == value


def _colours_in(path: Path) -> Iterator[tuple[str, Mask]]:
    packed = read_colour_mask(path)
    for value in (values := np.unique(packed)):
        if len(values) > _FEW:
            raise DataError(
                f"mask {path} holds {len(values)} colours; expected one for each class: it may be "
                "a picture, or saved by a lossy format"
            )
        if value:
            yield f"#{value:06x}", packed == value


def read_colour_mask(path: Path) -> npt.NDArray[np.int32]:
    """Return the colours of a mask, (H, W) int32: red, green and blue in one number of 24 bits.

    Raises:
        DataError: It is damaged, of a lossy format, or has more than 8 bits for a colour.
    """
    try:
        return read_colours(path)
    except ImageError as error:
        raise ImageError(f"mask {error}", reason=error.reason) from error


def write(pictures: Iterable[LabelledPicture], out: Path, labels: Sequence[str]) -> Path:
    """Write the layout `folder` into `out`, and return that: `images/`, and masks of class indices.

    What is ignored has the value 255 there. `dataset.json` beside them names the classes.
    """
    for folder in ("images", "masks"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    for picture in pictures:
        picture.copy_to(out / "images")
        mask = encode_png(picture.target(labels))
        write_file(out / "masks" / f"{picture.id}.png", mask)
    write_json(out / DESCRIPTION, {"labels": list(labels), "ignore": IGNORED})
    return out
