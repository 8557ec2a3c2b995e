"""Scores whatever predicts, picture by picture: the pass over the data behind every evaluation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from magtiles_seg.dataset.samples import MaskRule, Sample, load_target
from magtiles_seg.evaluate.predictors import Answer, Predictor, as_segmentation
from magtiles_seg.evaluate.protocols import Protocol, fit_mask, prepare_image
from magtiles_seg.evaluate.records import Recorder, Records
from magtiles_seg.labels import LABELS
from magtiles_seg.result import Decision, Segmentation

Progress: TypeAlias = Callable[[int, int], None]
"""Called after each picture with how many are done and how many there are."""

Watch: TypeAlias = Callable[[Sample, Segmentation, npt.NDArray[np.uint8]], None]
"""Shown each sample, the answer, and the target (H, W) uint8 of class indices."""


def score(
    predictor: Predictor,
    samples: Sequence[Sample],
    *,
    protocol: Protocol,
    mask_rule: MaskRule | None = None,
    decision: Decision | None = None,
    labels: Sequence[str] = LABELS,
    progress: Progress | None = None,
    watch: Watch | None = None,
) -> dict[MaskRule, Records]:
    """Score a predictor picture by picture, for `summarize`; empty masks are still among the rows.

    Args:
        predictor: As for `evaluate`.
        samples: As for `evaluate`.
        protocol: A protocol.
        mask_rule: Overrides the protocol's mask rules.
        decision: Overrides the predictor's own decision.
        labels: Class names by index, background first.
        progress: Told after each picture.
        watch: Shown each picture's answer, and its target by the first mask rule.

    Raises:
        DataError: Nothing is left to score, or a picture, mask or prediction does not fit.
        ConfigError: The labels differ from the model's.
    """
    rules = (mask_rule,) if mask_rule else protocol.mask_rules
    scored = [sample for sample in samples if protocol.scores(sample)]
    recorders = {rule: Recorder(labels) for rule in rules}
    for done, sample in enumerate(scored, start=1):
        image = prepare_image(sample, protocol)
        answer: Answer = predictor(image)
        result = as_segmentation(
            answer, image, decide=lambda own: protocol.decision(decision or own), labels=labels
        )
        for rule, recorder in recorders.items():
            whole = load_target(sample, labels=labels, rule=rule)
            target = fit_mask(whole, protocol.geometry)
            recorder.add(sample, result, target, empty=not whole.any())
            if watch and rule == rules[0]:
                watch(sample, result, target)
        if progress:
            progress(done, len(scored))
    return {rule: recorder.records() for rule, recorder in recorders.items()}
