"""Weights rounded to 8 bits, so that a model file is half as large."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

EXACT_FRACTION = 0.06
"""Share of the weights that stay fp32, smallest tensors first: the first layers, depthwise filters
and biases, whose rounding moves the answers ten times more than that of all the others."""

_MOST_CODE = 127
"""Of a weight in 8 bits: a whole number of steps, of which the largest of a channel has so many."""


def as_codes(
    weight: npt.NDArray[np.float32],
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Return a weight in 8 bits.

    Args:
        weight: (C, ...), a channel's values along the first axis.

    Returns:
        codes: Of the same shape, whole numbers in -127..127.
        steps: (C, 1, ...), by which a channel's codes are multiplied.
    """
    steps = np.abs(weight).max(axis=tuple(range(1, weight.ndim)), keepdims=True) / _MOST_CODE
    steps = np.where(steps > 0, steps, 1).astype(np.float32)
    return np.rint(weight / steps).astype(np.float32), steps


def round_weights(network: nn.Module) -> None:
    """Round a network's large weights, in place, to 8 bits: 255 steps for each output channel.

    The arithmetic stays fp32. What is exported from it stores these weights in 8 bits and loses
    nothing by that, so evaluate the network after it was rounded. Small tensors stay as they are,
    see `EXACT_FRACTION`.

    Args:
        network: What a checkpoint holds.
    """
    weights = sorted(network.parameters(), key=torch.Tensor.numel)
    seen = np.cumsum([weight.numel() for weight in weights])
    least = weights[int(np.searchsorted(seen, EXACT_FRACTION * seen[-1], side="right"))].numel()
    with torch.no_grad():
        for weight in weights:
            if weight.ndim > 1 and weight.numel() >= least:
                codes, steps = as_codes(weight.numpy())
                weight.copy_(torch.from_numpy(codes * steps))
