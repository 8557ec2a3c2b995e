"""How fast a run will be, from the times of its stages: a closed queue with two stations."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class StageTimes:
    """Mean times of one picture, as the columns of a result hold them.

    Attributes:
        read_ms: Until the bytes are there: disk or network.
        decode_ms: From bytes to pixels; takes a core.
        segment_ms: Inference and measuring; takes the worker's threads.
    """

    read_ms: float
    decode_ms: float
    segment_ms: float


def pictures_per_s(
    times: StageTimes, *, workers: int, readers: int, threads: int = 1, cores: int | None = None
) -> float:
    """Return the rate of a run: that of its narrowest station.

    A worker's readers together bring `readers / (read + decode)` pictures a second, its model takes
    `1 / segment`; a buffer lies between, so the slower one decides. All workers share the cores,
    each of which a picture holds for `decode + threads x segment`.

    Source: the bound of asymptotic analysis for closed queueing networks, which a pipeline with a
    buffer of at least two pictures a reader comes close to (Denning and Buzen, 1978).

    Args:
        times: Measured with no more workers than cores.
        workers: How many workers.
        readers: Threads of a worker that read ahead.
        threads: Of one inference.
        cores: Of all machines together; None: more than the workers can use.
    """
    bring = 1000 * readers / (times.read_ms + times.decode_ms)
    rate = workers * min(bring, 1000 / times.segment_ms)
    if cores is None:
        return rate
    return min(rate, 1000 * cores / (times.decode_ms + threads * times.segment_ms))
