"""Whether the run that a folder holds may go on, or must make room for another."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from magtiles_seg.config import TrainParams
from magtiles_seg.dataset.samples import Sample
from magtiles_seg.errors import ModelError
from magtiles_seg.labels import LABELS
from magtiles_seg.model.checkpoint import read_tensors
from magtiles_seg.train.loop import CHECKPOINT, STATE
from magtiles_seg.train.state import identity


def forget_other_run(
    training: Sequence[Sample],
    validation: Sequence[Sample],
    params: TrainParams,
    out_dir: Path,
    *,
    labels: tuple[str, ...] = LABELS,
) -> bool:
    """Clear a folder of any run but the one that `train`, with the same arguments, would go on.

    A run goes on when it was stopped before its last epoch and its checkpoint is still the one it
    wrote. Anything else there was finished, started otherwise, or mixed up with another run.

    Returns:
        Whether the next `train` starts afresh.
    """
    expected = identity(training, validation, params, labels)
    if _goes_on(out_dir, expected, params):
        return False
    for name in (STATE, CHECKPOINT):
        (out_dir / name).unlink(missing_ok=True)
    return True


def _goes_on(out_dir: Path, expected: dict[str, object], params: TrainParams) -> bool:
    try:
        _, state = read_tensors(out_dir / STATE)
        _, best = read_tensors(out_dir / CHECKPOINT)
    except (FileNotFoundError, ModelError):
        return False
    if not state["identity"] == expected == best.get("training"):
        return False
    stale = state["epoch"] - 1 - state["best_epoch"]
    finished = state["epoch"] >= params.epochs or 0 < params.patience <= stale
    return not finished and bool(best.get("epoch") == state["best_epoch"])
