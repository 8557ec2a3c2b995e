"""A calibration folded into the network's last layer: exact, and free in every runtime."""

from __future__ import annotations

import math
import os

import torch

from magtiles_seg.errors import ConfigError, ModelError
from magtiles_seg.model.checkpoint import load_checkpoint, save_checkpoint


def calibrate_checkpoint(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    scale: float,
    bias: float,
) -> None:
    """Write a checkpoint whose defect logit is `scale * logit + bias` of another's.

    What is exported from it, in any precision and for any runtime, is calibrated.

    Args:
        source: A checkpoint without a calibration.
        target: Where to write.
        scale: Above 0.
        bias: Added to the scaled logit.

    Raises:
        FileNotFoundError: There is no such checkpoint.
        ModelError: It is damaged, or is calibrated already.
        ConfigError: The scale is not above 0, or a number is not finite.
    """
    if not 0 < scale < math.inf or not math.isfinite(bias):
        raise ConfigError(
            f"the calibration is scale {scale!r}, bias {bias!r}; expected finite numbers, and a "
            "scale above 0"
        )
    network, meta = load_checkpoint(source)
    if meta.get("calibration"):
        raise ModelError(
            f"{source} is calibrated already, by {meta['calibration']}: "
            "calibrate the checkpoint that training wrote"
        )
    with torch.no_grad():
        head = network.defect_head
        head.weight.mul_(scale)
        if head.bias is not None:
            head.bias.mul_(scale).add_(bias)
    save_checkpoint(target, network, {**meta, "calibration": {"scale": scale, "bias": bias}})
