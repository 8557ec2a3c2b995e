"""Formats: data sets as other tools write them, in and out, over one form of labelled pictures."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from magtiles_seg.dataset.formats import (
    coco,
    cvat,
    huggingface,
    labelme,
    labelstudio,
    masks,
    mvtec,
    voc,
    yolo,
)
from magtiles_seg.dataset.formats.pictures import (
    Files,
    LabelledPicture,
    Progress,
    Reading,
    Region,
    check_tags,
    from_samples,
    from_target,
    read_json,
)
from magtiles_seg.errors import ConfigError, DataError
from magtiles_seg.files import staged_folder
from magtiles_seg.shapes import check_tolerance

__all__ = [
    "FORMATS",
    "LabelledPicture",
    "Reading",
    "Region",
    "check_tags",
    "detect",
    "from_samples",
    "from_target",
    "read",
    "write",
]

FORMATS: dict[str, ModuleType] = {
    "labelme": labelme,
    "coco": coco,
    "yolo": yolo,
    "voc": voc,
    "cvat": cvat,
    "label-studio": labelstudio,
    "masks": masks,
    "mvtec": mvtec,
    "huggingface": huggingface,
}
"""Each by its name, as a module with `read` and `write`, which take what those here take; `write`
returns the path that the format is opened by."""

_LABELS_IN = {"labelme": ".json", "coco": ".json", "label-studio": ".json", "cvat": ".xml"}
"""Suffix of the files with the labels, where they are read only if their content is such."""

_WITH_BOTH = frozenset({"labelme", "coco", "cvat", "label-studio"})
"""Formats of polygons and masks; each has a default of its own."""

_WITH_POLYGONS = _WITH_BOTH | {"yolo"}

_LOOKED_AT = 20
"""JSON and XML files of a folder that are opened to tell its format."""


def read(name: str, root: Path, *, progress: Progress | None = None) -> Reading:
    """Read a data set of a format.

    Args:
        name: One of `FORMATS`.
        root: Its folder.
        progress: Told files or pictures.

    Raises:
        ConfigError: The format is unknown.
    """
    found: Reading = _module(name).read(root, progress=progress)
    if name in _LABELS_IN and not (found.problems or any(p.labelled for p in found.pictures)):
        of_others = Files(root).of(_LABELS_IN[name])
        if of_others and not any(_is_of(name, path) for path in of_others):
            found.problems.append(
                f"{of_others[0]}: no label of the format {name!r} in it, nor in any other "
                f"{_LABELS_IN[name]} file; is it of another format, or another export of its tool?"
            )
    return found


def write(
    name: str,
    pictures: Iterable[LabelledPicture],
    out: Path,
    labels: Sequence[str],
    *,
    as_polygons: bool | None = None,
    tolerance_px: float = 0.0,
) -> Path:
    """Write a data set in a format, whole or not at all.

    Args:
        name: One of `FORMATS`.
        pictures: What is written.
        out: A folder, which is empty or not there yet.
        labels: Class names by index, background first.
        as_polygons: Whether masks become polygons where the format has both; None: as the format's
            own tool expects.
        tolerance_px: How far such a polygon may stray from the mask's pixels.

    Returns:
        The file or folder that the format is opened by.

    Raises:
        ConfigError: The format is unknown, or the tolerance is no number of pixels from 0 on.
        DataError: The folder holds something, or the format cannot say what a picture holds, or
            the name of a class.
        OSError: The folder cannot be written.
    """
    module = _module(name)
    check_target(out, tolerance_px)
    how: dict[str, Any] = {"tolerance_px": tolerance_px} if name in _WITH_POLYGONS else {}
    if name in _WITH_BOTH and as_polygons is not None:
        how["as_polygons"] = as_polygons
    write_: Callable[..., Path] = module.write
    with staged_folder(out) as stage:
        opened = write_(pictures, stage, labels, **how)
    return out / opened.relative_to(stage)


def check_target(out: Path, tolerance_px: float) -> None:
    """Check where and how a data set would be written, before it is read.

    Raises:
        ConfigError: The tolerance is no number of pixels from 0 on.
        DataError: There is a file, or a folder that holds something.
    """
    check_tolerance(tolerance_px)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        what = "is not empty" if out.is_dir() else "is a file"
        raise DataError(f"{out} {what}; expected a new folder, that nothing is written over")


def detect(root: Path) -> list[str]:
    """Return the formats that a folder looks like, the most telling files first."""
    files, found = Files(root), list[str]()
    for path in _first_of_each_folder(files.of(".json")):
        try:
            content = read_json(path)
        except DataError:
            continue
        for name in ("labelme", "coco", "label-studio"):
            if FORMATS[name].recognises(content):
                found.append(name)
    if any(cvat.recognises(path) for path in _first_of_each_folder(files.of(".xml"))):
        found.append("cvat")
    for name in ("huggingface", "voc", "mvtec", "yolo", "masks"):
        if not found and FORMATS[name].recognises(files):
            found.append(name)
    return list(dict.fromkeys(found))


def _is_of(name: str, path: Path) -> bool:
    """Return whether a label file is of a format that is told by the content."""
    if name == "cvat":
        return cvat.recognises(path)
    try:
        return bool(FORMATS[name].recognises(read_json(path)))
    except DataError:
        return False


def _first_of_each_folder(paths: Iterable[Path]) -> list[Path]:
    """Return a few files of each folder: those of a set are alike."""
    seen: dict[Path, list[Path]] = {}
    for path in paths:
        seen.setdefault(path.parent, []).append(path)
    return [path for inside in seen.values() for path in inside[:3]][:_LOOKED_AT]


def _module(name: str) -> ModuleType:
    if name not in FORMATS:
        raise ConfigError(f"unknown format {name!r}; expected one of {', '.join(FORMATS)}")
    return FORMATS[name]
