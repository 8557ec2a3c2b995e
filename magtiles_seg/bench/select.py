"""Choosing: the fastest way to run a model on this machine that answers as the model does."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from magtiles_seg.errors import ConfigError, ParityError
from magtiles_seg.export.parity import (
    TileSet,
    Tolerance,
    check,
    compare,
    fit_to_engine,
    frozen_pictures,
)
from magtiles_seg.infer.backends.base import file_sha256
from magtiles_seg.infer.backends.ort import OrtBackend
from magtiles_seg.infer.selection import Selection, runtime_of

if TYPE_CHECKING:
    from magtiles_seg.bench.entries import Candidate
    from magtiles_seg.bench.run import BenchReport


_NO_TILES = (
    "bf16 is not chosen by synthetic tiles, on which no rounding shows: name real ones that the "
    "model was not trained on (--data or --split)"
)


def select_fastest(
    report: BenchReport,
    model: Path,
    *,
    tolerance: Callable[[Candidate], Tolerance] | None = None,
    proof: TileSet | None = None,
    refused: Callable[[Candidate, ParityError], None] | None = None,
) -> Selection:
    """Return the fastest candidate of a report that passes parity with the model.

    The reference is the model file itself on onnxruntime and the CPU. Over several cases the
    candidate wins whose median latencies have the least geometric mean.

    Args:
        report: What `bench.measure` returned.
        model: The model file that was measured.
        tolerance: How far a candidate may stray; None: the defaults for fp32.
        proof: What to compare on; None: `parity.frozen_pictures()`, which are synthetic and prove
            nothing of bf16: it is then refused.
        refused: Called with each faster candidate that fails, and why.

    Raises:
        ConfigError: The report holds no candidate, or not all in each case.
        ParityError: No candidate passes.
    """
    ranked = _ranking(report)
    reference = OrtBackend(model)
    shown_real = proof is not None
    proof = proof or TileSet(pictures=tuple(frozen_pictures()), classes=(), origin="synthetic")
    for candidate, seconds in ranked:
        if candidate.precision == "bf16" and not shown_real:
            if refused is not None:
                refused(candidate, ParityError(_NO_TILES))
            continue
        with candidate.open() as segmenter:
            try:
                allowed = tolerance(candidate) if tolerance else Tolerance()
                shown = fit_to_engine(proof.pictures, candidate.path)
                found = compare(reference, segmenter.backend, shown, classes=proof.classes)
                check(found, allowed)
            except ParityError as error:
                if refused is not None:
                    refused(candidate, error)
                continue
        return _selection(candidate, model, f"{seconds * 1e3:.1f} ms, {report.machine}")
    raise ParityError("no candidate answers as the model does: nothing is selected")


def _ranking(report: BenchReport) -> list[tuple[Candidate, float]]:
    """Return the candidates with the geometric mean of their median seconds, fastest first."""
    times: dict[Candidate, list[float]] = {}
    for row in report.rows:
        if row.candidate is not None:
            times.setdefault(row.candidate, []).append(row.p50_ms / 1e3)
    if not times:
        raise ConfigError("there is nothing to select from: the report holds no candidate")
    means = [
        (one, math.exp(sum(map(math.log, seconds)) / len(seconds)))
        for one, seconds in times.items()
    ]
    return sorted(means, key=lambda pair: pair[1])


def _selection(candidate: Candidate, model: Path, measured: str) -> Selection:
    other = candidate.path.resolve() != model.resolve()
    return Selection(
        backend=candidate.backend,
        device=candidate.device,
        threads=candidate.threads or 1,
        precision=candidate.precision,
        runtime=runtime_of(candidate.backend),
        file=str(candidate.path.resolve()) if other else None,
        file_sha256=file_sha256(candidate.path) if other else "",
        measured=measured,
    )
