"""YOLO's segmentation: a text file for each picture, a polygon a line in shares of its size.

https://docs.ultralytics.com/datasets/segment/. The text lies where the last folder `images` of the
picture's path is called `labels`, or beside the picture; the names of the classes in data.yaml.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import yaml

from magtiles_seg.dataset.formats.pictures import (
    Files,
    LabelledPicture,
    Notes,
    Progress,
    Reading,
    Region,
    drawn,
    read_text,
    size_of,
)
from magtiles_seg.dataset.layouts import name_key
from magtiles_seg.errors import DataError
from magtiles_seg.files import write as write_file

NAME = "data.yaml"
_MOST_CLASSES = 10_000
_NUMBER = re.compile(r"-?[0-9]{1,18}")
_NO_LABELS = frozenset({"classes.txt", "labels.txt", "readme.txt", "notes.txt", "obj.names"})


def recognises(files: Files) -> bool:
    """Return whether a folder holds texts of labels beside or below pictures."""
    return any(_text_of(path) in files.known for path in files.pictures[:200]) or (
        any(path.parent.name == "labels" or "labels" in path.parts for path in files.of(".txt"))
        and bool(_names(files))
    )


def read(root: Path, *, progress: Progress | None = None) -> Reading:
    """Read the text of every picture under a folder, and the pictures that have none."""
    files, found = Files(root), Reading()
    try:
        found.labels = _names(files)
    except DataError as error:
        found.problems.append(str(error))
    used, bare = set[Path](), list[Path]()

    def picture_of(path: Path) -> LabelledPicture | None:
        text = _text_of(path)
        if text not in files.known:
            text = path.with_suffix(".txt")
        if text not in files.known:
            bare.append(path)
            return None
        used.add(text)
        return _picture(path, text, found.labels, files, found.notes)

    found.take(files.pictures, picture_of, progress)
    found.problems += _not_used(files, used, bare)
    found.take(bare, files.bare)
    return found


def _not_used(files: Files, used: set[Path], bare: Sequence[Path]) -> Iterator[str]:
    """Yield a line for each text that is a label by its place or name, but of no picture."""
    beside = {(path.parent, name_key(path.stem)) for path in files.pictures}
    lacking = {name_key(path.stem): path for path in bare}
    for path in files.of(".txt"):
        if path in used or path.name.lower() in _NO_LABELS:
            continue
        key = name_key(path.stem)
        if "labels" in path.parts or path.parent.name == "labels":
            yield f"{path}: its picture is missing"
        elif key in lacking:
            yield (
                f"{path}: not read as the label of {lacking[key]}; expected it beside the picture, "
                "or in a folder labels/ where that has images/, both in small letters"
            )
        elif (path.parent, key) in beside:
            yield f"{path}: a second label of the picture beside it; expected one"


def _text_of(picture: Path) -> Path:
    parts = list(picture.with_suffix(".txt").parts)
    for index in range(len(parts) - 2, -1, -1):
        if parts[index] == "images":
            parts[index] = "labels"
            break
    return Path(*parts)


def _names(files: Files) -> tuple[str, ...]:
    """Return the names of data.yaml, or of classes.txt; none where there is neither.

    Raises:
        DataError: The list cannot be read.
    """
    for path in sorted(files.of(".yaml", ".yml"), key=lambda path: len(path.parts)):
        text = read_text(path)
        try:
            content = yaml.load(text, yaml.BaseLoader)  # a class may be called no, or 1
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            raise DataError(f"{path}: no YAML: {error}") from error
        names = content.get("names") if isinstance(content, dict) else None
        if isinstance(names, list):
            names = dict(enumerate(names))
        if isinstance(names, dict) and names and all(_NUMBER.fullmatch(str(k)) for k in names):
            names = {int(key): name for key, name in names.items()}
            _check_names(path, names)
            return tuple(names.get(index) or str(index) for index in range(max(names) + 1))
    for path in files.of(".txt"):
        if path.name.lower() == "classes.txt":
            return tuple(read_text(path).rstrip().splitlines())
    return ()


def _check_names(path: Path, names: dict[int, object]) -> None:
    """Refuse what is no list of names, before it is written out: a few letters of YAML may be much.

    Raises:
        DataError: A number is out of range, or a name is a list or the like.
    """
    for index, name in names.items():
        if not 0 <= index < _MOST_CLASSES or not isinstance(name, str):
            raise DataError(
                f"{path}: names: {index}: {type(name).__name__}; expected a number from 0 to "
                f"{_MOST_CLASSES - 1} and a name for each class"
            )


def _picture(
    path: Path, text: Path, names: Sequence[str], files: Files, notes: Notes
) -> LabelledPicture:
    height, width = size_of(path)
    lines = read_text(text).splitlines()
    regions = list[Region]()
    for number, line in enumerate(lines, start=1):
        where = f"{text}: line {number}"
        if words := line.split():
            label, shares = _row(words, names, where)
            size = height, width
            regions.append(drawn(label, [shares * size[::-1]], where, size, notes))
    return LabelledPicture(files.id_of(path), path, height, width, tuple(regions))


def _row(words: list[str], names: Sequence[str], where: str) -> tuple[str, np.ndarray]:
    """Return the label of a line, and its points (P, 2) in shares of the picture's size."""
    if len(words) == 5:
        raise DataError(f"{where}: a box alone says not which pixels are defect; draw polygons")
    try:
        index, values = int(words[0]), np.array(words[1:], np.float64)
    except ValueError:
        raise DataError(
            f"{where}: expected a class and numbers, got {' '.join(words):.60}"
        ) from None
    if len(values) % 2:
        raise DataError(f"{where}: {len(values)} numbers; expected pairs of x and y")
    if names and not 0 <= index < len(names):
        raise DataError(
            f"{where}: class {index}; expected 0 to {len(names) - 1}: {', '.join(names)}"
        )
    if len(values) and np.abs(values).max() > 2:
        raise DataError(f"{where}: {np.abs(values).max():g}; expected shares of the size, 0 to 1")
    return names[index] if names else str(index), values.reshape(-1, 2)


def write(
    pictures: Iterable[LabelledPicture],
    out: Path,
    labels: Sequence[str],
    *,
    tolerance_px: float = 0.0,
) -> Path:
    """Write pictures into `images/`, polygons into `labels/`, and data.yaml; return its path.

    The first class has the index 0 there: background has none.
    """
    (out / "images").mkdir(parents=True, exist_ok=True)
    (out / "labels").mkdir(exist_ok=True)
    names = list(labels[1:])
    for picture in pictures:
        picture.copy_to(out / "images")
        lines = []
        for region in picture.regions:
            if region.label not in names:
                names.append(region.label)
            index, size = names.index(region.label), (picture.width, picture.height)
            for points in region.outlines(*size[::-1], tolerance_px=tolerance_px):
                shares = " ".join(f"{value:.8g}" for value in (points / size).ravel())
                lines.append(f"{index} {shares}\n")
        write_file(out / "labels" / f"{picture.id}.txt", "".join(lines))
    content = {"path": ".", "train": "images", "val": "images", "names": dict(enumerate(names))}
    write_file(out / NAME, yaml.safe_dump(content, sort_keys=False, allow_unicode=True))
    return out / NAME
