"""Device recipes: what an engine is built for, read from a YAML file such as `export/l4.yaml`."""

from __future__ import annotations

import os
import re
import reprlib
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import yaml

from magtiles_seg.config import check_fields, one_of, raise_if_any, within
from magtiles_seg.errors import ConfigError
from magtiles_seg.infer.backends.base import MIN_SIDE_PX

Shape = tuple[int, int, int]
"""(N, H, W): pictures, rows, columns."""

_BYTE_LIMIT_PX = 2**31 - 1
_MOST_BYTES = 1 << 16
_MOST_WORKSPACE_MIB = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What an engine is built for; making one checks types, choices and ranges.

    The engine is tuned for frames of `rows_per_frame` rows of `line_width_px` pixels, and takes
    every shape between the smallest and the greatest that the recipe names.

    Attributes:
        name: What people call it.
        line_width_px: Pixels a row, of the camera.
        rows_per_frame: Rows in a frame.
        batch_min: Least pictures in one run.
        batch_opt: Pictures in one run that the engine is tuned for.
        batch_max: Most pictures in one run; a greater batch is run in parts.
        height_min_px: Least height.
        height_max_px: Greatest height.
        width_min_px: Least width.
        width_max_px: Greatest width.
        precision: Of the arithmetic. The ONNX graph decides it; the recipe says which to make.
        workspace_mib: Most device memory for intermediate results, in MiB.
        compute_capability: Of the device, as `"SM89"`; None: whichever builds.
        version_compatible: Whether a newer TensorRT may run the engine. TensorRT-RTX has no such.
        hardware_compatible: Which other GPUs may run it. TensorRT-RTX takes targets instead.
        tf32: Whether fp32 arithmetic may round to TF32, which is faster and differs in the 4th
            digit.
    """

    name: str
    line_width_px: int = within(2048, MIN_SIDE_PX)
    rows_per_frame: int = within(256, MIN_SIDE_PX)
    batch_min: int = within(1, 1)
    batch_opt: int = within(1, 1)
    batch_max: int = within(1, 1)
    height_min_px: int = within(MIN_SIDE_PX, MIN_SIDE_PX)
    height_max_px: int = within(512, MIN_SIDE_PX)
    width_min_px: int = within(MIN_SIDE_PX, MIN_SIDE_PX)
    width_max_px: int = within(2048, MIN_SIDE_PX)
    precision: str = one_of("fp16", "fp16", "fp32", "int8")
    workspace_mib: int = within(1024, 1, _MOST_WORKSPACE_MIB)
    compute_capability: str | None = None
    version_compatible: bool = False
    hardware_compatible: str = one_of("none", "none", "same_compute_capability", "ampere_plus")
    tf32: bool = False

    def __post_init__(self) -> None:
        """Check every value, then how they stand to each other.

        Raises:
            ConfigError: Wrong types, values out of range or order: all at once.
        """
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        found, _ = check_fields(type(self), "recipe", values)
        raise_if_any(found or _check_order(self), "recipe")

    @property
    def shapes(self) -> tuple[Shape, Shape, Shape]:
        """Least, tuned and greatest (N, H, W) of the input."""
        return (
            (self.batch_min, self.height_min_px, self.width_min_px),
            (self.batch_opt, self.rows_per_frame, self.line_width_px),
            (self.batch_max, self.height_max_px, self.width_max_px),
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the recipe as plain values, as `Recipe(**values)` takes them."""
        return asdict(self)


def load_recipe(path: str | os.PathLike[str]) -> Recipe:
    """Read a recipe; what it leaves out keeps its default, its name is the file's.

    Args:
        path: A YAML file of one mapping.

    Raises:
        FileNotFoundError: There is no such file.
        ConfigError: Unknown keys, wrong types, values out of range: all at once.
    """
    path = Path(path)
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise ConfigError(f"{path} is no recipe: more than {_MOST_BYTES} bytes")
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(f"no recipe at {path}") from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
    except RecursionError as error:
        raise ConfigError(f"{path} is no recipe: it is nested too deeply") from error
    except (yaml.YAMLError, ValueError, TypeError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected a mapping of keys, got {type(values).__name__}")
    nested = [reprlib.repr(key) for key, value in values.items() if isinstance(value, dict | list)]
    if nested or not all(isinstance(key, str) for key in values):
        raise ConfigError(
            f"{path}: expected plain names, each with a number or a word, got {nested or 'others'}"
        )
    values = {"name": path.stem, **values}
    found, checked = check_fields(Recipe, "recipe", values)
    raise_if_any(found, str(path))
    try:
        return Recipe(**checked)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def _check_order(recipe: Recipe) -> list[str]:
    """Return what is wrong between values that are each of sense."""
    found = [
        f"{name}: expected least <= tuned <= greatest, got {least} <= {tuned} <= {greatest}"
        for name, least, tuned, greatest in zip(
            (
                "batch_min, batch_opt, batch_max",
                "height_min_px, rows_per_frame, height_max_px",
                "width_min_px, line_width_px, width_max_px",
            ),
            *recipe.shapes,
            strict=True,
        )
        if not least <= tuned <= greatest
    ]
    batch, height, width = recipe.shapes[2]
    if batch * height * width > _BYTE_LIMIT_PX:
        found.append(
            f"the greatest input is {batch}x{height}x{width} px: expected at most {_BYTE_LIMIT_PX}"
        )
    target = recipe.compute_capability
    if target is not None and not re.fullmatch(r"SM\d{2,3}", target):
        found.append(f"recipe.compute_capability: expected such as 'SM89', got {target!r}")
    return found
