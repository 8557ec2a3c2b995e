from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from magtiles_seg.dataset.samples import Sample
from magtiles_seg.errors import DataError
from magtiles_seg.evaluate.labels.agreement import agreement
from magtiles_seg.evaluate.metrics import iou

SURFACE = np.random.default_rng(0).integers(60, 190, (160, 140), dtype=np.uint8)


def _exposure(
    root: Path, name: str, image: NDArray[np.uint8], mask: NDArray[np.uint8], *, group: int = 0
) -> Sample:
    paths = (root / f"{name}.png", root / f"{name}-mask.png")
    for path, pixels in zip(paths, (image, mask), strict=True):
        cv2.imwrite(str(path), pixels)
    return Sample(name, "crack" if mask.any() else "free", *paths, group)


def _square(height: int, width: int) -> NDArray[np.uint8]:
    mask = np.zeros(SURFACE.shape, np.uint8)
    mask[50 : 50 + height, 40 : 40 + width] = 255
    return mask


def test_agreement_lays_shifted_exposures_over_each_other(tmp_path: Path) -> None:
    darker = (SURFACE // 2)[7:, 5:]  # another light, another crop
    samples = [
        _exposure(tmp_path, "a", SURFACE, _square(20, 30)),
        _exposure(tmp_path, "b", darker, _square(20, 30)[7:, 5:]),
    ]
    found = agreement(samples)
    assert len(found.counts) == 2
    assert iou(found.counts) == pytest.approx([1, 1])
    assert found.counts[0, 0] == 20 * 30


def test_agreement_of_unequal_masks_is_their_overlap(tmp_path: Path) -> None:
    samples = [
        _exposure(tmp_path, "a", SURFACE, _square(20, 30)),
        _exposure(tmp_path, "b", SURFACE, _square(20, 15)),
        _exposure(tmp_path, "c", SURFACE, np.zeros_like(SURFACE)),
    ]
    found = agreement(samples)
    # a: b's mask finds half of it, c's nothing; b: a's mask adds as much again; c: false alarms.
    assert found.counts[:, :3].tolist() == [[150, 0, 450], [150, 150, 150], [0, 450, 0]]
    # Half of two votes are enough: b's half for a, all of a's for b, a's for c.
    assert found.majority[:, :3].tolist() == [[300, 0, 300], [300, 300, 0], [0, 600, 0]]
    pooled = 300 / (300 + 600 + 600)
    assert f"defective and sound | 3 | 1 | {pooled:.3f}" in found.to_markdown(resamples=5)
    assert "| crack | 2 | 1 |" in found.to_markdown(resamples=5)


def test_agreement_of_strangers_is_refused(tmp_path: Path) -> None:
    other = np.random.default_rng(1).integers(60, 190, SURFACE.shape, dtype=np.uint8)
    samples = [
        _exposure(tmp_path, "a", SURFACE, _square(20, 30)),
        _exposure(tmp_path, "b", other, _square(20, 30)),
        _exposure(tmp_path, "c", SURFACE, _square(20, 30), group=1),
    ]
    with pytest.raises(DataError, match="give the pictures of each tile one group"):
        agreement(samples)
