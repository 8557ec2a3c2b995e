"""Inference: a model file in, a `Segmenter` out. Importing this costs numpy alone."""

from __future__ import annotations

from magtiles_seg.infer.segmenter import BUNDLED_MODEL, Segmenter, segment

__all__ = ["BUNDLED_MODEL", "Segmenter", "segment"]
