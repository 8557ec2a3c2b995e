"""Pascal VOC: masks with a palette in SegmentationClass, pictures in JPEGImages.

http://host.robots.ox.ac.uk/pascal/VOC/voc2012/. labelmap.txt, as CVAT and Datumaro write it, names
the classes by their colours; without it a class is the number of its palette entry. The colour of
the border, entry 255, is what is ignored.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from magtiles_seg.dataset.formats.masks import (
    LEFT_OUT,
    by_stem,
    check_none,
    classes_in,
    read_colour_mask,
    read_masks,
    unread_of,
)
from magtiles_seg.dataset.formats.pictures import (
    Files,
    LabelledPicture,
    Progress,
    Reading,
    check_names,
    read_text,
)
from magtiles_seg.dataset.layouts import name_key
from magtiles_seg.errors import DataError
from magtiles_seg.files import write as write_file
from magtiles_seg.labels import BACKGROUND, IGNORE, IGNORED
from magtiles_seg.shapes import Mask

LABELMAP = "labelmap.txt"
BORDER = 0xE0E0C0
_MASKS, _PICTURES = "SegmentationClass", "JPEGImages"


def recognises(files: Files) -> bool:
    """Return whether a folder holds VOC's masks."""
    return any(_MASKS in path.parts for path in files.of(".png"))


def read(root: Path, *, progress: Progress | None = None) -> Reading:
    """Read every picture of JPEGImages with its mask, and those that have none."""
    files, found = Files(root), Reading()
    aside = [p for p in files.pictures if any(part.startswith("Segmentation") for part in p.parts)]
    files.set_aside(aside)
    found.problems += [
        f"{mask}: expected it directly in the folder {_MASKS}: move it there"
        for mask in aside
        if _MASKS in mask.relative_to(root).parts and mask.parent.name != _MASKS
    ]
    with_masks = {path.parent.parent / _PICTURES for path in aside if path.parent.name == _MASKS}
    for path in files.pictures:
        if path.parent not in with_masks:
            found.notes.add(f"{path}", LEFT_OUT)
    for folder in sorted({path.parent for path in aside if path.parent.name == _MASKS}):
        by_name = by_stem(files, folder, found)
        pictures = [path for path in files.pictures if path.parent == folder.parent / _PICTURES]
        known = {name_key(path.stem) for path in pictures}
        found.problems += [
            f"{mask}: its picture is missing in {folder.parent / _PICTURES}"
            for key, mask in by_name.items()
            if key not in known
        ]
        try:
            colours = read_labelmap(folder.parent / LABELMAP)
        except DataError as error:
            found.problems.append(str(error))
            continue
        found.labels = tuple(dict.fromkeys([*found.labels, *colours.values()]))
        named = partial(_named, colours=colours)
        mask_of = partial(_of_name, by_name, unread_of(files, folder))
        read_masks(files, found, pictures, mask_of, progress, named)
    if found.regions() and not found.regions().keys() - {IGNORE} and not found.labels:
        found.problems.append(
            f"{root}: no mask holds anything but {IGNORED}, which VOC ignores; if it is a defect, "
            f"say so in {LABELMAP} beside {_MASKS}: background:0,0,0:: and <class>:255,255,255::"
        )
    found.labels = tuple(
        name for name in found.labels if name != IGNORE and not _is_background(name)
    )
    return found


def _of_name(masks: dict[str, Path], unread: dict[str, Path], picture: Path) -> Path | None:
    key = name_key(picture.stem)
    if key not in masks:
        check_none(picture, unread.get(key))
    return masks.get(key)


def read_labelmap(path: Path) -> dict[int, str]:
    """Return the classes by their colours; none where there is no such file.

    Raises:
        DataError: It is no text in UTF-8, or a line is not `name:red,green,blue:parts:actions`.
    """
    found = dict[int, str]()
    if not path.is_file():
        return found
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        name, _, rest = line.partition(":")
        try:
            red, green, blue = (int(value) for value in rest.partition(":")[0].split(","))
        except ValueError:
            raise DataError(
                f"{path}: line {number}: expected name:red,green,blue::, got {line!r:.60}"
            ) from None
        found[(red << 16) + (green << 8) + blue] = name.strip()
    return found


def _named(path: Path, *, colours: dict[int, str]) -> Iterator[tuple[str, Mask]]:
    """Yield the classes of a mask with their pixels."""
    if not colours:
        for name, mask in classes_in(path):
            yield (IGNORE if name in (str(IGNORED), f"#{BORDER:06x}") else name), mask
        return
    packed = read_colour_mask(path)
    for value in np.unique(packed).tolist():
        if value == BORDER and value not in colours:
            yield IGNORE, packed == value
        elif value not in colours and value:
            names = ", ".join(f"{name} #{colour:06x}" for colour, name in colours.items())
            raise DataError(f"mask {path}: colour #{value:06x}; expected one of {names}")
        elif not _is_background(colours.get(value, BACKGROUND)):  # black may be a class
            yield colours[value], packed == value


def _is_background(name: str) -> bool:
    return name.strip("_").casefold() == BACKGROUND


def palette() -> list[int]:
    """Return VOC's palette: 256 times red, green, blue, each 0..255.

    Source: VOCdevkit, `VOClabelcolormap.m`.
    """
    values = list[int]()
    for index in range(256):
        for channel in range(3):
            bits = [(index >> (3 * place + channel)) & 1 for place in range(8)]
            values.append(sum(bit << (7 - place) for place, bit in enumerate(bits)))
    return values


def _breaks_a_line(label: str) -> bool:
    return ":" in label or label.startswith("#") or len(label.splitlines()) != 1


def write(pictures: Iterable[LabelledPicture], out: Path, labels: Sequence[str]) -> Path:
    """Write JPEGImages, SegmentationClass, the list of pictures and labelmap.txt; return `out`.

    Pictures of other suffixes than .jpg keep theirs.

    Raises:
        DataError: A class has a name that the list of classes cannot hold.
    """
    from PIL import Image

    check_names("VOC's labelmap", labels, _breaks_a_line)
    for folder in (_PICTURES, _MASKS):
        (out / folder).mkdir(parents=True, exist_ok=True)
    colours, names = palette(), list[str]()
    for picture in pictures:
        picture.copy_to(out / _PICTURES)
        mask = Image.fromarray(picture.target(labels))
        mask.putpalette(colours)
        mask.save(out / _MASKS / f"{picture.id}.png")
        names.append(picture.id)
    write_file(out / "ImageSets" / "Segmentation" / "default.txt", "\n".join(names) + "\n")
    entries = [(label, index) for index, label in enumerate(labels)] + [(IGNORE, IGNORED)]
    lines = [
        f"{label}:{','.join(map(str, colours[3 * index : 3 * index + 3]))}::"
        for label, index in entries
    ]
    write_file(out / LABELMAP, "\n".join(["# label:color_rgb:parts:actions", *lines]) + "\n")
    return out
