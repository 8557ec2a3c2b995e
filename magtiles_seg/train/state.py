"""The state of a run between two epochs, on disk: enough to go on as if it had never stopped."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel

from magtiles_seg.config import TrainParams
from magtiles_seg.dataset.samples import Sample
from magtiles_seg.errors import DataError
from magtiles_seg.infer import BUNDLED_MODEL
from magtiles_seg.model.checkpoint import read_tensors, write_tensors

_LATER = ("start", "teacher", "accumulate", "keep", "coarse_fraction")
"""Parameters that are of no matter at their usual values: runs from before they came go on."""


@dataclass
class RunState:
    """What a run carries from epoch to epoch, beside tensors.

    Attributes:
        identity: What the run was started with; a run goes on only with the same.
        epoch: Epochs done.
        best_score: Validation score of the kept checkpoint; -1 before the first.
        best_epoch: Epoch of the kept checkpoint.
        history: One row of figures an epoch.
    """

    identity: dict[str, Any]
    epoch: int = 0
    best_score: float = -1.0
    best_epoch: int = -1
    history: list[dict[str, float]] = field(default_factory=list)


def identity(
    training: Sequence[Sample],
    validation: Sequence[Sample],
    params: TrainParams,
    labels: tuple[str, ...],
) -> dict[str, object]:
    """Return what makes two runs the same run, as JSON values."""
    parts = {"training": training, "validation": validation}
    digests = {name: _digest(sample.id for sample in part) for name, part in parts.items()}
    fixed = dataclasses.asdict(params)
    del fixed["threads"], fixed["devices"]
    usual = TrainParams()
    for name in _LATER:
        if fixed[name] == getattr(usual, name):
            del fixed[name]
    if params.start is not None:
        fixed["start"] = hashlib.sha256(start_path(params.start).read_bytes()).hexdigest()
    if params.teacher is None:
        del fixed["teacher_weight"]
    else:
        fixed["teacher"] = hashlib.sha256(Path(params.teacher).read_bytes()).hexdigest()
    return {
        **fixed,
        "labels": list(labels),
        **{f"{name}_sha256": digest for name, digest in digests.items()},
    }


def start_path(start: str) -> Path:
    """Return the file that `train.start` names.

    Raises:
        FileNotFoundError: There is no such file.
    """
    path = BUNDLED_MODEL if start == "bundled" else Path(start)
    if not path.is_file():
        raise FileNotFoundError(f"train.start: no model file at {path}")
    return path


def _digest(ids: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(sorted(ids)).encode()).hexdigest()


def save_state(
    path: Path, state: RunState, network: nn.Module, average: AveragedModel, optimizer: Optimizer
) -> None:
    """Write a run's state to one file, whole or not at all."""
    tensors: dict[str, Tensor] = {
        f"network.{name}": tensor for name, tensor in network.state_dict().items()
    }
    tensors |= {f"average.{name}": tensor for name, tensor in average.state_dict().items()}
    for index, moments in optimizer.state_dict()["state"].items():
        tensors |= {
            f"optimizer.{index}.{name}": torch.as_tensor(value) for name, value in moments.items()
        }
    write_tensors(path, tensors, vars(state))


def load_state(
    path: Path,
    identity: dict[str, Any],
    network: nn.Module,
    average: AveragedModel,
    optimizer: Optimizer,
) -> RunState:
    """Fill network, average and optimizer from a file, and return the rest of the state.

    Raises:
        DataError: The file belongs to a run that was started with other parameters or pictures.
        ModelError: The file is damaged.
    """
    tensors, meta = read_tensors(path)
    if meta["identity"] != identity:
        changed = sorted(key for key in identity if meta["identity"].get(key) != identity[key])
        raise DataError(
            f"{path} is the state of a run with other {', '.join(changed)}: "
            "give the run another output directory, or delete this one to start afresh"
        )
    parts: dict[str, dict[str, Tensor]] = {"network": {}, "average": {}, "optimizer": {}}
    for name, tensor in tensors.items():
        part, _, rest = name.partition(".")
        parts[part][rest] = tensor
    network.load_state_dict(parts["network"])
    average.load_state_dict(parts["average"])
    moments: dict[int, dict[str, Tensor]] = {}
    for name, tensor in parts["optimizer"].items():
        index, key = name.split(".")
        moments.setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict({**optimizer.state_dict(), "state": moments})
    return RunState(**meta)
