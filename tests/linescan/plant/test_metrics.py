from __future__ import annotations

from urllib.request import urlopen

import pytest

from magtiles_seg.errors import ConfigError
from magtiles_seg.linescan.defects import Uninspected
from magtiles_seg.linescan.messages import SinkState
from magtiles_seg.linescan.plant.metrics import StreamMetrics
from magtiles_seg.linescan.report import WebCounts
from magtiles_seg.linescan.stream import StreamStatus

FULL = SinkState(name="defects.csv", delivered=7, waiting=2, dropped=1, error="No space left")


def test_metrics_tell_lines_findings_and_the_alarm_of_a_full_disk() -> None:
    metrics = StreamMetrics(0, states=lambda: [FULL])
    metrics.write(Uninspected(first_line=0, end_line=5, reason="lost"))
    counts = WebCounts(None)
    counts.miss(5, None, "restarted")
    counts.miss_part(5, 11, [(0, 20)])
    counts.unnumbered = 9
    for at_s in (1.0, 3.5):
        counts.silence.hear(at_s, lines=1)
    report = counts.report(40, pending_lines=3, open_defects=2, passed_share=0.25)
    metrics.show(
        StreamStatus(
            report=report, elapsed_s=1, lines_per_s=250.0, queued_blocks=4, queue_blocks=64
        )
    )
    with urlopen(f"http://127.0.0.1:{metrics.port}/metrics") as answer:
        text = answer.read().decode()
    metrics.close()
    for line in (
        'magtiles_stream_uninspected_total{reason="lost"} 1.0',
        'magtiles_stream_sink_up{sink="defects.csv"} 0.0',
        'magtiles_stream_sink_delivered_total{sink="defects.csv"} 7.0',
        'magtiles_stream_sink_dropped_total{sink="defects.csv"} 1.0',
        'magtiles_stream_sink_waiting{sink="defects.csv"} 2.0',
        "magtiles_stream_lines_total 0.0",
        "magtiles_stream_restarts_total 1.0",
        "magtiles_stream_partial_lines_total 6.0",
        "magtiles_stream_unnumbered_lines_total 9.0",
        "magtiles_stream_longest_silence_seconds 2.5",
        "magtiles_stream_open_defects 2.0",
        "magtiles_stream_passed_share 0.25",
        "magtiles_stream_queue_blocks 4.0",
        'magtiles_stream_latency_seconds{quantile="0.99"} 0.0',
    ):
        assert f"{line}\n" in text


def test_metrics_port_that_is_taken_is_config_error() -> None:
    metrics = StreamMetrics(0, states=list)
    with pytest.raises(ConfigError, match=r"metrics cannot be served at 127\.0\.0\.1:\d+: "):
        StreamMetrics(metrics.port, states=list)
    metrics.close()
