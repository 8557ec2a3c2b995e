"""Engines of the stand-in, written as `magtiles-seg export` writes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from fake_tensorrt import VERSIONS

from magtiles_seg.export.engine import Recipe, build_engine
from magtiles_seg.files import sha256_of
from magtiles_seg.infer.backends.ort import OrtBackend
from magtiles_seg.infer.manifest import Manifest

RECIPE = Recipe(
    name="test",
    line_width_px=64,
    rows_per_frame=48,
    batch_max=3,
    height_max_px=320,
    width_max_px=320,
    compute_capability="SM89",
)
TEN, ELEVEN, RTX = sorted(VERSIONS)
Pictures = npt.NDArray[np.uint8]


def write_engine(
    folder: Path, model: Path, recipe: Recipe = RECIPE, flavour: str = "tensorrt"
) -> Path:
    """Write an engine, its manifest and its ONNX file as `magtiles-seg export` does."""
    data = model.read_bytes()
    (folder / "line.onnx").write_bytes(data)
    built = build_engine(data, recipe, flavour=flavour)
    path = folder / "line.engine"
    path.write_bytes(built.plan)
    facts = {key: built.facts[key] for key in ("environment", "profile", "precision", "recipe")}
    Manifest(
        sha256=sha256_of(built.plan),
        onnx_sha256=built.facts["onnx_sha256"],
        card=OrtBackend(model).spec.card,
        **facts,
    ).write(path)
    return path


def pictures(count: int, height: int = 48, width: int = 64, seed: int = 0) -> Pictures:
    return np.random.default_rng(seed).integers(0, 256, (count, height, width), np.uint8)


def runs_of(library: Any) -> list[tuple[int, ...]]:  # noqa: ANN401
    """Return the shapes that were computed, in order."""
    return [call for call in library.calls if isinstance(call[0], int)]
