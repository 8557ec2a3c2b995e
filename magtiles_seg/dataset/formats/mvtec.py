"""Folders as of MVTec AD: train/good, test/<class>, ground_truth/<class>/<name>_mask.png.

https://www.mvtec.com/company/research/datasets/mvtec-ad. Every picture is labelled: sound in
`good`, else of the one class of its folder.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from magtiles_seg.dataset.formats.masks import by_key, read_masks
from magtiles_seg.dataset.formats.pictures import (
    Files,
    LabelledPicture,
    Progress,
    Reading,
    check_names,
)
from magtiles_seg.dataset.layouts import name_key
from magtiles_seg.dataset.masks import DEFECT_LEVEL, read_mask
from magtiles_seg.errors import DataError
from magtiles_seg.files import encode_png
from magtiles_seg.shapes import Mask

GOOD = frozenset({"good", "ok", "normal"})
_MASKS = "ground_truth"


def recognises(files: Files) -> bool:
    """Return whether a folder holds MVTec's masks beside its tests."""
    return bool(_categories(files))


def read(root: Path, *, progress: Progress | None = None) -> Reading:
    """Read every picture of train and test, with its mask."""
    files, found = Files(root), Reading()
    known = set[Path]()
    for category in _categories(files):
        aside = [path for path in files.pictures if path.parent.parent == category / _MASKS]
        files.set_aside(aside)
        masks = by_key(aside, _key_of_mask, found)
        there, bare = dict[Path, Path](), list[Path]()
        for path in files.pictures:
            if path.parent.parent.parent != category:
                continue
            known.add(path)
            if path.parent.name.lower() in GOOD:
                bare.append(path)
            elif mask := masks.get(_key(path)):
                there[path] = mask
            else:
                place = category / _MASKS / path.parent.name
                found.problems.append(f"{place / path.stem}_mask.png: mask is missing")
        found.problems += [
            f"{mask}: its picture is missing" for mask in {*masks.values()} - {*there.values()}
        ]
        found.take(bare, partial(files.bare, labelled=True))
        read_masks(files, found, list(there), there.get, progress, _defect)
    for path in files.pictures:
        if path not in known:
            found.notes.add(f"{path}", "left out, for it lies directly in no folder of a class")
    return found


def _key(path: Path) -> tuple[str, str]:
    """Return what a picture and its mask share: the class's folder, and the name."""
    return path.parent.name, name_key(path.stem)


def _key_of_mask(path: Path) -> tuple[str, str]:
    return path.parent.name, name_key(path.stem.removesuffix("_mask"))


def _categories(files: Files) -> list[Path]:
    return sorted(
        {
            path.parent.parent.parent
            for path in files.pictures
            if path.parent.parent.name == _MASKS and path.parent.parent.parent != path.parent.parent
        }
    )


def _defect(path: Path) -> Iterator[tuple[str, Mask]]:
    """Yield a mask's defect; its values are 0 and 255, or 0 and 1."""
    levels = read_mask(path)
    yield path.parent.name, levels >= (1 if levels.max() == 1 else DEFECT_LEVEL)


def _cannot_be_a_folder(label: str) -> bool:
    return label.casefold() in GOOD or label in (".", "..") or any(s in label for s in "/\\\0")


def write(pictures: Iterable[LabelledPicture], out: Path, labels: Sequence[str]) -> Path:
    """Write sound pictures into train/good, others into the folder of their class; return `out`.

    Raises:
        DataError: A picture has several classes or an ignored region, which the format cannot say,
            or a class has a name that no folder of it can have.
    """
    check_names("MVTec's folders", labels[1:], _cannot_be_a_folder)
    for picture in pictures:
        target = picture.target(labels)
        there = Counter(target[target > 0].tolist())
        if not there:
            folder = out / "train" / "good"
        elif len(there) > 1 or max(there) >= len(labels):
            names = ", ".join(sorted({region.label for region in picture.regions}))
            raise DataError(
                f"{picture.path} holds {names}; MVTec's folders say one class a picture: merge "
                "the classes by data_load.class_map, or write another format"
            )
        else:
            label = labels[next(iter(there))]
            folder = out / "test" / label
            place = out / _MASKS / label / f"{picture.id}_mask.png"
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(encode_png(np.where(target > 0, 255, 0).astype(np.uint8)))
        folder.mkdir(parents=True, exist_ok=True)
        picture.copy_to(folder)
    return out
