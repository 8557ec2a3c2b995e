"""Predictions as a model might make them, and what a result makes of them."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from magtiles_seg.result import Decision, Segmentation

LEVELS = [0.0, 0.125, 0.25, 0.5, 0.75, 1.0]


def segment(
    probability: NDArray[Any] | list[list[float]],
    classes: NDArray[Any] | int = 1,
    *,
    mm_per_px: float | None = None,
    source: str | None = None,
    **decision: Any,  # noqa: ANN401 - any field of Decision
) -> Segmentation:
    probability = np.asarray(probability, dtype=np.float32)
    return Segmentation.from_prediction(
        np.arange(probability.size, dtype=np.uint8).reshape(probability.shape),
        probability,
        np.broadcast_to(np.asarray(classes, dtype=np.uint8), probability.shape),
        decision=Decision(**decision),
        mm_per_px=mm_per_px,
        source=source,
        model={"name": "test"},
    )


@st.composite
def predictions(draw: st.DrawFn) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    shape = draw(st.tuples(st.integers(1, 9), st.integers(1, 9)))
    probability = draw(arrays(np.float32, shape, elements=st.sampled_from(LEVELS)))
    return probability, draw(arrays(np.uint8, shape, elements=st.integers(1, 5)))
