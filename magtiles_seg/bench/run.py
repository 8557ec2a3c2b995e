"""How fast this machine segments, and by which backend: the measurement behind `bench`."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from magtiles_seg.bench.entries import (
    Candidate,
    Case,
    Entry,
    enter,
    enter_eager,
    enter_gemm,
    enter_reference,
    find_candidates,
)
from magtiles_seg.errors import BackendUnavailableError, ConfigError, InferenceError
from magtiles_seg.infer.backends.base import file_sha256
from magtiles_seg.infer.selection import machine
from magtiles_seg.model.bundled import BUNDLED_MODEL

_STATUS = Path("/proc/self/status")


def peak_mib(candidate: Candidate, case: Case) -> float | None:
    """Return the greatest resident memory in MiB; None where the system does not tell (not Linux).

    Raises:
        InferenceError: The process failed.
    """
    words = json.dumps([{**asdict(candidate), "path": str(candidate.path)}, asdict(case)])
    command = [sys.executable, "-m", "magtiles_seg.bench.run", words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise InferenceError(f"measuring the memory of {candidate} failed: {last}")
    return float(done.stdout) if done.stdout.strip() else None


def _main(words: str) -> None:
    way, case = json.loads(words)
    one = Case(**case)
    with Candidate(**{**way, "path": Path(way["path"])}).open() as segmenter:
        for _ in range(2):
            segmenter.batch(one.pictures())
    found = re.search(r"VmHWM:\s*(\d+) kB", _STATUS.read_text()) if _STATUS.exists() else None
    sys.stdout.write(str(int(found[1]) / 1024) if found else "")


if __name__ == "__main__":
    _main(sys.argv[1])

_UNCOUNTED = 2
_TILE = Case(height_px=288, width_px=220)


@dataclass(frozen=True, kw_only=True)
class BenchRow:
    """What one entry did; times of one call, over all counted calls.

    Attributes:
        name: File, backend, device and precision, or what is compared with.
        kind: See `Entry.kind`.
        candidate: How a Segmenter runs so; None for those that are only compared with.
        threads: Of one inference on a CPU.
        height_px: Of a picture.
        width_px: Of a picture.
        batch: Pictures in a call.
        p50_ms: Median latency, end to end.
        p95_ms: 95th percentile.
        p99_ms: 99th percentile.
        pictures_s: Pictures per second, by the median; None: it takes no pictures of the case.
        mpix_s: Megapixels per second, likewise.
        times_eager: Eager's time over this one's, median over the rounds; None: it took no part.
        times_reference: The reference's time for as many pictures over this one's, likewise.
        overhead_fraction: Share of the time outside the runtime; None: not a candidate.
        gflop_s: Operations of the network over the runtime's median time, in 10^9 a second.
        gemm_fraction: That, as a share of what the matrix product reached in the same rounds.
        peak_mib: Greatest resident memory of a fresh process that runs this; None: not measured.
    """

    name: str
    kind: str
    candidate: Candidate | None
    threads: int
    height_px: int
    width_px: int
    batch: int
    p50_ms: float
    p95_ms: float
    p99_ms: float
    pictures_s: float | None
    mpix_s: float | None
    times_eager: float | None
    times_reference: float | None
    overhead_fraction: float | None
    gflop_s: float | None
    gemm_fraction: float | None
    peak_mib: float | None


@dataclass(frozen=True, kw_only=True)
class BenchReport:
    """All that one run measured.

    Attributes:
        machine: Name of CPU and GPU, cores.
        load: Processes that wanted a CPU while it ran, average of the last minute; 0: unknown.
        model: The model file.
        model_sha256: Of that file.
        architecture: Of the network.
        rounds: How many turns each entry had.
        rows: One for each entry and case, in the order they were named.
    """

    machine: str
    load: float
    model: str
    model_sha256: str
    architecture: str
    rounds: int
    rows: tuple[BenchRow, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the figures as plain JSON values."""
        fields = asdict(self)
        for row in fields["rows"]:
            if row["candidate"]:
                row["candidate"]["path"] = str(row["candidate"]["path"])
        return {**fields, "rows": list(fields["rows"])}


def measure(
    model: str | os.PathLike[str] | None = None,
    *,
    cases: Sequence[Case] = (_TILE,),
    also: Sequence[Path] = (),
    backends: Sequence[str] = (),
    threads: Sequence[int] = (),
    rounds: int = 20,
    burst: int = 5,
    reference: bool = False,
    memory: bool = False,
    progress: Callable[[int, int], None] | None = None,
    left_out: Callable[[BackendUnavailableError], None] | None = None,
) -> BenchReport:
    """Compare all ways to run a model on this machine, end to end.

    With torch installed, eager torch fp32 of the same network and a large matrix product take part.

    Args:
        model: An `.onnx` file; None: the bundled model.
        cases: What is segmented in a call.
        also: Other files of the same model, such as its int8 version, or an engine.
        backends: Only these; none: all that are installed.
        threads: Of one inference on a CPU, each for itself; none: all cores.
        rounds: How many turns each entry has.
        burst: Counted calls in a turn.
        reference: Let the 41 M-parameter reference network take part.
        memory: Measure peak memory too, of a fresh process each.
        progress: Called with (rounds done, rounds of all groups).
        left_out: Called with why an ONNX file does not run on a GPU that onnxruntime has a provider
            for; an engine that does not run is an error.

    Raises:
        FileNotFoundError, ModelError: A model file cannot be loaded.
        ConfigError: A number is less than 1, or a backend is invalid here.
        BackendUnavailableError: A backend that was named, or torch for `reference`, is missing.
    """
    if rounds < 1 or burst < 1 or not cases:
        raise ConfigError(
            f"rounds, burst and cases must be at least 1, got {rounds}, {burst} and {len(cases)}"
        )
    path = BUNDLED_MODEL if model is None else Path(model)
    sha256 = file_sha256(path)
    candidates = find_candidates(path, also=also, backends=backends, threads=threads)
    candidates = [one for one in candidates if _starts(one, left_out)]
    counts = sorted({candidate.threads or 1 for candidate in candidates})
    groups = [(case, count) for case in cases for count in counts]
    done = 0

    def tick() -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, rounds * len(groups))

    rows: list[BenchRow] = []
    architecture = ""
    for case, count in groups:
        entered = [enter(one, case) for one in candidates if one.threads == count]
        spec = entered[0].spec
        assert spec is not None
        architecture = spec.card.architecture
        with _torch_threads(count):
            others = _others(architecture, spec.card.labels, case, reference=reference)
            entries = [*entered, *others]
            turns = _play(entries, rounds, burst, tick)
        rows += _rows(entries, turns, case, count, memory=memory)
    return BenchReport(
        machine=machine(),
        load=os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0,
        model=path.name,
        model_sha256=sha256,
        architecture=architecture,
        rounds=rounds,
        rows=tuple(rows),
    )


def _starts(
    candidate: Candidate, left_out: Callable[[BackendUnavailableError], None] | None
) -> bool:
    """Return whether a provider of the GPU build runs here: a wheel has it whatever is there."""
    if candidate.device == "cpu" or candidate.backend != "onnxruntime":
        return True
    try:
        candidate.open().close()
    except BackendUnavailableError as error:
        if left_out is not None:
            left_out(error)
        return False
    return True


def _others(
    architecture: str, labels: tuple[str, ...], case: Case, *, reference: bool
) -> list[Entry]:
    """Return what candidates are compared with; without torch nothing, unless it was asked for."""
    with suppress(*(() if reference else (BackendUnavailableError,))):
        others = [enter_eager(architecture, labels, case)]
        if reference:
            others.append(enter_reference())
        return [*others, enter_gemm()]
    return []


def _play(
    entries: Sequence[Entry], rounds: int, burst: int, tick: Callable[[], None]
) -> npt.NDArray[np.float64]:
    """Return the seconds of each counted call: (entries, 2, rounds, burst).

    The second axis is the whole call, and the part of it within the runtime.
    """
    times_s = np.empty((len(entries), 2, rounds, burst))
    for turn in range(rounds):
        for number, entry in enumerate(entries):
            for _ in range(_UNCOUNTED):
                entry.call()
            for call in range(burst):
                entry.inside_s = 0.0
                start = time.perf_counter()
                entry.call()
                whole = time.perf_counter() - start
                times_s[number, :, turn, call] = whole, entry.inside_s or whole
        tick()
    return times_s


def _rows(
    entries: Sequence[Entry],
    times_s: npt.NDArray[np.float64],
    case: Case,
    threads: int,
    *,
    memory: bool,
) -> list[BenchRow]:
    """Return one row for each entry, from the times that `_play` returned."""
    medians = np.median(times_s, axis=3)
    by_kind = {one.kind: (one, turn) for one, (turn, _) in zip(entries, medians, strict=True)}

    def ratio(kind: str, turn: npt.NDArray[np.float64], factor: float = 1) -> float | None:
        """Return the time of a kind over this one's, median over the rounds."""
        return float(np.median(by_kind[kind][1] * factor / turn)) if kind in by_kind else None

    rows = []
    for one, times, (turn, running) in zip(entries, times_s, medians, strict=True):
        p50, p95, p99 = (float(figure) * 1e3 for figure in np.percentile(times[0], (50, 95, 99)))
        of_case = one.kind in ("candidate", "eager")
        gemm = by_kind["sgemm"][0].gflop if "sgemm" in by_kind else None
        rows.append(
            BenchRow(
                name=one.name,
                kind=one.kind,
                candidate=one.candidate,
                threads=threads,
                height_px=case.height_px,
                width_px=case.width_px,
                batch=case.batch,
                p50_ms=p50,
                p95_ms=p95,
                p99_ms=p99,
                pictures_s=case.batch * 1e3 / p50 if of_case else None,
                mpix_s=case.pixels / p50 / 1e3 if of_case else None,
                times_eager=ratio("eager", turn) if of_case else None,
                times_reference=ratio("reference", turn, case.batch) if of_case else None,
                overhead_fraction=float(np.median(1 - times[1] / times[0]))
                if one.candidate
                else None,
                gflop_s=one.gflop and float(np.median(one.gflop / running)),
                gemm_fraction=one.gflop and gemm and ratio("sgemm", running, one.gflop / gemm),
                peak_mib=peak_mib(one.candidate, case) if memory and one.candidate else None,
            )
        )
    return rows


@contextmanager
def _torch_threads(threads: int) -> Iterator[None]:
    """Set torch's threads for a while; without torch nothing happens."""
    try:
        import torch
    except ImportError:
        yield
        return
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
