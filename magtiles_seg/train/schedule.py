"""The learning rate over a run, as a pure function of how far the run is."""

from __future__ import annotations

import math

WARM_UP = 0.1
"""Share of the run over which the rate rises."""


def one_cycle(progress: float) -> float:
    """Return the share of the peak rate: a cosine up over `WARM_UP`, then one down to near zero.

    Source: https://arxiv.org/abs/1708.07120, with cosine flanks.

    Args:
        progress: Share of the run's steps that are done, in [0, 1].
    """
    if progress < WARM_UP:
        return 0.04 + 0.96 * (1 - math.cos(math.pi * progress / WARM_UP)) / 2
    rest = (progress - WARM_UP) / (1 - WARM_UP)
    return 0.001 + 0.999 * (1 + math.cos(math.pi * min(rest, 1.0))) / 2
