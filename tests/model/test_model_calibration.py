"""A calibration in the last layer against the same map of the answers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from magtiles_seg.errors import ConfigError, ModelError
from magtiles_seg.evaluate.calibration import Affine
from magtiles_seg.infer.backends.eager import EagerBackend
from magtiles_seg.model.checkpoint import calibrate_checkpoint


def test_calibrated_checkpoint_answers_with_the_mapped_probability(
    checkpoint: Path, tmp_path: Path
) -> None:
    target = tmp_path / "calibrated.safetensors"
    calibrate_checkpoint(checkpoint, target, scale=0.6, bias=-0.4)
    images = np.random.default_rng(0).integers(0, 256, (1, 40, 56)).astype(np.uint8)
    before, after = EagerBackend(checkpoint), EagerBackend(target)
    (raw, expected_classes), (mapped, same) = before.infer(images), after.infer(images)
    assert mapped == pytest.approx(Affine(0.6, -0.4)(raw), abs=1e-5)
    assert np.array_equal(expected_classes, same)
    assert after.spec.card.calibration == {"scale": 0.6, "bias": -0.4}
    with pytest.raises(ModelError, match="is calibrated already"):
        calibrate_checkpoint(target, tmp_path / "twice.safetensors", scale=1, bias=0)


def test_calibration_that_turns_the_order_round_is_refused(
    checkpoint: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="expected finite numbers, and a scale above 0"):
        calibrate_checkpoint(checkpoint, tmp_path / "x.safetensors", scale=-1, bias=0)
