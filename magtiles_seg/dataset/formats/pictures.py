"""The form between the formats: a picture, its size, and its labelled regions."""

from __future__ import annotations

import base64
import json
import os
import shutil
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

import cv2
import numpy as np
import numpy.typing as npt

from magtiles_seg import files
from magtiles_seg.dataset.layouts import PICTURE_SUFFIXES, is_junk, name_key
from magtiles_seg.dataset.samples import Sample, load_target
from magtiles_seg.decoding import read_header
from magtiles_seg.errors import ConfigError, DataError
from magtiles_seg.labels import BACKGROUND, IGNORE, IGNORED
from magtiles_seg.shapes import (
    Mask,
    Points,
    area_of,
    clip,
    decode_rle,
    encode_rle,
    fill,
    outlines,
)

Given = TypeVar("Given")
Progress = Callable[[int, "int | None"], None]
"""Told `(done, total)`."""

_MAX_FILES = 1_000_000
_NO_PIXEL = "it marks no pixel"
TEXT_SUFFIXES = frozenset({".json", ".jsonl", ".csv", ".txt", ".xml", ".yaml", ".yml"})
_READ_SUFFIXES = PICTURE_SUFFIXES | TEXT_SUFFIXES


@dataclass(frozen=True, eq=False)
class Region:
    """A labelled part of a picture: outlines as somebody drew them, or a mask.

    Attributes:
        label: Name of its class.
        polygons: (P, 2) float64 x, y in px of pixel edges; together they are the region.
        runs: Run lengths of the mask, column by column, where there are no polygons.
        lost: Where it was drawn, and why nothing of it is left; None: see `is_empty`.
    """

    label: str
    polygons: tuple[Points, ...] = ()
    runs: npt.NDArray[np.int64] | None = None
    lost: tuple[str, str] | None = None

    @property
    def is_empty(self) -> bool:
        """Whether no pixel of the picture is in it."""
        return not self.polygons and (self.runs is None or not self.runs[1::2].any())

    @classmethod
    def of_mask(cls, label: str, mask: Mask) -> Region:
        """Return the region of a mask, (H, W) bool."""
        return cls(label, runs=encode_rle(mask))

    def mask(self, height: int, width: int) -> Mask:
        """Return its pixels, (H, W) bool.

        Raises:
            DataError: The runs are not of a picture of that size.
        """
        if self.runs is not None:
            return decode_rle(self.runs, height, width)
        return fill(self.polygons, height, width)

    def outlines(self, height: int, width: int, *, tolerance_px: float = 0.0) -> list[Points]:
        """Return its polygons as drawn, or those of its mask within a tolerance."""
        if self.runs is None:
            return list(self.polygons)
        return outlines(self.mask(height, width), tolerance_px=tolerance_px)


@dataclass(frozen=True, eq=False)
class LabelledPicture:
    """A picture and what was drawn on it.

    Attributes:
        id: Unique in its data set.
        path: The picture's file, or the LabelMe file that holds it.
        height: In px, upright.
        width: Likewise.
        regions: In the order in which they were drawn: a later one lies over those before it.
        labelled: Whether somebody looked at it; one without regions is sound then.
        embedded: Whether `path` is a LabelMe file with the picture in it.
        tags: Classes that somebody gave to the whole picture, and other words about it.
    """

    id: str
    path: Path
    height: int
    width: int
    regions: tuple[Region, ...] = ()
    labelled: bool = True
    embedded: bool = False
    tags: tuple[str, ...] = ()

    def content(self) -> bytes:
        """Return the bytes of the picture's file.

        Raises:
            OSError: It cannot be read.
        """
        data = self.path.read_bytes()
        return base64.b64decode(json.loads(data)["imageData"]) if self.embedded else data

    def kept(self, notes: Notes) -> LabelledPicture:
        """Return it without the regions that mark no pixel, each of which is noted.

        Raises:
            DataError: A defect was drawn, and none is left: it is no sound picture.
        """
        left = tuple(region for region in self.regions if not region.is_empty)
        empty = [region for region in self.regions if region.is_empty]
        said = [
            region.lost or (f"{self.path}: a region of the class {region.label!r}", _NO_PIXEL)
            for region in empty
        ]
        if not any(_is_defect(region) for region in left):
            for region, (where, why) in zip(empty, said, strict=True):
                if _is_defect(region):
                    raise DataError(
                        f"{where}: {why}, and without it the picture would count as sound; draw "
                        "its area, or delete it"
                    )
        for where, why in said:
            notes.add(where, f"left out, for {why}")
        return self if not empty else replace(self, regions=left)

    def target(self, labels: Sequence[str]) -> npt.NDArray[np.uint8]:
        """Return the class of every pixel, (H, W) uint8: index into `labels`, or `IGNORED`.

        An ignored region lies over all others.

        Args:
            labels: Class names by index, background first; they hold those of all regions.
        """
        classes = np.zeros((self.height, self.width), np.uint8)
        for region in sorted(self.regions, key=lambda region: region.label == IGNORE):
            index = IGNORED if region.label == IGNORE else labels.index(region.label)
            classes[region.mask(self.height, self.width)] = index
        return classes

    def copy_to(self, folder: Path) -> str:
        """Write the picture's file into a folder as `<id>` with its suffix; return that name."""
        if self.embedded:
            content = self.content()
            suffix = read_header(content).format.lower().replace("jpeg", "jpg")
            name = f"{self.id}.{suffix}"
            (folder / name).write_bytes(content)
        else:
            name = f"{self.id}{self.path.suffix}"
            shutil.copyfile(self.path, folder / name)
        return name


def _is_defect(region: Region) -> bool:
    return region.label.casefold() not in (BACKGROUND, IGNORE)


def check_tags(
    pictures: Iterable[LabelledPicture], is_defect: Callable[[str], bool]
) -> Iterator[str]:
    """Yield a line for each picture that is called defective as a whole, and has nothing drawn.

    Args:
        pictures: What was drawn on them is a class of defects, or ignored.
        is_defect: Whether a tag is the name of a class of defects.
    """
    for picture in pictures:
        if not any(_is_defect(region) for region in picture.regions):
            for tag in [tag for tag in picture.tags if is_defect(tag)][:1]:
                yield (
                    f"{picture.path}: is {tag!r} as a whole, but nothing is drawn on it, and it "
                    "would count as sound; draw the defect's area, or delete the tag"
                )


class Notes:
    """What somebody should know of, each told once with how often and where it was first seen."""

    def __init__(self) -> None:
        """Start without any."""
        self._seen: dict[str, list[str]] = {}

    def add(self, where: str, what: str) -> None:
        """Note a thing at a place."""
        self._seen.setdefault(what, []).append(where)

    def lines(self) -> list[str]:
        """Return a line for each thing."""
        return [
            f"{places[0]}{f' and {len(places) - 1} more' if len(places) > 1 else ''}: {what}"
            for what, places in self._seen.items()
        ]


@dataclass
class Reading:
    """What a reader found.

    Attributes:
        pictures: Those that can be used.
        problems: A line for each file that cannot: which, what is wrong, what was expected.
        notes: What somebody should know of.
        labels: Class names in the format's own order, without background, where it has one.
        of_masks: Whether a class without a name is a mask's value: a label by its index.
    """

    pictures: list[LabelledPicture] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    notes: Notes = field(default_factory=Notes)
    labels: tuple[str, ...] = ()
    of_masks: bool = False

    def take(
        self,
        given: Sequence[Given],
        picture_of: Callable[[Given], LabelledPicture | None],
        progress: Progress | None = None,
    ) -> None:
        """Add the picture of each thing, or what is wrong with it.

        Args:
            given: What names or is a picture.
            picture_of: Returns it, or None where it is none; raises `DataError`.
            progress: Told things.
        """
        for done, one in enumerate(given, start=1):
            try:
                picture = picture_of(one)
                if picture is not None:
                    self.pictures.append(picture)
            except DataError as error:
                self.problems.append(str(error))
            if progress is not None:
                progress(done, len(given))

    def kept(self) -> tuple[list[LabelledPicture], list[str]]:
        """Return the pictures as of `LabelledPicture.kept`, and a line for each refused one."""
        kept, problems = list[LabelledPicture](), list[str]()
        for picture in self.pictures:
            try:
                kept.append(picture.kept(self.notes))
            except DataError as error:
                problems.append(str(error))
        return kept, problems

    def regions(self) -> Counter[str]:
        """Return how many regions there are of each class, those that mark no pixel left out."""
        return Counter(
            region.label
            for picture in self.pictures
            for region in picture.regions
            if not region.is_empty
        )


def from_samples(samples: Iterable[Sample], labels: Sequence[str]) -> Iterator[LabelledPicture]:
    """Yield the samples of a data set with a region for each connected part of each class.

    Raises:
        DataError: A mask is damaged.
    """
    for sample in samples:
        yield from_target(sample.id, sample.image_path, load_target(sample, labels=labels), labels)


def from_target(
    name: str, path: Path, target: npt.NDArray[np.uint8], labels: Sequence[str]
) -> LabelledPicture:
    """Return a picture with a region for each connected part of each class.

    Args:
        name: Its id.
        path: Its file.
        target: (H, W) uint8, index into `labels`, or `IGNORED`.
        labels: Class names by index, background first.
    """
    regions = [
        region
        for value in np.flatnonzero(np.bincount(target.ravel())).tolist()
        if value
        for region in mask_regions(IGNORE if value == IGNORED else labels[value], target == value)
    ]
    height, width = target.shape
    return LabelledPicture(name, path, height, width, tuple(regions))


def mask_regions(label: str, mask: Mask) -> Iterator[Region]:
    """Yield the connected parts of a mask, (H, W) bool, as regions of a class."""
    count, parts = cv2.connectedComponents(mask.astype(np.uint8))
    for part in range(1, count):
        yield Region.of_mask(label, parts == part)


class Files:
    """The files of a data set, and which picture a label means, whatever path it writes."""

    def __init__(self, root: Path) -> None:
        """List them, hidden ones and what systems leave aside.

        Raises:
            DataError: There are more than anybody's data set has, or one that would be read is no
                regular file: to open a pipe waits for ever.
        """
        self.root = root
        self.all = sorted(_walk(root))
        if odd := [path for path in self.of(*_READ_SUFFIXES) if not path.is_file()]:
            raise DataError(
                f"{odd[0]}{f' and {len(odd) - 1} more' if len(odd) > 1 else ''}: no regular file; "
                "expected a data set's file (is it a link to nothing?)"
            )
        self.all = [path for path in self.all if path.is_file()]
        if len(self.all) > _MAX_FILES:
            raise DataError(f"{root} holds more than {_MAX_FILES} files; name the data set itself")

    def of(self, *suffixes: str) -> list[Path]:
        """Return the files of some suffixes, in small letters."""
        return [path for path in self.all if path.suffix.lower() in suffixes]

    @cached_property
    def pictures(self) -> list[Path]:
        """All files whose names end as a picture's."""
        return self.of(*PICTURE_SUFFIXES)

    @cached_property
    def _by_tail(self) -> dict[tuple[str, ...], list[Path]]:
        """The pictures by the last one, two … parts of their paths."""
        found: dict[tuple[str, ...], list[Path]] = {}
        for path in self.pictures:
            parts = tuple(map(name_key, path.relative_to(self.root).parts))
            for start in range(len(parts)):
                found.setdefault(parts[start:], []).append(path)
        return found

    def set_aside(self, masks: Iterable[Path]) -> None:
        """Count files that are masks no longer among the pictures."""
        aside = set(masks)
        self.pictures = [path for path in self.pictures if path not in aside]

    def find(self, name: object, label_file: Path) -> Path:
        """Return the picture that a label file names.

        The path is tried beside the label file; then its last parts anywhere in the data set, for
        paths are written on other machines. Nothing outside of the data set is ever read.

        Raises:
            DataError: There is none, or there are several.
        """
        if not isinstance(name, str) or not name.strip() or "\0" in name:
            raise DataError(f"{label_file}: names the picture {name!r:.80}; expected a file name")
        parts = PurePosixPath(name.replace("\\", "/")).parts
        beside = Path(os.path.normpath(label_file.parent.joinpath(*parts)))
        if not PurePosixPath(*parts).is_absolute() and beside in self.known:
            return beside
        tail = [
            name_key(part) for part in parts if part not in ("/", ".", "..") and part[1:2] != ":"
        ]
        for start in range(len(tail)):
            found = self._by_tail.get(tuple(tail[start:]), [])
            if len(found) == 1:
                return found[0]
            if found:
                raise DataError(
                    f"{label_file}: {len(found)} pictures may be {name!r}: {found[0]} and "
                    f"{found[1]}; expected one: write the path as it is here"
                )
        raise DataError(f"{label_file}: picture {name!r} is missing in {self.root}")

    @cached_property
    def known(self) -> set[Path]:
        """All files, to ask whether one is there."""
        return set(self.all)

    @cached_property
    def _ids(self) -> dict[Path, str]:
        stems = Counter(name_key(path.stem) for path in self.pictures)
        return {
            path: path.stem
            if stems[name_key(path.stem)] == 1
            else "_".join(path.relative_to(self.root).with_suffix("").parts)
            for path in self.pictures
        }

    def id_of(self, path: Path) -> str:
        """Return what a picture is called: its stem, with its folders where two share it."""
        return unicodedata.normalize("NFC", self._ids.get(path, path.stem))

    def unlabelled(self, labelled: Iterable[Path]) -> list[Path]:
        """Return the pictures that no label names: all but those that one does."""
        known = set(labelled)
        return [path for path in self.pictures if path not in known]

    def bare(self, path: Path, *, labelled: bool = False) -> LabelledPicture:
        """Return a picture on which nothing is drawn; it is sound if somebody looked at it.

        Raises:
            DataError: It cannot be read.
        """
        return LabelledPicture(self.id_of(path), path, *size_of(path), labelled=labelled)


def name_once(owner: dict[Path, Path], picture: LabelledPicture, file: Path, entry: str) -> None:
    """Note which label file names a picture, by which entry.

    Raises:
        DataError: One has named it already.
    """
    if picture.path in owner:
        raise DataError(
            f"{file}: {entry} is the picture {picture.path}, which {owner[picture.path]} has named "
            "already"
        )
    owner[picture.path] = file


def size_of(source: Path | bytes) -> tuple[int, int]:
    """Return height and width of a picture as it is seen, upright.

    Raises:
        DataError: It is damaged, or of a kind that is not read; says which file.
    """
    name = source if isinstance(source, Path) else "the embedded picture"
    try:
        header = read_header(source.read_bytes() if isinstance(source, Path) else source)
    except OSError as error:
        raise DataError(f"picture {name} cannot be read: {error.strerror}") from error
    except DataError as error:
        raise DataError(f"picture {name} {error}") from error
    turned = header.orientation > 4
    return (header.width, header.height) if turned else (header.height, header.width)


def check_size(where: str, declared_hw: tuple[Any, ...], actual_hw: tuple[int, int]) -> None:
    """Refuse a label that is of another picture's size.

    Raises:
        DataError: The sizes differ, or it is no size.
    """
    numbers = all(isinstance(side, int | float | None) for side in declared_hw)
    if len(declared_hw) != 2 or not numbers:
        raise DataError(f"{where}: size {declared_hw!r:.80}; expected height and width in px")
    if declared_hw != actual_hw and None not in declared_hw:
        turned = declared_hw == actual_hw[::-1]
        hint = "; is the picture turned by its EXIF orientation?" if turned else ""
        raise DataError(
            f"{where}: drawn on {declared_hw[1]} x {declared_hw[0]} px, but the picture is "
            f"{actual_hw[1]} x {actual_hw[0]} px{hint}"
        )


def check_names(what: str, labels: Iterable[str], is_bad: Callable[[str], bool]) -> None:
    """Refuse class names that a format cannot hold, before anything is written.

    Raises:
        DataError: There is one; names all.
    """
    if bad := [label for label in labels if is_bad(label)]:
        raise DataError(
            f"{what} cannot hold classes of the names {bad!r:.300}; rename them by "
            "data_load.class_map, or write another format"
        )


def drawn(
    label: str,
    polygons: Iterable[object],
    where: str,
    picture_hw: tuple[int, int],
    notes: Notes,
) -> Region:
    """Return the region of some polygons, cut at the picture's borders; one may be left empty.

    Args:
        label: Name of its class.
        polygons: (P, 2) or (2 P,) numbers each.
        where: What a message starts with: the file, and which of its regions.
        picture_hw: Height and width.
        notes: Told of what was cut off or left out of it.

    Raises:
        DataError: One is no list of points.
    """
    cut = [_cut(values, where, picture_hw, notes) for values in polygons]
    left = tuple(points for points in cut if not isinstance(points, str))
    lost = [why for why in cut if isinstance(why, str)]
    if not left:
        return Region(label, lost=(where, lost[0]) if lost else None)
    for why in lost:
        notes.add(where, f"left out, for {why}")
    return Region(label, left)


def _cut(values: object, where: str, picture_hw: tuple[int, int], notes: Notes) -> Points | str:
    """Return the part of a polygon that lies in the picture, or why there is none."""
    try:
        points = np.asarray(values, np.float64)
    except (TypeError, ValueError, OverflowError):
        points = np.zeros(())
    if not points.ndim or points.size % 2:
        odd = f"{points.size} numbers; expected pairs of x and y: " if points.ndim else ""
        raise DataError(f"{where}: no points of a polygon: {odd}{values!r:.80}")
    points = points.reshape(-1, 2)
    if not np.isfinite(points).all():
        raise DataError(f"{where}: a point is not finite; expected coordinates in px")
    if len(points) < 3 or area_of(points) < 1e-6:
        return "its points enclose no area"
    if points.min() >= 0 and points.max() <= 1 and area_of(points) < 1:
        raise DataError(
            f"{where}: all its points lie in the first pixel; expected px: are these shares of the "
            "picture's size?"
        )
    inside = clip(points, *picture_hw)
    if len(inside) < 3 or area_of(inside) < 1e-6:
        return "it lies outside of the picture"
    height, width = picture_hw
    if points.min() < -1 or points[:, 0].max() > width + 1 or points[:, 1].max() > height + 1:
        notes.add(where, "reaches out of the picture by more than a pixel; cut at its border")
    return inside


def decode_png_mask(content: str, where: str) -> Mask:
    """Return the mask of a PNG in base64, (h, w) bool.

    Raises:
        DataError: It is none.
    """
    try:
        data = np.frombuffer(base64.b64decode(content, validate=True), np.uint8)
        levels = cv2.imdecode(data, cv2.IMREAD_GRAYSCALE)
    except (ValueError, TypeError, cv2.error):
        levels = None
    if levels is None:
        raise DataError(f"{where}: no mask as PNG in base64")
    return np.asarray(levels > 0)


def placed(part: Mask, left: int, top: int, height: int, width: int) -> Mask:
    """Return a picture's mask, (H, W) bool, with a part at its place; the rest is cut."""
    whole = np.zeros((height, width), np.bool_)
    x, y = max(0, left), max(0, top)
    part = part[y - top : max(0, height - top), x - left : max(0, width - left)]
    whole[y : y + part.shape[0], x : x + part.shape[1]] = part
    return whole


def ellipse(x: float, y: float, across: float, down: float, turned_deg: float) -> Points:
    """Return the outline of an ellipse about a point by its two radii, (64, 2)."""
    angles, turn = np.linspace(0, 2 * np.pi, 65)[:-1], np.deg2rad(turned_deg)
    points = np.stack([across * np.cos(angles), down * np.sin(angles)], axis=1)
    matrix = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    return np.asarray(points @ matrix + (x, y))


def read_text(path: Path) -> str:
    """Return the content of a text file.

    Raises:
        DataError: It cannot be read, or is no text in UTF-8; says which file.
    """
    try:
        return files.read_text(path)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    except ConfigError as error:
        raise DataError(str(error)) from error


def read_json(path: Path) -> Any:  # noqa: ANN401 - any JSON value
    """Return the content of a JSON file.

    Raises:
        DataError: It cannot be read, or is no JSON; says which file.
    """
    text = read_text(path)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: no JSON: {error}; export it again") from error


def expect(value: object, kind: type | tuple[type, ...], where: str) -> Any:  # noqa: ANN401
    """Return a value that is of a kind.

    Raises:
        DataError: It is not.
    """
    if isinstance(value, kind) and not (isinstance(value, bool) and bool is not kind):
        return value
    kinds = kind if isinstance(kind, tuple) else (kind,)
    names = " or ".join(_PLAIN.get(one, one.__name__) for one in kinds)
    raise DataError(f"{where}: expected {names}, got {value!r:.80}")


_PLAIN = {dict: "an object", list: "a list", str: "a text", int: "a number", float: "a number"}


def _walk(root: Path) -> Iterator[Path]:
    """Yield the files below a folder, without what systems leave behind.

    Raises:
        DataError: A folder cannot be listed.
    """
    unlisted: dict[str, str] = {}
    for entry in files.walk(root, lambda entry: not is_junk(Path(entry.name)), unlisted):
        if not is_junk(Path(entry.name)) and not files.is_folder(entry):
            yield Path(entry.path)
    for folder, reason in unlisted.items():
        raise DataError(f"folder {folder} cannot be listed: {reason}; make it readable, or move it")
