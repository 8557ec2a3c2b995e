"""The models that the package carries."""

from __future__ import annotations

import os
from pathlib import Path

_WEIGHTS = Path(__file__).parent.parent / "infer" / "weights"

BUNDLED_MODEL = _WEIGHTS / "magnetic-tile.onnx"
"""The model file that is used where none is named."""

_FILES = {
    "lite0": BUNDLED_MODEL,
    "small": _WEIGHTS / "magnetic-tile-small.onnx",
    "nano": _WEIGHTS / "magnetic-tile-nano.onnx",
}

BUNDLED_MODELS: dict[str, Path] = {name: path for name, path in _FILES.items() if path.exists()}
"""The model files by name, the most accurate and slowest first."""


def portable_model(model: str | os.PathLike[str]) -> str | Path:
    """Return a bundled model by its name, which holds on any machine, and others by full path."""
    name = os.fspath(model)
    return name if name in _FILES and not Path(name).is_file() else Path(name).absolute()


def model_path(model: str | os.PathLike[str] | None) -> Path:
    """Return the file of a model: of a bundled one by its name, unless a file is called that.

    A folder of that name, such as a run's, is none.

    Args:
        model: A name from `BUNDLED_MODELS`, or a path; None: the default model.

    Raises:
        FileNotFoundError: The installation does not carry that model.
    """
    if model is None:
        if not BUNDLED_MODEL.exists():
            raise FileNotFoundError(
                f"this installation carries no model (expected {BUNDLED_MODEL}): "
                "reinstall magtiles-seg, or name a model file that `magtiles-seg export` wrote"
            )
        return BUNDLED_MODEL
    path = Path(model)
    name = os.fspath(model)
    if name in _FILES and name not in BUNDLED_MODELS and not path.is_file():
        raise FileNotFoundError(
            f"this installation does not carry the model {name!r}, only "
            f"{', '.join(BUNDLED_MODELS) or 'none'}; train it with `magtiles-seg train --set "
            f"train.architecture={name}`, or name a model file"
        )
    return path if path.is_file() else BUNDLED_MODELS.get(name, path)
