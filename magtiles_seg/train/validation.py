"""How good the weights are after an epoch, on pictures that they were not fitted to."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from magtiles_seg.dataset.samples import Sample, load_target
from magtiles_seg.evaluate.metrics import dice
from magtiles_seg.evaluate.protocols import Protocol, fit_mask, prepare_image
from magtiles_seg.evaluate.ranking import auroc
from magtiles_seg.evaluate.records import Recorder, Records
from magtiles_seg.infer.backends.eager import InferenceGraph
from magtiles_seg.model.network import SegmentationNetwork
from magtiles_seg.result import Decision, Segmentation


def validate(
    network: SegmentationNetwork, samples: Sequence[Sample], protocol: Protocol, *, bf16: bool
) -> dict[str, float]:
    """Return the figures of a network on samples at p >= .5, in the protocol's geometry.

    Returns:
        `dice`: pooled over all pixels. `macro_dice`: per-picture Dice, mean over the pictures of a
            kind, mean over kinds.
        `auroc`: of the picture score, sound against defective; absent without both. `score`: the
            mean of these, which chooses
        the checkpoint: the first speaks for large defects, the second for small ones, the third
        for sound pictures.
    """
    graph = InferenceGraph(network).eval()
    recorder = Recorder(network.labels)
    for sample in samples:
        image = prepare_image(sample, protocol)
        target = fit_mask(
            load_target(sample, labels=network.labels, rule=protocol.mask_rules[0]),
            protocol.geometry,
        )
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            probability, classes = graph(torch.from_numpy(image)[None])
        result = Segmentation.from_prediction(
            image,
            probability[0].float().numpy(),
            classes[0].numpy(),
            decision=Decision(),
            labels=network.labels,
        )
        recorder.add(sample, result, target, empty=not target.any())
    return _figures(recorder.records())


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
