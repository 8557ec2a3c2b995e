"""Samples: every picture of a data set with its mask, its class and its physical tile."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np

from magtiles_seg.dataset.groups import FILE_NAME, read_groups
from magtiles_seg.dataset.layouts import (
    CLASS_PREFIX,
    MASK_SUFFIXES,
    PICTURE_SUFFIXES,
    holds_pictures,
    is_junk,
    is_reviewed,
    list_files,
    locate,
    missing,
)
from magtiles_seg.dataset.masks import (
    DEFECT_LEVEL,
    DESCRIPTION,
    Meaning,
    UInt8Array,
    check_grey,
    check_indices,
    meaning_of,
    of_two_scales,
    read_mask,
    values_in,
)
from magtiles_seg.dataset.tiles import EMPTY_MASKS, SEEN_DEFECTIVE, SUSPECT_FREE, group_tiles
from magtiles_seg.decoding import read_header
from magtiles_seg.errors import ConfigError, DataError
from magtiles_seg.image import read_image
from magtiles_seg.labels import FREE, IGNORED, LABELS

MaskRule = Literal["ge128", "gt0"]

CAPTURE_NAME = re.compile(r"exp(?P<exposure>\d+)_num_(?P<num>\d+)")


@dataclass(frozen=True)
class Sample:
    """One picture of a data set.

    Attributes:
        id: Stem of the picture's name, unique in its data set.
        label: Class name the picture is filed under, or `"free"`.
        image_path: The picture.
        mask_path: Its mask.
        group: Physical tile; pictures of one group must never be on both sides of a split.
        exposure: Number of the illumination, where the name tells it.
        indexed_mask: Whether the mask holds class indices and not grey levels.
        train_only: Whether it may be trained on and nothing else: it came by review, and the parts
            that a model is judged on stay as they were.
    """

    id: str
    label: str
    image_path: Path
    mask_path: Path | None
    group: int = -1
    exposure: int | None = None
    indexed_mask: bool = False
    train_only: bool = False

    @property
    def num(self) -> int | None:
        """Capture number, where the name tells it."""
        match = CAPTURE_NAME.fullmatch(self.id)
        return int(match["num"]) if match else None

    @property
    def suspect(self) -> bool:
        """Whether it is filed as sound although its tile-mates are masked as defective."""
        return self.label == FREE and self.num in SUSPECT_FREE

    @property
    def label_issue(self) -> bool:
        """Whether it is filed as sound although suspect, or seen to be defective in an audit."""
        return self.suspect or (self.label == FREE and self.num in SEEN_DEFECTIVE)


@dataclass(frozen=True)
class Scan:
    """What lies in a data set.

    Attributes:
        layout: `"magnetic-tile"` or `"folder"`.
        samples: The complete samples, sorted by id.
        problems: One line for each incomplete one and whatever else forbids to use the data set.
        notes: One line for each thing that somebody should know of.
    """

    layout: str
    samples: tuple[Sample, ...]
    problems: list[str]
    notes: list[str]


@dataclass(frozen=True)
class _Found:
    samples: list[Sample] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def find_samples(
    root: Path, *, layout: str = "auto", labels: Sequence[str] = LABELS
) -> tuple[Sample, ...]:
    """Return every sample under a directory, sorted by id, with its group.

    Args:
        root: The data set, or a directory up to three levels above it.
        layout: `"magnetic-tile"`, `"folder"`, or `"auto"` to take the one that is found.
        labels: Class names by index, background first.

    Raises:
        FileNotFoundError: `root` is no directory.
        ConfigError: The layout is unknown.
        DataError: There is no data set of that layout, there are several, pictures or masks are
            missing or double, a mask's values have no known meaning, or groups.csv is at fault;
            names all of them.
    """
    found = scan(root, layout=layout, labels=labels)
    raise_problems(root, found.problems)
    return found.samples


def scan(root: Path, *, layout: str = "auto", labels: Sequence[str] = LABELS) -> Scan:
    """Return the complete samples under a directory and what keeps the others from being such.

    Raises:
        FileNotFoundError: `root` is no directory.
        ConfigError: The layout is unknown.
        DataError: There is no data set of that layout, or there are several.
    """
    found_layout, found_root = locate(root, layout)
    read = _scan_magnetic_tile if found_layout == "magnetic-tile" else _scan_folder
    found = read(found_root, labels)
    if not found.samples and not found.problems:
        found.problems.append(f"{found_root}: no picture in it")
    ordered = tuple(sorted(found.samples, key=lambda sample: sample.id))
    return Scan(found_layout, ordered, found.problems, found.notes)


def raise_problems(root: Path, problems: Sequence[str]) -> None:
    """Raise one DataError that names every problem, if there is any."""
    if problems:
        count = f"{len(problems)} problem{'s' if len(problems) > 1 else ''}"
        lines = "\n  ".join(sorted(problems))
        raise DataError(f"data set {root} cannot be used, {count}:\n  {lines}")


def load_image(sample: Sample) -> UInt8Array:
    """Return the picture, (H, W) uint8, grey levels 0..255, upright.

    Raises:
        FileNotFoundError: It is gone.
        ImageError: It is damaged, or of a kind that is not read.
    """
    return read_image(sample.image_path)


def load_mask(sample: Sample, *, rule: MaskRule = "ge128") -> UInt8Array:
    """Return the mask, (H, W) uint8, 0 sound and 1 defect, upright.

    Args:
        sample: Whose mask.
        rule: From which grey level on a pixel is a defect: 128 is the label; `"gt0"` (any level
            above 0) is for published protocols that say so. A mask of class indices knows no levels
            and is the same by both.

    Raises:
        ConfigError: The rule is unknown.
        DataError: The mask is damaged, or is not empty and yet has no defect by the rule.
    """
    if rule not in ("ge128", "gt0"):
        raise ConfigError(f"unknown mask rule {rule!r}; expected 'ge128' or 'gt0'")
    levels = load_soft_mask(sample)
    if rule == "gt0":
        return (levels > 0).astype(np.uint8)
    try:
        check_grey(values_in(levels))
    except DataError as error:
        raise DataError(f"mask {sample.mask_path} holds {error}") from error
    return (levels >= DEFECT_LEVEL).astype(np.uint8)


def load_soft_mask(sample: Sample) -> UInt8Array:
    """Return the mask as filed, (H, W) uint8, 0..255; a mask of class indices gives 0 and 255.

    What is ignored gives 0.

    Raises:
        DataError: The mask is damaged.
    """
    if sample.mask_path is None:
        return np.zeros_like(load_image(sample))
    levels = read_mask(sample.mask_path)
    if not sample.indexed_mask:
        return levels
    return np.where((levels > 0) & (levels != IGNORED), 255, 0).astype(np.uint8)


def load_target(
    sample: Sample, *, labels: Sequence[str] = LABELS, rule: MaskRule = "ge128"
) -> UInt8Array:
    """Return the class of every pixel, (H, W) uint8, index into `labels`, 0 is background.

    A data set that says so in its dataset.json may hold `IGNORED` as well.

    Raises:
        ConfigError: The rule is unknown.
        DataError: The mask is damaged, its values have no known meaning, or it contradicts the
            class that the picture is filed under.
    """
    if sample.label not in (FREE, *labels[1:]):
        raise DataError(
            f"{sample.id} is filed under {sample.label!r}; expected {FREE!r} or one of "
            f"{', '.join(labels[1:])}"
        )
    if sample.indexed_mask and sample.mask_path is not None:
        return _read_indices(sample.mask_path, labels)
    mask = load_mask(sample, rule=rule)
    if sample.label == FREE:
        if mask.any():
            raise DataError(
                f"mask {sample.mask_path} marks a defect, but its picture is filed as sound; "
                "file it under the defect's class, or empty the mask"
            )
        return mask
    return mask * np.uint8(labels.index(sample.label))


def load_pair(
    sample: Sample, *, labels: Sequence[str] = LABELS, rule: MaskRule = "ge128"
) -> tuple[UInt8Array, UInt8Array]:
    """Return the picture, as of `load_image`, and its target of the same size, as of `load_target`.

    Raises:
        FileNotFoundError: One of them is gone.
        DataError: One is damaged, they differ in size, or the target is at fault.
        ConfigError: The rule is unknown.
    """
    image, target = load_image(sample), load_target(sample, labels=labels, rule=rule)
    if image.shape != target.shape:
        turned = _orientation(sample.image_path)
        raise DataError(_of_two_sizes(sample, image.shape, target.shape, turned))
    return image, target


def _read_indices(path: Path, labels: Sequence[str]) -> UInt8Array:
    levels = read_mask(path)
    beyond = [value for value in values_in(levels) if len(labels) <= value < IGNORED]
    if beyond:
        raise DataError(
            f"mask {path} holds the value {beyond[-1]}; expected class indices "
            f"0..{len(labels) - 1} for the labels {tuple(labels)}"
        )
    return levels


def _scan_magnetic_tile(root: Path, labels: Sequence[str]) -> _Found:
    result, found = _Found(), dict[str, Sample]()
    for folder in sorted(root.glob(f"{CLASS_PREFIX}*/")):
        label = folder.name.removeprefix(CLASS_PREFIX).lower()
        if label not in (*labels[1:], FREE):
            result.problems.append(f"{folder}: class {label!r} is none of {(*labels[1:], FREE)}")
        elif not (folder / "Imgs").is_dir():
            result.problems.append(f"{folder}: expected its pictures in {folder / 'Imgs'}")
        else:
            _scan_class(folder / "Imgs", label, found, result)
    for folder in sorted(root.iterdir()):
        others = folder.is_dir() and not folder.name.startswith(CLASS_PREFIX)
        if others and not is_junk(folder) and not is_reviewed(folder) and holds_pictures(folder):
            result.notes.append(
                f"{folder}: left out with its pictures, for its name does not begin with "
                f"{CLASS_PREFIX}"
            )
    if (root / FILE_NAME).exists():
        result.problems.append(
            f"{root / FILE_NAME}: not read in the layout 'magnetic-tile', whose groups come from "
            "the capture numbers; remove it, or use the layout 'folder'"
        )
    groups = group_tiles([int(CAPTURE_NAME.sub(r"\g<num>", stem)) for stem in found])
    result.samples.extend(replace(s, group=g) for s, g in zip(found.values(), groups, strict=True))
    return result


def _scan_class(folder: Path, label: str, found: dict[str, Sample], result: _Found) -> None:
    """Enter the samples of one class, by their ids."""
    pictures, masks = list_files(folder, (".jpg", ".jpeg")), list_files(folder, (".png",))
    result.problems.extend({*pictures.problems, *masks.problems, *missing(pictures, masks)})
    result.notes.extend(_left_out({*pictures.left_out} & {*masks.left_out}))
    for key in sorted(pictures.files.keys() & masks.files.keys()):
        picture = pictures.files[key]
        match = CAPTURE_NAME.fullmatch(picture.stem)
        if match is None:
            result.problems.append(f"{picture}: unknown name; expected exp<E>_num_<N>.jpg")
        elif picture.stem in found:
            other = found[picture.stem].image_path
            result.problems.append(f"{picture}: same name as {other}")
        else:
            found[picture.stem] = Sample(
                picture.stem, label, picture, masks.files[key], exposure=int(match["exposure"])
            )


def _scan_folder(root: Path, labels: Sequence[str]) -> _Found:
    pictures = list_files(root / "images", PICTURE_SUFFIXES)
    masks = list_files(root / "masks", MASK_SUFFIXES)
    groups = read_groups(root, pictures.files)
    result = _Found(
        problems=[*pictures.problems, *masks.problems, *missing(pictures, masks), *groups.problems],
        notes=[*groups.notes, *_left_out({*pictures.left_out, *masks.left_out})],
    )
    described = _described(root, labels, result.problems)
    meanings: dict[Path, Meaning] = {}
    for key in sorted(pictures.files.keys() & masks.files.keys()):
        picture, mask = pictures.files[key], masks.files[key]
        try:
            levels = read_mask(mask)
        except DataError as error:
            result.problems.append(str(error))
            continue
        try:
            meanings[mask] = _meaning(levels, labels, described=described)
        except DataError as error:
            result.problems.append(f"{mask}: {error}")
            continue
        label = _most_frequent(levels, meanings[mask], labels)
        result.samples.append(
            Sample(
                unicodedata.normalize("NFC", picture.stem),
                label,
                picture,
                mask,
                groups.of.get(key, -1),
                indexed_mask=meanings[mask] == "indices",
            )
        )
    result.problems.extend(of_two_scales(meanings))
    return result


def _described(root: Path, labels: Sequence[str], problems: list[str]) -> bool:
    """Return whether a data set says what its masks' values are, as `data load` writes it."""
    path = root / DESCRIPTION
    if not path.is_file():
        return False
    try:
        said = json.loads(path.read_text(encoding="utf-8"))["labels"]
    except (OSError, ValueError, KeyError, TypeError):
        problems.append(f"{path}: no description of a data set; load the data again")
        return True
    if said != list(labels):
        problems.append(
            f"{path}: of the labels {said}, not {list(labels)}; set data_load.labels to these, or "
            "load the data again"
        )
    return True


def _meaning(levels: UInt8Array, labels: Sequence[str], *, described: bool) -> Meaning:
    """Return what a mask's values mean.

    Raises:
        DataError: That cannot be told.
    """
    if not described:
        return meaning_of(values_in(levels), labels)
    check_indices([value for value in values_in(levels) if value != IGNORED], labels)
    return "indices"


def _most_frequent(levels: UInt8Array, meaning: Meaning, labels: Sequence[str]) -> str:
    """Return the class with the most pixels in a mask, or `FREE`."""
    if meaning == "empty":
        return FREE
    if meaning == "grey":
        return labels[1]
    counts = np.bincount(levels.ravel(), minlength=len(labels))[1 : len(labels)]
    return labels[int(counts.argmax()) + 1] if counts.any() else FREE


def _left_out(paths: set[Path]) -> Iterator[str]:
    for path in sorted(paths):
        yield f"{path}: left out, for its name does not end as a picture's"


@dataclass(frozen=True)
class Check:
    """What was found.

    Attributes:
        problems: Why the sample cannot be trained with, one line each.
        notes: What somebody should know of it.
        defect_fraction: Share of its pixels that are defect, 0 where it cannot be read.
    """

    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    defect_fraction: float = 0.0


def check_sample(sample: Sample, labels: Sequence[str]) -> Check:
    """Read picture and mask of a sample, and compare them.

    Args:
        sample: Of the data set.
        labels: Class names by index, background first.
    """
    problems: list[str] = []
    image = target = None
    try:
        image = load_image(sample)
    except (DataError, OSError) as error:
        problems.append(f"picture {error}")
    try:
        target = load_target(sample, labels=labels)
    except (DataError, OSError) as error:
        problems.append(str(error))
    if image is None or target is None:
        return Check(problems)
    turned = _orientation(sample.image_path)
    mask_turned = turned if sample.mask_path is None else _orientation(sample.mask_path)
    notes: list[str] = []
    if image.shape != target.shape:
        problems.append(_of_two_sizes(sample, image.shape, target.shape, turned))
    elif turned != mask_turned:
        how = f"is turned by {mask_turned}" if mask_turned > 1 else "is not"
        notes.append(
            f"{sample.image_path}: turned by its EXIF orientation {turned}, and its mask {how}; "
            "taken to be drawn on the picture as it is seen"
        )
    if sample.label != FREE and not target.any() and sample.id not in EMPTY_MASKS:
        notes.append(
            f"{sample.mask_path}: marks no pixel, but its picture is filed under "
            f"{sample.label!r}; training takes all of it for sound"
        )
    return Check(problems, notes, float(((target > 0) & (target != IGNORED)).mean()))


def _of_two_sizes(
    sample: Sample, picture_hw: tuple[int, ...], mask_hw: tuple[int, ...], turned: int
) -> str:
    text = (
        f"{sample.mask_path}: mask is {mask_hw[1]} x {mask_hw[0]} px, "
        f"its picture {picture_hw[1]} x {picture_hw[0]} px"
    )
    if turned > 4 and mask_hw == picture_hw[::-1]:
        text += (
            f" once turned upright by its EXIF orientation {turned}: the mask is of the pixels as "
            "they are stored; turn it as the picture is seen"
        )
    return text


def _orientation(path: Path) -> int:
    """Return the EXIF orientation by which a file was turned when it was read, or 1."""
    return read_header(path.read_bytes()).orientation
