"""How good the weights are after an epoch, on pictures that they were not fitted to."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from magtiles_seg.dataset.samples import Sample
from magtiles_seg.evaluate.metrics import auroc, dice
from magtiles_seg.evaluate.plots.gallery import triptych
from magtiles_seg.evaluate.protocols import Protocol, prepare
from magtiles_seg.evaluate.scoring import Recorder, Records
from magtiles_seg.infer.backends.eager import InferenceGraph
from magtiles_seg.model.ensemble import Network
from magtiles_seg.result import Decision, Segmentation

if TYPE_CHECKING:
    from magtiles_seg.train.devices import Devices

_BATCH_SIZE = 8

Grey = NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class Validation:
    """What a look at the validation part gave.

    Attributes:
        figures: `dice`, pooled over all pixels; `macro_dice`, per-picture Dice as mean over the
            pictures of a class and then over the classes; `auroc` of the picture score, sound
            against defective; and `score`, the mean of these, which chooses the checkpoint: the
            first speaks for large defects, the second for small ones, the third for sound pictures.
            `macro_dice` and `auroc` are absent where the part has no pictures for them.
        triptychs: By sample id, the first picture of each class as `evaluate.plots.gallery` draws
            it: uint8 RGB, input, truth and prediction side by side.
    """

    figures: dict[str, float]
    triptychs: dict[str, NDArray[np.uint8]]


class ValidationPart:
    """The validation pictures in memory, read once, in batches of those that are padded alike."""

    def __init__(
        self, samples: Sequence[Sample], protocol: Protocol, *, labels: tuple[str, ...], stride: int
    ) -> None:
        """Read the pictures.

        Args:
            samples: Pictures that choose the checkpoint.
            protocol: Whose geometry they are scored in.
            labels: Class names by index, background first.
            stride: The network's.

        Raises:
            DataError: There are no pictures, or one or its mask is damaged.
        """
        self._samples, self._labels = samples, labels
        self._pictures = [prepare(sample, protocol, labels=labels) for sample in samples]
        alike: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for index, (image, _) in enumerate(self._pictures):
            alike[tuple(-(-side // stride) * stride for side in image.shape)].append(index)
        self._batches = [
            (size, indices[first : first + _BATCH_SIZE])
            for size, indices in alike.items()
            for first in range(0, len(indices), _BATCH_SIZE)
        ]

    def score(self, network: Network, devices: Devices) -> Validation:
        """Score a network at p >= .5, in the precision of the devices."""
        results: dict[int, Segmentation] = dict(self._answers(network, devices))
        recorder = Recorder(self._labels)
        triptychs: dict[str, NDArray[np.uint8]] = {}
        shown: set[str] = set()
        for index, (sample, (_, target)) in enumerate(
            zip(self._samples, self._pictures, strict=True)
        ):
            recorder.add(sample, results[index], target, empty=not target.any())
            if sample.label not in shown:
                shown.add(sample.label)
                triptychs[sample.id] = triptych(results[index], target)
        return Validation(_figures(recorder.records()), triptychs)

    def _answers(self, network: Network, devices: Devices) -> Iterator[tuple[int, Segmentation]]:
        graph = InferenceGraph(folded(network))
        for size, indices in self._batches:
            images = [self._pictures[index][0] for index in indices]
            batch = torch.from_numpy(np.stack([_padded(image, size) for image in images]))
            with torch.inference_mode(), devices.autocast():
                answer = graph(batch.to(devices.device))
            probability, classes = (part.cpu().numpy() for part in answer)
            for row, (index, image) in enumerate(zip(indices, images, strict=True)):
                height, width = image.shape
                yield (
                    index,
                    Segmentation.from_prediction(
                        image,
                        probability[row, :height, :width].copy(),
                        classes[row, :height, :width].copy(),
                        decision=Decision(),
                        labels=self._labels,
                    ),
                )


def folded(network: Network) -> Network:
    """Return a copy in evaluation mode whose batch norms are folded into the convolutions."""
    copy = deepcopy(network).eval()
    for block in copy.modules():
        if isinstance(block, nn.Sequential) and len(block) > 1:
            convolution, norm = block[0], block[1]
            if isinstance(convolution, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                block[0], block[1] = fuse_conv_bn_eval(convolution, norm), nn.Identity()
    return copy


def _padded(image: Grey, size: tuple[int, ...]) -> Grey:
    """Return the picture mirrored at its bottom and right, as `InferenceGraph` mirrors it."""
    missing = [(0, wanted - side) for wanted, side in zip(size, image.shape, strict=True)]
    return np.pad(image, missing, mode="reflect")


def _figures(records: Records) -> dict[str, float]:
    figures = {"dice": float(dice(records.counts.sum(axis=0)))}
    kept = records.where(records.is_defect & ~records.empty)
    per_picture = dice(kept.counts)
    means = [per_picture[kept.label == label].mean() for label in np.unique(kept.label)]
    if means:
        figures["macro_dice"] = float(np.mean(means))
    if 0 < records.is_defect.sum() < len(records):
        figures["auroc"] = float(auroc(records.score, records.is_defect))
    return {**figures, "score": float(np.mean(list(figures.values())))}
