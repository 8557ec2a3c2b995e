"""How long a picture takes, end to end, beside eager torch fp32 of the same network in one run.

Only ratios inside one run mean anything on a machine that does other work as well. The contestants
take turns in short bursts; each burst starts with calls that are not counted, in which the threads
of the one before go to sleep, and the ratio is the median over the rounds.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from magtiles_seg.errors import BackendUnavailableError, ConfigError
from magtiles_seg.infer.segmenter import Segmenter

try:
    import torch

    from magtiles_seg.model.network import build_network
except ImportError as error:
    raise BackendUnavailableError(
        "the benchmark compares with eager torch: pip install 'magtiles-seg[train]'"
    ) from error

_UNCOUNTED = 2


@dataclass(frozen=True, kw_only=True)
class BenchReport:
    """What a comparison measured; latencies of one picture, medians over all counted calls.

    Attributes:
        architecture: Of the network.
        provider: What executed the model file.
        height_px: Of the picture.
        width_px: Of the picture.
        threads: Of either contestant.
        rounds: How many times each contestant had its turn.
        segmenter_ms: From array to `Segmentation`.
        runtime_ms: The share of the model file's runtime in it.
        eager_ms: The bare network in eager torch fp32, without preparing or deciding anything.
        speedup: Eager's time over the Segmenter's, median over the rounds.
        overhead_fraction: Share of the Segmenter's time outside the runtime, likewise.
    """

    architecture: str
    provider: str
    height_px: int
    width_px: int
    threads: int
    rounds: int
    segmenter_ms: float
    runtime_ms: float
    eager_ms: float
    speedup: float
    overhead_fraction: float

    def to_dict(self) -> dict[str, Any]:
        """Return the figures by name."""
        return asdict(self)


def measure(
    model: str | os.PathLike[str] | None = None,
    *,
    size_hw: tuple[int, int] = (288, 220),
    threads: int | None = None,
    rounds: int = 20,
    burst: int = 5,
    progress: Callable[[int, int], None] | None = None,
) -> BenchReport:
    """Compare `Segmenter`, end to end, with eager torch fp32 of the same network.

    The eager network has fresh weights, on which its speed does not depend.

    Args:
        model: An `.onnx` file; None: the bundled model.
        size_hw: Height and width of the picture, a synthetic tile with a defect, in px.
        threads: Of either contestant; None: all physical cores that the process may use.
        rounds: How many turns each contestant has.
        burst: Counted calls in a turn.
        progress: Called with (rounds done, rounds).

    Raises:
        ConfigError: `rounds` or `burst` is less than 1.
    """
    if rounds < 1 or burst < 1:
        raise ConfigError(f"rounds and burst must be at least 1, got {rounds} and {burst}")
    with Segmenter(model, threads=threads) as segmenter, _torch_threads(segmenter.spec.threads):
        turns = []
        contestants = _contestants(segmenter, size_hw)
        for done in range(rounds):
            turns.append([_turn(call, burst) for call in contestants])
            if progress is not None:
                progress(done + 1, rounds)
        return _report(segmenter, size_hw, np.array(turns))


def _contestants(segmenter: Segmenter, size_hw: tuple[int, int]) -> tuple[Callable[[], Any], ...]:
    from magtiles_seg.dataset.synthetic import synthetic_tile

    card = segmenter.spec.card
    picture = synthetic_tile(1, defect="blowhole", size_hw=size_hw).image
    network = build_network(card.architecture, labels=card.labels).eval()
    padded = [-(-side // card.stride) * card.stride for side in size_hw]
    grey = torch.full((1, 1, *padded), 127.0)

    def eager() -> None:
        with torch.inference_mode():
            network(grey)

    return lambda: segmenter(picture), lambda: segmenter.backend.infer(picture[None]), eager


def _turn(call: Callable[[], Any], burst: int) -> list[float]:
    """Return the milliseconds of each counted call."""
    for _ in range(_UNCOUNTED):
        call()
    times_ms = []
    for _ in range(burst):
        start = time.perf_counter()
        call()
        times_ms.append((time.perf_counter() - start) * 1e3)
    return times_ms


def _report(segmenter: Segmenter, size_hw: tuple[int, int], times_ms: Any) -> BenchReport:  # noqa: ANN401
    """Return the report of times (rounds, 3 contestants, burst)."""
    segmenter_ms, runtime_ms, eager_ms = np.median(times_ms, axis=2).T
    spec = segmenter.spec
    return BenchReport(
        architecture=spec.card.architecture,
        provider=spec.provider,
        height_px=size_hw[0],
        width_px=size_hw[1],
        threads=spec.threads,
        rounds=len(times_ms),
        segmenter_ms=float(np.median(segmenter_ms)),
        runtime_ms=float(np.median(runtime_ms)),
        eager_ms=float(np.median(eager_ms)),
        speedup=float(np.median(eager_ms / segmenter_ms)),
        overhead_fraction=float(np.median(1 - runtime_ms / segmenter_ms)),
    )


@contextmanager
def _torch_threads(threads: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
