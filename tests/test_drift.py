from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from magtiles_seg import Segmenter
from magtiles_seg.decision import Decision
from magtiles_seg.drift import (
    FEATURES,
    DriftMonitor,
    features,
    input_statistics,
    statistics_of,
)
from magtiles_seg.errors import ConfigError, ModelError
from magtiles_seg.result import Segmentation

RNG = np.random.default_rng(0)


def answer(level: float, score: float) -> Segmentation:
    image = np.clip(RNG.normal(level, 5, (12, 12)), 0, 255).astype(np.uint8)
    probability = np.full((12, 12), score, np.float32)
    classes = np.ones((12, 12), np.uint8)
    return Segmentation.from_prediction(image, probability, classes, decision=Decision())


def usual(count: int, level: float = 90) -> list[Segmentation]:
    return [answer(RNG.normal(level, 8), float(RNG.beta(1, 6))) for _ in range(count)]


def filled(statistics: dict[str, Any], answers: list[Segmentation]) -> DriftMonitor:
    monitor = DriftMonitor(statistics, window=500)
    for one in answers:
        monitor.add(features(one))
    return monitor


def test_psi_of_like_pictures_stays_below_the_alert_and_of_a_darker_lamp_is_above() -> None:
    statistics = input_statistics(usual(600))
    calm, dark = filled(statistics, usual(500)).psi(), filled(statistics, usual(500, 70)).psi()
    assert calm.keys() == set(FEATURES)
    assert max(calm.values()) < 0.1
    assert dark["gray_level"] > 0.2
    assert dark["score"] < 0.1


def test_psi_of_a_hand_worked_case() -> None:
    statistics = {"pictures": 100} | {
        name: {"edges": [0.5], "shares": [0.9, 0.1]} for name in FEATURES
    }
    monitor = DriftMonitor(statistics, window=100)
    for index in range(100):
        monitor.add(dict.fromkeys(FEATURES, float(index < 30)))
    late, before = np.array([70.5, 30.5]) / 101, np.array([90.5, 10.5]) / 101
    expected = float(((late - before) * np.log(late / before)).sum())
    assert monitor.psi()["score"] == pytest.approx(expected)


def test_psi_forgets_what_left_the_window() -> None:
    statistics = input_statistics(usual(600))
    monitor = filled(statistics, usual(500, 60) + usual(500))
    assert monitor.psi()["gray_level"] < 0.1


def test_monitor_without_reference_or_with_few_pictures_gives_no_index() -> None:
    assert filled({}, usual(200)).psi() == {}
    few = filled(input_statistics(usual(100)), usual(20))
    assert few.psi() == {}
    assert 60 < few.means()["gray_level"] < 120
    assert math.isnan(DriftMonitor({}, window=10).means()["score"])


def test_features_tell_a_sharp_picture_from_a_flat_one() -> None:
    sharp = answer(100, 0.9)
    flat = Segmentation.from_prediction(
        np.full((12, 12), 100, np.uint8), sharp.probability, np.ones((12, 12), np.uint8),
        decision=Decision(),
    )  # fmt: skip
    assert features(sharp)["sharpness"] > features(flat)["sharpness"] == 0
    assert features(flat)["gray_level"] == 100
    assert features(flat)["defect_rate"] == 1


def test_input_statistics_of_few_pictures_are_refused() -> None:
    with pytest.raises(ConfigError, match="at least 100 pictures, got 3"):
        input_statistics(usual(3))


@pytest.mark.parametrize(
    "damage", [{}, {"edges": [1, 0], "shares": [1, 1, 1]}, {"edges": [1], "shares": [1]}]
)
def test_monitor_of_damaged_statistics_is_refused(damage: dict[str, Any]) -> None:
    with pytest.raises(ModelError, match="gray_level"):
        DriftMonitor({"pictures": 100, "gray_level": damage}, window=10)


def test_statistics_written_into_a_model_file_are_read_back(model: Path, tmp_path: Path) -> None:
    graph = pytest.importorskip("magtiles_seg.export.graph")
    from dataclasses import replace

    statistics = input_statistics(usual(120))
    copy = tmp_path / "with.onnx"
    copy.write_bytes(model.read_bytes())
    with Segmenter(copy) as segmenter:
        graph.rewrite_card(copy, replace(segmenter.spec.card, input_statistics=statistics))
    with Segmenter(copy) as segmenter:
        assert segmenter.spec.card.input_statistics == statistics


def test_pictures_of_few_values_are_in_the_bins_that_they_made() -> None:
    rows = [dict.fromkeys(FEATURES, float(number % 4)) for number in range(400)]
    monitor = DriftMonitor(statistics_of(rows), window=400)
    for row in rows:
        monitor.add(row)
    assert max(monitor.psi().values()) < 1e-9
