"""From any format to the project's own or another: classes renamed, merged or left out."""

from __future__ import annotations

import hashlib
import shutil
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from magtiles_seg.dataset import formats
from magtiles_seg.dataset.formats import masks
from magtiles_seg.dataset.formats.pictures import (
    Files,
    LabelledPicture,
    Progress,
    Reading,
    Region,
    check_tags,
)
from magtiles_seg.dataset.groups import FILE_NAME
from magtiles_seg.dataset.layouts import CLASS_PREFIX, FORMAT_NAMES, is_junk, name_key
from magtiles_seg.dataset.masks import DESCRIPTION
from magtiles_seg.dataset.samples import find_samples, raise_problems
from magtiles_seg.errors import DataError
from magtiles_seg.files import write_json
from magtiles_seg.labels import BACKGROUND, IGNORE, IGNORED, LABELS, mistake_of_labels
from magtiles_seg.names import counted

if TYPE_CHECKING:
    from magtiles_seg.config import DataLoadParams

ALL = "*"
"""In a class map: every class that has no entry of its own."""


@dataclass(frozen=True)
class Wanted:
    """What is made of a data set of another tool.

    Attributes:
        labels: Class names by index, background first.
        class_map: `name=label` each: what a class of the source becomes: one of the labels,
            `background` or `ignore`. A name may be a mask's value, a colour `#rrggbb`, or `*`.
        unlabelled: What a picture without a label is: `sound`, or to `skip`; None: refused.
        layout: Its format, or `auto`.
    """

    labels: tuple[str, ...]
    class_map: tuple[str, ...] | None = None
    unlabelled: str | None = None
    layout: str = "auto"

    @classmethod
    def of(cls, params: DataLoadParams) -> Wanted:
        """Return what the section `data_load` asks for."""
        return cls(params.labels, params.class_map, params.unlabelled, params.layout)

    @property
    def maps(self) -> bool:
        """Whether also masks in the layout `folder` are to be written anew."""
        return self.class_map is not None or self.unlabelled is not None

    @property
    def key(self) -> str:
        """What a converted data set is known by, beside its source."""
        parts = (self.layout, self.labels, self.class_map, self.unlabelled)
        return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def format_of(root: Path, wanted: Wanted) -> str | None:
    """Return the format to convert a data set from, or None where it is read as it lies.

    Raises:
        DataError: It looks like several.
    """
    if wanted.layout in FORMAT_NAMES:
        return wanted.layout
    if wanted.layout == "magnetic-tile":
        return None
    if wanted.layout == "folder":
        return "masks" if wanted.maps else None
    folders = [root, *(path for path in root.iterdir() if path.is_dir() and not is_junk(path))]
    if any(path.name.startswith(CLASS_PREFIX) for folder in folders for path in folder.iterdir()):
        return None
    if not wanted.maps and any((f / "images").is_dir() and (f / "masks").is_dir() for f in folders):
        return None
    found = formats.detect(root)
    if len(found) > 1:
        raise DataError(
            f"{root} looks like {' and '.join(found)}; expected one: set data_load.layout"
        )
    return found[0] if found else None


def convert(
    root: Path, out: Path, name: str, wanted: Wanted, *, progress: Progress | None = None
) -> str:
    """Write a data set of another tool in the layout `folder`, and return what was found.

    Args:
        root: The data set.
        out: Where to.
        name: Its format.
        wanted: What is made of it.
        progress: Told pictures that were read.

    Raises:
        DataError: Files are damaged or do not fit each other, classes are unknown, or pictures
            have no label and nobody said what they are; names all of it.
    """
    reading = mapped(formats.read(name, root, progress=progress), wanted)
    raise_problems(root, reading.problems)
    if not reading.pictures:
        raise DataError(f"{root} holds no picture of the format {name}; name another layout")
    said = "; ".join([summary(name, reading, wanted), *reading.notes.lines()])
    masks.write(reading.pictures, out, wanted.labels)
    groups = sorted((p for p in Files(root).of(".csv") if p.name == FILE_NAME),
                    key=lambda path: len(path.parts))  # fmt: skip
    if groups:
        shutil.copyfile(groups[0], out / FILE_NAME)
    content = {"labels": list(wanted.labels), "ignore": IGNORED, "format": name, "said": said}
    write_json(out / DESCRIPTION, content)
    return said


def rewrite(
    source: Path,
    out: Path,
    name: str,
    wanted: Wanted,
    *,
    as_polygons: bool | None = None,
    tolerance_px: float = 0.0,
    progress: Progress | None = None,
) -> str:
    """Write a data set in another format, and return in a sentence what it holds.

    Args:
        source: A folder in any format or layout.
        out: A new folder.
        name: The format to write, one of `magtiles_seg.dataset.formats.FORMATS`.
        wanted: How the source is read; its classes keep their names unless there are labels other
            than the magnetic tiles' or a class map.
        as_polygons: As of `formats.write`.
        tolerance_px: As of `formats.write`.
        progress: Told pictures that were read.

    Raises:
        FileNotFoundError: There is no such folder.
        ConfigError: The format is unknown, or the tolerance is no number of pixels from 0 on.
        DataError: The source is not whole, `out` is not empty or lies in it, or the format cannot
            say it.
    """
    if not source.is_dir():
        raise FileNotFoundError(f"no folder {source}; expected a data set, unpacked")
    if source.resolve() in (out.resolve(), *out.resolve().parents):
        raise DataError(
            f"{out} lies in {source}, which would then hold every picture twice; name a folder "
            "outside of it"
        )
    formats.check_target(out, tolerance_px)
    found = format_of(source, wanted)
    if found is None:
        said = masks.read_description(source) if wanted.labels == LABELS else ()
        wanted = replace(wanted, labels=said or wanted.labels)
        samples = find_samples(source, layout=wanted.layout, labels=wanted.labels)
        reading = Reading(list(formats.from_samples(samples, wanted.labels)))
        found = "folder"
    else:
        reading = formats.read(found, source, progress=progress)
        if wanted.class_map is None and wanted.labels == LABELS:
            seen = dict.fromkeys([*reading.labels, *reading.regions()])
            names = [name for name in seen if name.casefold() not in (BACKGROUND, IGNORE)]
            wanted = replace(wanted, labels=(BACKGROUND, *names))
        reading = mapped(reading, wanted)
        raise_problems(source, reading.problems)
    if len(wanted.labels) > 1 and (mistake := mistake_of_labels(wanted.labels)):
        raise DataError(
            f"{source}: class names: {mistake}; set data_load.labels, and by data_load.class_map "
            "what each of its classes becomes"
        )
    formats.write(
        name,
        reading.pictures,
        out,
        wanted.labels,
        as_polygons=as_polygons,
        tolerance_px=tolerance_px,
    )
    return "; ".join([summary(found, reading, wanted), *reading.notes.lines()])


def mapped(reading: Reading, wanted: Wanted) -> Reading:
    """Return a reading whose classes are those that are wanted; what does not fit is a problem."""
    rules = dict(entry.rpartition("=")[::2] for entry in wanted.class_map or ())
    names = dict.fromkeys(one.label for picture in reading.pictures for one in picture.regions)
    becomes = {name: _label_of(name, rules, wanted.labels) for name in names}
    if reading.of_masks:
        becomes |= {
            name: _label_of_value(name, wanted.labels)
            for name, label in becomes.items()
            if label is None
        }
    problems = [*reading.problems, *_unknown(becomes, reading, wanted), *_same_ids(reading)]
    bare = [picture for picture in reading.pictures if not picture.labelled]
    if bare and wanted.unlabelled is None:
        problems.append(
            f"{bare[0].path}{f' and {len(bare) - 1} more' if len(bare) > 1 else ''}: no label; set "
            "data_load.unlabelled to 'sound' if such pictures show no defect, or to 'skip'"
        )
    pictures = [
        replace(picture, regions=tuple(_relabelled(picture.regions, becomes)))
        for picture in reading.pictures
        if picture.labelled or wanted.unlabelled != "skip"
    ]
    pictures, emptied = replace(reading, pictures=pictures).kept()
    hint = f", or map its class to {BACKGROUND} by data_load.class_map"
    tagged = check_tags(
        pictures, lambda tag: _label_of(tag, rules, wanted.labels) in wanted.labels[1:]
    )
    problems += [f"{problem}{hint}" for problem in (*emptied, *tagged)]
    classes = dict.fromkeys([*reading.labels, *names])
    for name in _idle(rules, reading, classes):
        said = f"no class of this data set is called so; it has {', '.join(classes) or 'none':.300}"
        reading.notes.add(f"data_load.class_map: {name!r}", said)
    return replace(reading, pictures=pictures, problems=problems)


def _label_of(name: str, rules: Mapping[str, str], labels: Sequence[str]) -> str | None:
    """Return what a class becomes, or None where nobody said it."""
    if name in rules:
        return rules[name]
    folded = {key.casefold(): value for key, value in rules.items()}
    if name.casefold() in folded:
        return folded[name.casefold()]
    if ALL in rules:
        return rules[ALL]
    if name in labels:
        return name
    known = {label.casefold(): label for label in (*labels, IGNORE)}
    return known.get(name.casefold())


def _label_of_value(name: str, labels: Sequence[str]) -> str | None:
    """Return the class of a mask's value, or None where it has none."""
    if name.isdecimal() and int(name) < len(labels):
        return labels[int(name)]
    return labels[1] if name == str(IGNORED) and len(labels) == 2 else None


def _unknown(becomes: Mapping[str, str | None], reading: Reading, wanted: Wanted) -> Iterator[str]:
    """Yield a line that names the classes without a meaning, and how to give them one."""
    counts = reading.regions()
    lost = [name for name, label in becomes.items() if label is None and name in counts]
    if not lost:
        return
    where = next(
        picture.path
        for picture in reading.pictures
        if any(region.label in lost for region in picture.regions)
    )
    listed = ", ".join(f"{name!r} ({counted(counts[name], 'region')})" for name in lost)
    names = _as_yaml(*dict.fromkeys([BACKGROUND, *reading.labels, *counts]))
    said = f"the classes {listed} are" if len(lost) > 1 else f"the class {listed} is"
    yield (
        f"{where}: {said} none of {list(wanted.labels)}; set data_load.labels: "
        f"{names}, or what each becomes: data_load.class_map: {_as_yaml(f'{lost[0]}=…')} (a "
        f"label, {BACKGROUND} or {IGNORE})"
    )


def _as_yaml(*texts: str) -> str:
    """Return texts as a list in a line of YAML, in quotes where it asks for them."""
    text: str = yaml.safe_dump(
        list(texts), default_flow_style=True, allow_unicode=True, width=sys.maxsize
    )
    return text.strip()


def _idle(rules: Mapping[str, str], reading: Reading, classes: Iterable[str]) -> Iterator[str]:
    """Yield the names of a class map that a data set does not know: they may be misspelt."""
    tags = (tag for picture in reading.pictures for tag in picture.tags)
    known = {name.casefold() for name in (ALL, *classes, *tags)}
    yield from (name for name in rules if name.casefold() not in known)


def _same_ids(reading: Reading) -> Iterator[str]:
    """Yield a line for each picture whose name is another's, too."""
    first: dict[str, LabelledPicture] = {}
    for picture in reading.pictures:
        other = first.setdefault(name_key(picture.id), picture)
        if other is not picture:
            yield f"{picture.path}: same name as {other.path}; expected one of each: rename one"


def _relabelled(regions: Sequence[Region], becomes: Mapping[str, str | None]) -> Iterator[Region]:
    for region in regions:
        label = becomes[region.label]
        if label is None and region.is_empty:
            yield region
        elif label is not None and label != BACKGROUND:
            yield replace(region, label=label)


def summary(name: str, reading: Reading, wanted: Wanted) -> str:
    """Return in a sentence what a data set holds, as `mapped` gives it."""
    bare = sum(not picture.labelled for picture in reading.pictures)
    labelled = len(reading.pictures) - bare
    counts: Counter[str] = reading.regions()
    regions = ", ".join(f"{count} {label}" for label, count in sorted(counts.items())) or "none"
    sound = sum(picture.labelled and not picture.regions for picture in reading.pictures)
    pictures = counted(labelled, "labelled picture")
    text = f"{name}: {pictures}, {sound} of them sound; regions: {regions}"
    if wanted.unlabelled == "sound":
        text += f"; {counted(bare, 'picture')} without a label count{'s' * (bare == 1)} as sound"
    elif wanted.unlabelled == "skip":
        text += "; pictures without a label are left out"
    return text


def fingerprint(root: Path) -> str:
    """Return what tells whether a folder changed: names, sizes and times of its files."""
    digest = hashlib.sha256()
    for path in Files(root).all:
        state = path.stat()
        digest.update(f"{path.relative_to(root)}\0{state.st_size}\0{state.st_mtime_ns}\n".encode())
    return digest.hexdigest()
