"""What the service tells Prometheus. With several workers, one scrape answers for all of them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from time import perf_counter

from prometheus_client import CONTENT_TYPE_LATEST as CONTENT_TYPE
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
    multiprocess,
)

from magtiles_seg.drift import DriftMonitor
from magtiles_seg.result import Segmentation

__all__ = ["CONTENT_TYPE", "Metrics"]

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_SIZES = (1, 2, 4, 8, 16, 32)
_DICE = (0.1, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.99, 0.999)
_DRIFT_EVERY = 20  # pictures between two looks at the window


class Metrics:
    """All counters of one process."""

    def __init__(self) -> None:
        """Make them in a registry of their own, so that one process may hold several services."""
        registry = CollectorRegistry()
        self._registry = registry
        self._seen = 0

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"magtiles_{name}", text, labels, registry=registry)

        def gauge(name: str, text: str, *labels: str, mode: str = "livesum") -> Gauge:
            # The modes of prometheus_client are literals; ours are two of them.
            return Gauge(
                f"magtiles_{name}",
                text,
                labels,
                registry=registry,
                multiprocess_mode=mode,  # type: ignore[arg-type]
            )

        def histogram(
            name: str, text: str, *labels: str, buckets: tuple[float, ...] = _SECONDS
        ) -> Histogram:
            return Histogram(f"magtiles_{name}", text, labels, buckets=buckets, registry=registry)

        self.requests = counter("requests", "Requests answered", "path", "status")
        self.request_seconds = histogram("request_seconds", "Request to answer", "path")
        self.stage_seconds = histogram("stage_seconds", "Time of each stage", "stage")
        self.in_flight = gauge("in_flight", "Requests of /analyze inside")
        self.queue = gauge("queue", "Pictures that wait for the model")
        self.batch_size = histogram("batch_size", "Pictures in an inference", buckets=_SIZES)
        self.verdicts = counter("pictures", "Pictures judged", "verdict")
        self.defects = counter("defects", "Defects found", "label")
        self.defect_area = counter("defect_area_px", "Area of the defects found, in px")
        self.left = counter("clients_left", "Requests whose client left before the answer")
        self.expired = counter("expired", "Requests let in whose time was over")
        self.refused = counter("refused", "Requests not let in", "reason")
        self.wait = gauge(
            "wait_seconds", "How long a new picture would wait for the model", mode="livemax"
        )
        self.decoders_ended = counter("decoders_ended", "Decoding processes ended", "cause")
        self.input_mean = gauge("input_mean", "Mean of late", "feature", mode="livemostrecent")
        self.input_psi = gauge(
            "input_psi", "Population stability index against the card", "feature", mode="livemax"
        )
        self.ready = gauge("ready", "1 when warm and the golden tile is reproduced", mode="livemin")
        self.model = gauge("model_info", "The model in use", "name", "sha256", "backend", "device")
        self.shadow = counter("shadow_requests", "Requests mirrored", "outcome")
        self.shadow_flipped = counter("shadow_flipped", "Verdicts that the shadow turned")
        self.review = counter("review_pictures", "Pictures for a person to look at", "outcome")
        self.shadow_dice = histogram("shadow_dice", "Dice of both masks", buckets=_DICE)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a stage of a request; one that raises counts too."""
        start = perf_counter()
        try:
            yield
        finally:
            self.stage_seconds.labels(name).observe(perf_counter() - start)

    def outcome(self, what: str) -> None:
        """Count what became of a request at the gate, by its words: see `limits.Gate`."""
        if what == "left":
            self.left.inc()
        elif what == "expired":
            self.expired.inc()
        elif what.startswith("refused: "):
            self.refused.labels(what.removeprefix("refused: ")).inc()

    def batch(self, pictures: int, seconds: float) -> None:
        """Count one inference."""
        self.batch_size.observe(pictures)
        self.stage_seconds.labels("infer").observe(seconds)

    def picture(
        self, result: Segmentation, values: Mapping[str, float], monitor: DriftMonitor
    ) -> None:
        """Count one answer and its features."""
        self.verdicts.labels(result.verdict).inc()
        for defect in result.defects:
            self.defects.labels(defect.label).inc()
            self.defect_area.inc(defect.area_px)
        monitor.add(values)
        if self._seen % _DRIFT_EVERY == 0:
            for name, mean in monitor.means().items():
                self.input_mean.labels(name).set(mean)
            for name, index in monitor.psi().items():
                self.input_psi.labels(name).set(index)
        self._seen += 1

    @property
    def shared(self) -> bool:
        """Whether several workers answer for each other."""
        return "PROMETHEUS_MULTIPROC_DIR" in os.environ

    def text(self) -> bytes:
        """Return the exposition, of all workers where there are several."""
        if not self.shared:
            return generate_latest(self._registry)
        _forget_ended(Path(os.environ["PROMETHEUS_MULTIPROC_DIR"]))
        everyone = CollectorRegistry()
        multiprocess.MultiProcessCollector(everyone)  # type: ignore[no-untyped-call]
        return generate_latest(everyone)


def _forget_ended(folder: Path) -> None:
    """Take the gauges of workers that ended out of the sum; their counters stay."""
    import psutil

    for file in folder.glob("gauge_live*.db"):
        pid = int(file.stem.rpartition("_")[2])
        if not psutil.pid_exists(pid):
            with suppress(FileNotFoundError):  # another worker was quicker
                multiprocess.mark_process_dead(pid)  # type: ignore[no-untyped-call]
