"""The Ray engine: the same parts on a cluster, through Ray Data.

Ray gives each actor of a pool a model of its own, restarts an actor that is lost and hands its
parts to another. A part that was written before its actor was lost is not done again.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from magtiles_seg.batch.work import Job, PartWorker
from magtiles_seg.errors import BackendError, BackendUnavailableError
from magtiles_seg.infer.backends.vendor import first_line

try:
    import ray
except Exception as error:
    raise BackendUnavailableError(
        f"engine 'ray' needs Ray Data ({error}): pip install 'magtiles-seg[ray]'"
    ) from error

if TYPE_CHECKING:
    from numpy.typing import NDArray

_MAX_BLOCKS = 10_000


class _Actor:
    """A `PartWorker` as Ray Data calls it: a batch is one part's number."""

    def __init__(self, job: Job, threads: int) -> None:
        self._job = job
        self._worker = PartWorker(job, threads=threads)

    def __call__(self, batch: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Do the part, unless it was done by an actor that was lost before it could say so."""
        part = int(batch["part"][0])
        rows = errors = 0
        if not self._job.part_path(part).exists():
            rows, errors = self._worker.run(part)
        return {"rows": np.array([rows]), "errors": np.array([errors])}


def run_ray(
    job: Job,
    parts: Sequence[int],
    *,
    workers: int,
    threads: int,
    gpus: float = 0.0,
    address: str | None = None,
    report: Callable[[int, int], None],
) -> None:
    """Do parts on a Ray cluster; `job.out` lies where every node sees it by the same path.

    Args:
        job: What the run does.
        parts: Numbers of the parts.
        workers: How many actors.
        threads: Cores of one actor, and threads of its inference.
        gpus: GPUs of one actor, as a fraction.
        address: Of a running cluster; None: that of the environment, or a new local one.
        report: Told how many pictures are done and how many of those got an error.

    Raises:
        BackendError: Ray does not start or is not reached; this machine has no room for a worker; a
            worker failed for another reason than a lost process or node.
    """
    started = not ray.is_initialized()
    if started:
        _start(address)
    try:
        if not (address or os.environ.get("RAY_ADDRESS")):  # a cluster may still get such nodes
            _check_room(threads, gpus)
        _run(job, parts, workers, threads, gpus, report)
    except ray.exceptions.RayError as error:
        lines = str(error).strip().splitlines()
        raise BackendError(f"Ray gave the run up: {lines[-1]}; what is done stays done") from error
    finally:
        if started:
            ray.shutdown()


def _start(address: str | None) -> None:
    try:
        ray.init(address=address, log_to_driver=False, include_dashboard=False)
    except Exception as error:  # Ray has no type of its own for a start that fails
        where = f"the Ray cluster {address} is not reached" if address else "Ray does not start"
        raise BackendError(
            f"{where}: {first_line(error)}; check the cluster and this machine's load, or take "
            "--engine local"
        ) from error


def _check_room(threads: int, gpus: float) -> None:
    """Refuse a worker that Ray would wait for without end."""
    there = ray.cluster_resources()  # type: ignore[no-untyped-call]
    cpus, cards = there.get("CPU", 0), there.get("GPU", 0)
    if threads > cpus or gpus > cards:
        raise BackendError(
            f"one worker takes {threads} CPUs and {gpus:g} GPUs; Ray has {cpus:g} and {cards:g} "
            "here: lower --threads and --gpus, or name a cluster by --address"
        )


def _run(
    job: Job,
    parts: Sequence[int],
    workers: int,
    threads: int,
    gpus: float,
    report: Callable[[int, int], None],
) -> None:
    # A block is what Ray hands out and repeats: one part, unless there are very many.
    blocks = min(len(parts), _MAX_BLOCKS)
    numbers = ray.data.from_items([{"part": part} for part in parts], override_num_blocks=blocks)
    done = numbers.map_batches(
        _Actor,
        fn_constructor_args=(job, threads),
        batch_size=1,
        batch_format="numpy",
        compute=ray.data.ActorPoolStrategy(size=min(workers, len(parts))),
        num_cpus=threads,
        num_gpus=gpus,
    )
    rows = errors = 0
    for batch in done.iter_batches(batch_size=None, batch_format="numpy"):
        rows, errors = rows + int(batch["rows"].sum()), errors + int(batch["errors"].sum())
        report(rows, errors)
