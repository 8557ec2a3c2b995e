"""Inference: a model file in, a `Segmenter` out. Importing this costs numpy alone."""

from __future__ import annotations

from magtiles_seg.infer.segmenter import Segmenter, segment
from magtiles_seg.model.bundled import BUNDLED_MODEL, BUNDLED_MODELS

__all__ = ["BUNDLED_MODEL", "BUNDLED_MODELS", "Segmenter", "segment"]
