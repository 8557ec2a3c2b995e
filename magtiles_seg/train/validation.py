"""How good the weights are after an epoch, on pictures that they were not fitted to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from magtiles_seg.dataset.samples import Sample
from magtiles_seg.evaluate.metrics import dice
from magtiles_seg.evaluate.protocols import Protocol, prepare
from magtiles_seg.evaluate.ranking import auroc
from magtiles_seg.evaluate.records import Recorder, Records
from magtiles_seg.infer.backends.eager import InferenceGraph
from magtiles_seg.model.network import SegmentationNetwork
from magtiles_seg.result import Decision, Segmentation
from magtiles_seg.writing import draw_overlay


@dataclass(frozen=True, eq=False)
class Validation:
    """What a look at the validation part gave.

    Attributes:
        figures: `dice`, pooled over all pixels; `macro_dice`, per-picture Dice as mean over the
            pictures of a kind and then over the kinds; `auroc` of the picture score, sound against
            defective; and `score`, the mean of these, which chooses the checkpoint: the first
            speaks for large defects, the second for small ones, the third for sound pictures.
            `macro_dice` and `auroc` are absent where the part has no pictures for them.
        triptychs: By sample id, the first picture of each kind: (H, 3 W, 3) uint8 RGB, input,
            truth and prediction side by side.
    """

    figures: dict[str, float]
    triptychs: dict[str, NDArray[np.uint8]]


def validate(
    network: SegmentationNetwork, samples: Sequence[Sample], protocol: Protocol, *, bf16: bool
) -> Validation:
    """Score a network on samples at p >= .5, in the protocol's geometry.

    Raises:
        DataError: A picture or mask is damaged.
    """
    graph = InferenceGraph(network).eval()
    recorder = Recorder(network.labels)
    triptychs: dict[str, NDArray[np.uint8]] = {}
    kinds: set[str] = set()
    for sample in samples:
        image, target = prepare(sample, protocol, labels=network.labels)
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            probability, classes = graph(torch.from_numpy(image)[None])
        result = Segmentation.from_prediction(
            image,
            probability[0].numpy(),
            classes[0].numpy(),
            decision=Decision(),
            labels=network.labels,
        )
        recorder.add(sample, result, target, empty=not target.any())
        if sample.label not in kinds:
            kinds.add(sample.label)
            triptychs[sample.id] = _triptych(result, target)
    return Validation(_figures(recorder.records()), triptychs)


def _triptych(result: Segmentation, target: NDArray[np.uint8]) -> NDArray[np.uint8]:
    plain = np.repeat(result.image[:, :, None], 3, axis=2)
    return np.hstack([plain, draw_overlay(result.image, target, 0.5), result.overlay()])


def _figures(records: Records) -> dict[str, float]:
    figures = {"dice": float(dice(records.counts.sum(axis=0)))}
    kept = records.where(records.is_defect & ~records.empty)
    per_picture = dice(kept.counts)
    kinds = [per_picture[kept.label == kind].mean() for kind in np.unique(kept.label)]
    if kinds:
        figures["macro_dice"] = float(np.mean(kinds))
    if 0 < records.is_defect.sum() < len(records):
        figures["auroc"] = float(auroc(records.score, records.is_defect))
    return {**figures, "score": float(np.mean(list(figures.values())))}
