"""The models that the package carries."""

from __future__ import annotations

from pathlib import Path

BUNDLED_MODEL = Path(__file__).parent.parent / "infer" / "weights" / "magnetic-tile.onnx"
"""The model file that is used where none is named."""

BUNDLED_MODELS = {path.stem: path for path in sorted(BUNDLED_MODEL.parent.glob("*.onnx"))}
"""All model files of the package by name."""
