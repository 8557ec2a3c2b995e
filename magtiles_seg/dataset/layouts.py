"""Layouts: where a data set's files lie on disk, whatever they mean."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path

from magtiles_seg.errors import ConfigError, DataError

LAYOUTS = ("auto", "magnetic-tile", "folder")
CLASS_PREFIX = "MT_"
_SEARCH_DEPTH = 3


def locate(root: Path, layout: str = "auto") -> tuple[str, Path]:
    """Return the layout and the directory of the shallowest data set in or under `root`.

    Raises:
        FileNotFoundError: `root` is no directory.
        ConfigError: The layout is unknown.
        DataError: There is no data set of that layout.
    """
    if layout not in LAYOUTS:
        raise ConfigError(f"unknown layout {layout!r}; expected one of {', '.join(LAYOUTS)}")
    root = Path(root)
    if not root.is_dir():
        raise FileNotFoundError(
            f"no directory {root}; fetch the data first: magtiles-seg data load"
        )
    level = [root]
    for _ in range(_SEARCH_DEPTH + 1):
        for directory in level:
            found = _layout_of(directory)
            if found and layout in ("auto", found):
                return found, directory
        level = sorted(child for parent in level for child in parent.iterdir() if child.is_dir())
    raise DataError(
        f"{root} holds no data set of layout {layout!r}; expected folders "
        f"{CLASS_PREFIX}<Class>/Imgs (magnetic-tile) or images/ and masks/ (folder)"
    )


def by_stem(directory: Path, suffixes: Iterable[str]) -> dict[str, Path]:
    """Return {stem: file} of the visible files of a directory that have one of the suffixes."""
    files = sorted(directory.iterdir()) if directory.is_dir() else []
    return {
        file.stem: file
        for file in files
        if file.suffix.lower() in suffixes and not file.name.startswith(".")
    }


def missing(
    picture_dir: Path, pictures: dict[str, Path], mask_dir: Path, masks: dict[str, Path]
) -> list[str]:
    """Return one line for every picture without a mask and every mask without a picture."""
    return [
        *(f"{mask_dir / stem}.png: mask is missing" for stem in pictures.keys() - masks.keys()),
        *(
            f"{picture_dir / stem}.jpg: picture is missing"
            for stem in masks.keys() - pictures.keys()
        ),
    ]


def read_groups(path: Path, stems: Sequence[str]) -> tuple[dict[str, int], list[str]]:
    """Return {stem: group} from groups.csv, and one line for each problem in it.

    Where there is no such file, every picture is a group of its own.
    """
    if not path.is_file():
        return {stem: index for index, stem in enumerate(stems)}, []
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        if not {"image", "group"} <= set(reader.fieldnames or ()):
            return {}, [f"{path}: expected the columns image,group; got {reader.fieldnames}"]
        name_of = {Path(row["image"]).stem: row["group"] for row in reader}
    names = sorted(set(name_of.values()))
    index_of = {name: index for index, name in enumerate(names)}
    problems = [f"{path}: no line for the picture {s}" for s in stems if s not in name_of]
    return {stem: index_of[name] for stem, name in name_of.items()}, problems


def _layout_of(directory: Path) -> str | None:
    if any(child.name.startswith(CLASS_PREFIX) and child.is_dir() for child in directory.iterdir()):
        return "magnetic-tile"
    if (directory / "images").is_dir():
        return "folder"
    return None
