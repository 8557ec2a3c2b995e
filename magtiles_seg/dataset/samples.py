"""Samples: every picture of a data set with its mask, its class and its physical tile.

Two layouts are read:

* `magnetic-tile`, the public archive: `MT_<Class>/Imgs/exp<E>_num_<N>.jpg` beside `….png`, the grey
  mask.
* `folder`, for any other data: `images/` and `masks/` with the same stems. A mask holds class
  indices (index into the labels, palette PNGs welcome); with two labels it may as well be grey,
  0..255. An optional `groups.csv` with the columns `image,group` says which pictures belong
  together; without it every picture is a group of its own.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from magtiles_seg.dataset.layouts import CLASS_PREFIX, by_stem, locate, missing, read_groups
from magtiles_seg.dataset.tiles import SEEN_DEFECTIVE, SUSPECT_FREE, group_tiles
from magtiles_seg.errors import ConfigError, DataError
from magtiles_seg.image import read_image
from magtiles_seg.labels import FREE, LABELS

UInt8Array = npt.NDArray[np.uint8]
MaskRule = Literal["ge128", "gt0"]

CAPTURE_NAME = re.compile(r"exp(?P<exposure>\d+)_num_(?P<num>\d+)")
PICTURE_SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff"})
MASK_SUFFIXES = frozenset({".bmp", ".png", ".tif", ".tiff"})


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
    """

    id: str
    label: str
    image_path: Path
    mask_path: Path | None
    group: int = -1
    exposure: int | None = None
    indexed_mask: bool = False

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
    def doubtful(self) -> bool:
        """Whether it is filed as sound although suspect, or seen to be defective in an audit."""
        return self.suspect or (self.label == FREE and self.num in SEEN_DEFECTIVE)


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
        DataError: There is no data set of that layout, or pictures or masks are missing; names all
            of them.
    """
    samples, problems = scan(root, layout=layout, labels=labels)
    raise_problems(root, problems)
    return samples


def scan(
    root: Path, *, layout: str = "auto", labels: Sequence[str] = LABELS
) -> tuple[tuple[Sample, ...], list[str]]:
    """Return the complete samples under a directory and one line for each incomplete one.

    Raises:
        FileNotFoundError: `root` is no directory.
        ConfigError: The layout is unknown.
        DataError: There is no data set of that layout.
    """
    found_layout, found_root = locate(root, layout)
    read = _scan_magnetic_tile if found_layout == "magnetic-tile" else _scan_folder
    samples, problems = read(found_root, labels)
    if not samples and not problems:
        problems.append(f"{found_root}: no picture in it")
    return tuple(sorted(samples, key=lambda sample: sample.id)), problems


def raise_problems(root: Path, problems: Sequence[str]) -> None:
    """Raise one DataError that names every problem, if there is any."""
    if problems:
        count = f"{len(problems)} problem{'s' if len(problems) > 1 else ''}"
        lines = "\n  ".join(sorted(problems))
        raise DataError(f"data set {root} is not complete, {count}:\n  {lines}")


def load_image(sample: Sample) -> UInt8Array:
    """Return the picture, (H, W) uint8, grey levels 0..255."""
    return read_image(sample.image_path)


def load_mask(sample: Sample, *, rule: MaskRule = "ge128") -> UInt8Array:
    """Return the mask, (H, W) uint8, 0 sound and 1 defect.

    Args:
        sample: Whose mask.
        rule: From which grey level on a pixel is a defect: 128 is the label; `"gt0"` (any level
            above 0) is for published protocols that say so. A mask of class indices knows no levels
            and is the same by both.

    Raises:
        ConfigError: The rule is unknown.
        DataError: The mask is damaged.
    """
    if rule not in ("ge128", "gt0"):
        raise ConfigError(f"unknown mask rule {rule!r}; expected 'ge128' or 'gt0'")
    level = 1 if rule == "gt0" else 128
    return (load_soft_mask(sample) >= level).astype(np.uint8)


def load_soft_mask(sample: Sample) -> UInt8Array:
    """Return the mask as filed, (H, W) uint8, 0..255; a mask of class indices gives 0 and 255.

    Raises:
        DataError: The mask is damaged.
    """
    if sample.mask_path is None:
        return np.zeros_like(load_image(sample))
    levels = read_mask(sample.mask_path)
    return np.where(levels > 0, 255, 0).astype(np.uint8) if sample.indexed_mask else levels


def load_target(
    sample: Sample, *, labels: Sequence[str] = LABELS, rule: MaskRule = "ge128"
) -> UInt8Array:
    """Return the class of every pixel, (H, W) uint8, index into `labels`, 0 is background.

    Raises:
        ConfigError: The rule is unknown.
        DataError: The mask is damaged.
    """
    if sample.indexed_mask and sample.mask_path is not None:
        return read_mask(sample.mask_path)
    mask = load_mask(sample, rule=rule)
    return mask if sample.label == FREE else mask * np.uint8(labels.index(sample.label))


def read_mask(path: Path) -> UInt8Array:
    """Return the levels of a mask file, (H, W) uint8: grey levels or palette indices.

    Raises:
        DataError: The file is damaged or not a mask of one channel.
    """
    try:
        with Image.open(path) as picture:
            picture.load()
            if picture.mode not in ("1", "L", "P"):
                raise DataError(
                    f"mask {path} has the mode {picture.mode}; expected one 8-bit channel: "
                    "grey levels or class indices"
                )
            levels = np.array(picture.convert("L") if picture.mode == "1" else picture)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"mask {path} is damaged: {error}; fetch the data again") from error
    return levels.astype(np.uint8)


def _scan_magnetic_tile(root: Path, labels: Sequence[str]) -> tuple[list[Sample], list[str]]:
    found: dict[str, Sample] = {}
    problems: list[str] = []
    for folder in sorted(root.glob(f"{CLASS_PREFIX}*/")):
        label = folder.name.removeprefix(CLASS_PREFIX).lower()
        if label not in (*labels[1:], FREE):
            problems.append(f"{folder}: class {label!r} is none of {(*labels[1:], FREE)}")
            continue
        pictures = by_stem(folder / "Imgs", (".jpg", ".jpeg"))
        masks = by_stem(folder / "Imgs", (".png",))
        problems += missing(folder / "Imgs", pictures, folder / "Imgs", masks)
        for stem in sorted(pictures.keys() & masks.keys()):
            match = CAPTURE_NAME.fullmatch(stem)
            if match is None:
                problems.append(f"{pictures[stem]}: unknown name; expected exp<E>_num_<N>.jpg")
            elif stem in found:
                problems.append(f"{pictures[stem]}: same name as {found[stem].image_path}")
            else:
                exposure = int(match["exposure"])
                found[stem] = Sample(stem, label, pictures[stem], masks[stem], exposure=exposure)
    nums = [int(CAPTURE_NAME.sub(r"\g<num>", stem)) for stem in found]
    groups = group_tiles(nums)
    samples = [replace(s, group=g) for s, g in zip(found.values(), groups, strict=True)]
    return samples, problems


def _scan_folder(root: Path, labels: Sequence[str]) -> tuple[list[Sample], list[str]]:
    pictures = by_stem(root / "images", PICTURE_SUFFIXES)
    masks = by_stem(root / "masks", MASK_SUFFIXES)
    problems = missing(root / "images", pictures, root / "masks", masks)
    highest: dict[str, int] = {}
    samples: list[Sample] = []
    groups, group_problems = read_groups(root / "groups.csv", sorted(pictures))
    for stem in sorted(pictures.keys() & masks.keys()):
        try:
            counts = np.bincount(read_mask(masks[stem]).ravel(), minlength=256)
        except DataError as error:
            problems.append(str(error))
            continue
        highest[stem] = int(np.flatnonzero(counts).max(initial=0))
        index = int(counts[1 : len(labels)].argmax()) + 1 if counts[1:].any() else 0
        label = labels[index] if index else FREE
        samples.append(Sample(stem, label, pictures[stem], masks[stem], groups.get(stem, -1)))
    indexed = all(value < len(labels) for value in highest.values())
    if not indexed and len(labels) > 2:
        problems += [
            f"{masks[stem]}: value {value}; expected class indices 0..{len(labels) - 1} "
            f"for the labels {tuple(labels)}"
            for stem, value in highest.items()
            if value >= len(labels)
        ]
    samples = [_grey_or_indexed(sample, indexed, labels) for sample in samples]
    return samples, problems + group_problems


def _grey_or_indexed(sample: Sample, indexed: bool, labels: Sequence[str]) -> Sample:
    """Settle what a sample's mask means once every mask of the data set has been seen."""
    if indexed:
        return replace(sample, indexed_mask=True)
    return replace(sample, label=labels[1] if load_mask(sample).any() else FREE)
