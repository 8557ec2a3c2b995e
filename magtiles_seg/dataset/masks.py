"""What the values of a mask mean: class indices or grey levels.

A mask that leaves it open is refused, and none is read as empty that is not:

| labels | values other than 0 | meaning |
|---|---|---|
| two | none | no defect |
| two | 1 alone | class indices |
| two | up to 127 | refused: no level is a defect |
| two | 1 to a few, and 254 or 255 alone | refused: classes beside 255 for "ignore", or two scales |
| two | any other | grey levels, a defect from 128 on |
| more | all below the number of labels | class indices |
| more | any other | refused |
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from magtiles_seg.errors import DataError, ImageError
from magtiles_seg.image import read_levels
from magtiles_seg.labels import IGNORED

UInt8Array = npt.NDArray[np.uint8]
Meaning = Literal["empty", "indices", "grey"]

DEFECT_LEVEL = 128
"""The grey level from which on a pixel is a defect."""

DESCRIPTION = "dataset.json"
"""In a data set that was written here: names its classes, and lets masks hold `IGNORED`."""

_FEW_CLASSES = 20


def read_mask(path: Path) -> UInt8Array:
    """Return the levels of a mask file, (H, W) uint8, upright: grey levels or class indices.

    Raises:
        DataError: The file is missing, damaged, not of one channel, or its format changes values.
    """
    try:
        return read_levels(path)
    except ImageError as error:
        raise ImageError(f"mask {error}", reason=error.reason) from error
    except OSError as error:
        raise DataError(f"mask {path} cannot be read: {error}; fetch the data again") from error


def meaning_of(values: Sequence[int], labels: Sequence[str]) -> Meaning:
    """Return what the values of a mask mean.

    Args:
        values: The different values it holds other than 0, ascending.
        labels: Class names by index, background first.

    Raises:
        DataError: That cannot be told; says why, but not of which mask.
    """
    if not values:
        return "empty"
    if len(labels) != 2:
        check_indices(values, labels)
        return "indices"
    if list(values) == [1]:
        return "indices"
    check_grey(values)
    few = [value for value in values if value <= _FEW_CLASSES]
    if few and few == list(range(1, len(few) + 1)) and {*values[len(few) :]} <= {254, IGNORED}:
        raise DataError(
            f"values {_listed(values)}: {few[-1]} may be a class beside {values[-1]} for 'ignore', "
            "or sound beside a defect; expected 0 and 1, or grey levels; save sound as 0 and "
            "defect as 255"
        )
    return "grey"


def check_grey(values: Sequence[int]) -> None:
    """Refuse the values of a grey mask that is not empty and yet has no defect.

    Raises:
        DataError: It is such a one; says so, but not of which mask.
    """
    if values and values[-1] < DEFECT_LEVEL:
        raise DataError(
            f"values up to {values[-1]}, so that none is a defect; expected grey levels with a "
            f"defect from {DEFECT_LEVEL} on, or 0 and 1 in the layout 'folder'; "
            "save the defect as 255"
        )


def of_two_scales(meanings: Mapping[Path, Meaning]) -> list[str]:
    """Return a line for each mask of the rarer meaning, where a data set has both."""
    grey = [path for path, meaning in meanings.items() if meaning == "grey"]
    indices = [path for path, meaning in meanings.items() if meaning == "indices"]
    if not grey or not indices:
        return []
    say = {"grey": "grey levels from 128 on", "indices": "0 and 1"}
    rarer = min(grey, indices, key=len)
    few, many = ("grey", indices[0]) if rarer is grey else ("indices", grey[0])
    other = "indices" if few == "grey" else "grey"
    return [
        f"{path}: holds {say[few]}, but {many} {say[other]}; expected one scale: save every mask "
        "as 0 and 255"
        for path in rarer
    ]


def values_in(levels: UInt8Array) -> list[int]:
    """Return the different values other than 0, ascending, of (H, W) levels."""
    return [int(value) for value in np.flatnonzero(np.bincount(levels.ravel())) if value]


def check_indices(values: Sequence[int], labels: Sequence[str]) -> None:
    """Refuse values of a mask, other than 0 and ascending, that are no class indices.

    Raises:
        DataError: One is none; says so, but not of which mask.
    """
    beyond = [value for value in values if value >= len(labels)]
    if beyond:
        ignore = beyond == [IGNORED] and len(values) > 1
        hint = ""
        if ignore:
            hint = "; 255 looks like 'ignore': if so, set data_load.class_map: [255=ignore]"
        raise DataError(
            f"value {beyond[-1]}; expected class indices 0..{len(labels) - 1} "
            f"for the labels {tuple(labels)}{hint}"
        )


def _listed(values: Sequence[int]) -> str:
    head = ", ".join(str(value) for value in values[:3])
    return head if len(values) <= 3 else f"{head} … {values[-1]}"
