"""What a running stream tells Prometheus."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from magtiles_seg.errors import BackendUnavailableError, ConfigError
from magtiles_seg.linescan.defects import WebDefect
from magtiles_seg.linescan.messages import Found, SinkState

try:
    from prometheus_client import CollectorRegistry, start_http_server
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
except ImportError as error:
    raise BackendUnavailableError(
        f"--metrics-port needs prometheus-client ({error}): pip install 'magtiles-seg[plant]'"
    ) from error

if TYPE_CHECKING:
    from magtiles_seg.linescan.report import WebReport
    from magtiles_seg.linescan.sources import LineBlock
    from magtiles_seg.linescan.stream import StreamStatus

_COUNTERS = (
    ("lines", "Lines with a verdict"),
    ("uninspected_lines", "Lines without a verdict"),
    ("dropped_lines", "Lines that a full queue dropped"),
    ("repeated_lines", "Lines that came again"),
    ("partial_lines", "Lines with a verdict on part of their width"),
    ("unnumbered_lines", "Lines without a number, before which losses go unnoticed"),
    ("restarts", "Restarts of a camera's counter; an unknown number of lines is missing at each"),
)
_GAUGES = (
    ("pending_lines", "Lines that wait for their halo"),
    ("open_defects", "Defects that have not ended"),
)
_SINKS = (
    (CounterMetricFamily, "delivered", "Findings written or confirmed by the receiver"),
    (CounterMetricFamily, "dropped", "Findings lost on the way to a file or receiver"),
    (GaugeMetricFamily, "waiting", "Findings that wait for the disk or the receiver"),
)


class StreamMetrics:
    """A sink that answers `GET /metrics`; all names begin with `magtiles_stream_`."""

    def __init__(
        self, port: int, *, host: str = "127.0.0.1", states: Callable[[], Sequence[SinkState]]
    ) -> None:
        """Begin to answer.

        Args:
            port: To listen at; 0: any free one, see `port`.
            host: Address to listen at; `0.0.0.0`: at all.
            states: Returns how the other sinks stand.

        Raises:
            ConfigError: The port is taken or may not be used.
        """
        self._states = states
        self._labels: Counter[str] = Counter()
        self._gaps: Counter[str] = Counter()
        self._status: StreamStatus | None = None
        registry = CollectorRegistry()
        registry.register(self)
        try:
            self._server, self._thread = start_http_server(port, host, registry)
        except OSError as error:
            raise ConfigError(
                f"metrics cannot be served at {host}:{port}: {error.strerror}; "
                "name another [HOST:]PORT"
            ) from error

    @property
    def port(self) -> int:
        """Port that is listened at."""
        return int(self._server.server_port)

    def lines(self, block: LineBlock) -> None:
        """Lines are counted by `show`."""

    def write(self, found: Found) -> None:
        """Count a finding."""
        if isinstance(found, WebDefect):
            self._labels[found.label] += 1
        else:
            self._gaps[found.reason] += 1

    def show(self, status: StreamStatus) -> None:
        """Take how the inspection stands."""
        self._status = status

    def close(self) -> None:
        """Answer no more."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def collect(self) -> Iterator[Metric]:
        """Yield everything as it stands; Prometheus calls it."""
        yield self._labelled("defects", "Defects found", "label", self._labels)
        yield self._labelled("uninspected", "Uninspected intervals", "reason", self._gaps)
        states = self._states()
        for family, name, text in _SINKS:
            metric = family(f"magtiles_stream_sink_{name}", text, labels=["sink"])
            for state in states:
                metric.add_metric([state.name], getattr(state, name))
            yield metric
        up = GaugeMetricFamily("magtiles_stream_sink_up", "0: an alarm", labels=["sink"])
        for state in states:
            up.add_metric([state.name], float(state.error is None))
        yield up
        if self._status is not None:
            yield from _of(self._status)

    def _labelled(self, name: str, text: str, label: str, counts: Counter[str]) -> Metric:
        metric = CounterMetricFamily(f"magtiles_stream_{name}", text, labels=[label])
        for value, times in dict(counts).items():
            metric.add_metric([value], times)
        return metric


def _of(status: StreamStatus) -> Iterator[Metric]:
    report: WebReport = status.report
    for name, text in _COUNTERS:
        yield CounterMetricFamily(f"magtiles_stream_{name}", text, value=getattr(report, name))
    for name, text in _GAUGES:
        yield GaugeMetricFamily(f"magtiles_stream_{name}", text, value=getattr(report, name))
    yield CounterMetricFamily(
        "magtiles_stream_model_seconds", "Time in the model", value=report.model_s
    )
    yield GaugeMetricFamily(
        "magtiles_stream_queue_blocks", "Blocks that wait for the model", value=status.queued_blocks
    )
    yield GaugeMetricFamily(
        "magtiles_stream_lines_per_second", "Lines with a verdict", value=status.lines_per_s
    )
    latency = GaugeMetricFamily(
        "magtiles_stream_latency_seconds", "Line to verdict, over all lines", labels=["quantile"]
    )
    latency.add_metric(["0.5"], report.latency_p50_ms / 1000)
    latency.add_metric(["0.99"], report.latency_p99_ms / 1000)
    yield latency
    yield GaugeMetricFamily(
        "magtiles_stream_longest_silence_seconds",
        "Longest time without a line",
        value=report.longest_silence_s,
    )
    if report.passed_share is not None:
        yield GaugeMetricFamily(
            "magtiles_stream_passed_share",
            "Share of the web that the screen passed on to the model",
            value=report.passed_share,
        )
