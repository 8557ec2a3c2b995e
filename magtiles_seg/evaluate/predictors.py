"""The seam between evaluation and what predicts: a network in training or a model file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from magtiles_seg.errors import ConfigError
from magtiles_seg.labels import LABELS
from magtiles_seg.result import Decision, Segmentation

Answer: TypeAlias = "Segmentation | tuple[npt.NDArray[np.float32], npt.NDArray[np.uint8]]"
"""A Segmentation, or (probability (H, W) float32 in 0..1, likeliest defect class (H, W) uint8)."""

Predictor: TypeAlias = Callable[[npt.NDArray[np.uint8]], Answer]
"""Takes a picture, (H, W) uint8, and answers at its size: a `Segmenter`, or any such function."""


def as_segmentation(
    answer: Answer,
    image: npt.NDArray[np.uint8],
    *,
    decide: Callable[[Decision], Decision],
    labels: Sequence[str] = LABELS,
) -> Segmentation:
    """Return a predictor's answer as a Segmentation under the decision that is to be measured.

    Args:
        answer: What the predictor gave for the picture.
        image: (H, W) uint8, the picture.
        decide: Gives the decision to measure from the predictor's own one (the default decision
            when it has none).
        labels: Class names by index, background first.

    Raises:
        ConfigError: The predictor answers with other labels.
    """
    if isinstance(answer, Segmentation):
        if tuple(answer.labels) != tuple(labels):
            raise ConfigError(
                f"The model's labels are {', '.join(answer.labels)}; expected those of the "
                f"evaluation, {', '.join(labels)}. Evaluate with the labels of the model."
            )
        wanted = decide(answer.decision)
        return answer if wanted == answer.decision else answer.redecide(**asdict(wanted))
    probability, classes = answer
    return Segmentation.from_prediction(
        image, probability, classes, decision=decide(Decision()), labels=tuple(labels)
    )
