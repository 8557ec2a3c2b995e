"""Export: from a checkpoint to the one model file, and the proof that both answer alike."""

from __future__ import annotations
