from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from magtiles_seg.errors import ConfigError
from magtiles_seg.export import bench
from magtiles_seg.infer.segmenter import Segmenter


def test_measure_reports_both_contestants_and_restores_torch(model: Path) -> None:
    threads, steps = torch.get_num_threads(), []
    report = bench.measure(
        model,
        size_hw=(64, 70),
        threads=1,
        rounds=2,
        burst=1,
        progress=lambda done, total: steps.append((done, total)),
    )
    assert (report.architecture, report.threads, report.rounds) == ("nano", 1, 2)
    assert (report.height_px, report.width_px) == (64, 70)
    assert min(report.segmenter_ms, report.runtime_ms, report.eager_ms, report.speedup) > 0
    assert steps == [(1, 2), (2, 2)]
    assert torch.get_num_threads() == threads


def test_report_takes_the_median_of_ratios_of_rounds(model: Path) -> None:
    turns = [  # round x contestant (segmenter, runtime, eager) x burst
        [[10, 10, 99], [5, 5, 5], [20, 20, 20]],
        [[20, 20, 20], [18, 18, 18], [100, 100, 100]],
        [[10, 10, 10], [9, 9, 9], [30, 30, 30]],
    ]
    report = bench._report(Segmenter(model, threads=1), (288, 220), np.array(turns, float))
    assert (report.segmenter_ms, report.runtime_ms, report.eager_ms) == (10, 9, 30)
    assert report.speedup == 3
    assert report.overhead_fraction == pytest.approx(0.1)


def test_measure_of_no_round_is_config_error() -> None:
    with pytest.raises(ConfigError, match="rounds and burst must be at least 1"):
        bench.measure(rounds=0)
