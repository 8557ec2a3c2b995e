"""Weights rounded to 8 bits, so that a model file is half as large."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from magtiles_seg.model.stored import EXACT_FRACTION, as_codes


def round_weights(network: nn.Module) -> float:
    """Round a network's large weights, in place, to 8 bits: 255 steps for each output channel.

    The arithmetic stays fp32. What is exported from it stores these weights in 8 bits and loses
    nothing by that, so evaluate the network after it was rounded.

    Args:
        network: What a checkpoint holds.

    Returns:
        The share of the weights that was rounded. Small tensors stay as they are, see
        `magtiles_seg.model.stored.EXACT_FRACTION`.
    """
    weights = sorted(network.parameters(), key=torch.Tensor.numel)
    seen = np.cumsum([weight.numel() for weight in weights])
    least = weights[int(np.searchsorted(seen, EXACT_FRACTION * seen[-1], side="right"))].numel()
    rounded = 0
    with torch.no_grad():
        for weight in weights:
            if weight.ndim > 1 and weight.numel() >= least:
                codes, steps = as_codes(weight.numpy())
                weight.copy_(torch.from_numpy(codes * steps))
                rounded += weight.numel()
    return rounded / int(seen[-1])
