"""The check of one sample: its files are read as training reads them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from magtiles_seg.dataset.samples import Sample, load_image, load_target
from magtiles_seg.errors import DataError

_ORIENTATION_TAG = 0x0112


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
    notes: list[str] = []
    if image.shape != target.shape:
        problems.append(_of_two_sizes(sample, image.shape, target.shape, turned))
    elif turned > 1 and sample.mask_path is not None and _orientation(sample.mask_path) == 1:
        notes.append(
            f"{sample.image_path}: turned by its EXIF orientation {turned}, and its mask is not; "
            "taken to be drawn on the picture as it is seen"
        )
    return Check(problems, notes, float((target > 0).mean()))


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
    """Return the EXIF orientation of a file that can be read, 1 where it has none."""
    from PIL import Image

    with Image.open(path) as picture:
        orientation = picture.getexif().get(_ORIENTATION_TAG)
    return orientation if isinstance(orientation, int) else 1
