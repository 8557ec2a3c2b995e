"""The training pictures in memory: each read once, in the scale of the protocol."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from magtiles_seg.dataset.augment import View
from magtiles_seg.dataset.samples import Sample, load_image, load_target
from magtiles_seg.evaluate.protocols import Protocol, fit_image, fit_mask


def training_pictures(
    samples: Sequence[Sample], protocol: Protocol, labels: Sequence[str]
) -> list[View]:
    """Return every picture as a protocol scales it, but whole: nothing is cut off the training.

    Raises:
        DataError: A picture or mask is damaged.
    """
    return [_view(sample, protocol, labels) for sample in samples]


def _view(sample: Sample, protocol: Protocol, labels: Sequence[str]) -> View:
    target = load_target(sample, labels=labels, rule=protocol.mask_rules[0])
    image = fit_image(load_image(sample), protocol.geometry, whole=True)
    classes = fit_mask(target, protocol.geometry, whole=True)
    return View(image, np.where(classes > 0, 255, 0).astype(np.uint8), classes)
