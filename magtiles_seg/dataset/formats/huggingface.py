"""Image folders of Hugging Face `datasets`: metadata.jsonl or .csv, a line a picture.

https://huggingface.co/docs/datasets/image_dataset. Besides `file_name` a line names the mask, in
`mask_file_name` or another column that ends so; its values are classes, as of plain masks.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from magtiles_seg.dataset.formats.masks import read_masks
from magtiles_seg.dataset.formats.masks import write as write_masks
from magtiles_seg.dataset.formats.pictures import (
    Files,
    LabelledPicture,
    Progress,
    Reading,
    expect,
    read_text,
)
from magtiles_seg.errors import DataError
from magtiles_seg.files import write as write_file

NAME, MASK = "metadata.jsonl", "mask_file_name"
_NAMES = (NAME, "metadata.csv")
_COLUMNS = (MASK, "label_file_name", "annotation_file_name", "segmentation_file_name", "mask")


def recognises(files: Files) -> bool:
    """Return whether a folder holds such a list."""
    return any(path.name in _NAMES for path in files.all)


def read(root: Path, *, progress: Progress | None = None) -> Reading:
    """Read every picture of the lists with its mask, and those that none names."""
    files, found = Files(root), Reading()
    masks, pictures = dict[Path, Path | None](), dict[Path, Path]()
    for path in files.all:
        if path.name in _NAMES:
            _read_list(path, files, masks, pictures, found)
    files.set_aside(mask for mask in masks.values() if mask)
    read_masks(files, found, list(pictures), masks.get, progress)
    found.take(files.unlabelled(pictures), files.bare)
    return found


def _read_list(
    path: Path,
    files: Files,
    masks: dict[Path, Path | None],
    pictures: dict[Path, Path],
    found: Reading,
) -> None:
    """Enter the pictures and masks of a list."""
    try:
        rows = _rows(path)
        column = _column(path, rows)
    except DataError as error:
        found.problems.append(str(error))
        return
    for number, row in enumerate(rows, start=1):
        try:
            where = f"{path}: row {number}"
            picture = files.find(expect(row, dict, where).get("file_name"), path)
            if picture in pictures:
                raise DataError(f"{where}: names {picture}, as a row before it does")
            named = row.get(column)
            if isinstance(named, dict):
                named = named.get("file_name") or named.get("path")
            pictures[picture] = path
            masks[picture] = files.find(named, path) if named else None
        except DataError as error:
            found.problems.append(str(error))


def _rows(path: Path) -> list[Any]:
    text = read_text(path)
    try:
        if path.suffix == ".csv":
            header = text.partition("\n")[0].strip()
            found = (mark for mark in ",;\t" if "file_name" in header.split(mark))
            separator = next(found, ",")  # a spreadsheet writes its country's
            return list(csv.DictReader(io.StringIO(text, newline=""), delimiter=separator))
        return [json.loads(line) for line in text.split("\n") if line.strip()]
    except (ValueError, RecursionError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error


def _column(path: Path, rows: Sequence[Any]) -> str:
    """Return the column that names masks."""
    names = {str(key) for row in rows if isinstance(row, dict) for key in row}
    known = [column for column in _COLUMNS if column in names]
    found = known[:1] or sorted(name for name in names if name.endswith("_file_name"))
    if len(found) > 1:
        raise DataError(
            f"{path}: the columns {', '.join(found)} name files; expected one of masks: call it "
            f"{MASK}"
        )
    if found:
        return found[0]
    raise DataError(
        f"{path}: no column of masks among {', '.join(sorted(names)) or 'none'}; expected {MASK}: "
        "boxes or classes alone say not which pixels are defect"
    )


def write(pictures: Iterable[LabelledPicture], out: Path, labels: Sequence[str]) -> Path:
    """Write pictures, masks of class indices, and metadata.jsonl; return the path of that."""
    pictures = list(pictures)
    write_masks(pictures, out, labels)
    names = {path.stem: path.name for path in (out / "images").iterdir()}
    lines = [
        json.dumps(
            {
                "file_name": f"images/{names[picture.id]}",
                MASK: f"masks/{picture.id}.png",
                "labels": sorted({region.label for region in picture.regions}),
            }
        )
        for picture in pictures
    ]
    write_file(out / NAME, "\n".join(lines) + "\n")
    return out / NAME
