"""Which weights learn at which rate, and their moving average."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from magtiles_seg.config import TrainParams
from magtiles_seg.model.network import SegmentationNetwork

_PRETRAINED_RATE = 0.4
"""Share of the learning rate that a pretrained encoder gets: it has less to learn than the rest."""


def weight_groups(network: SegmentationNetwork, params: TrainParams) -> list[dict[str, object]]:
    """Return the parameters in groups: kernels decay, biases and norms do not; encoder and rest."""
    encoder = {id(weight) for weight in network.encoder.parameters()}
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for weight in network.parameters():
        groups.setdefault((id(weight) in encoder, weight.ndim > 1), []).append(weight)
    return [
        {
            "params": weights,
            "weight_decay": params.weight_decay if decays else 0.0,
            "rate_share": _PRETRAINED_RATE
            if encodes and (params.pretrained or params.start)
            else 1.0,
        }
        for (encodes, decays), weights in groups.items()
    ]


def moving_average(decay: float) -> Callable[[Tensor, Tensor, Tensor | int], Tensor]:
    """Return the update of an exponential moving average that follows closely at first."""

    def update(average: Tensor, current: Tensor, steps: Tensor | int) -> Tensor:
        if not average.is_floating_point():
            return current
        done = float(steps)
        return torch.lerp(average, current, 1 - min(decay, (1 + done) / (10 + done)))

    return update
