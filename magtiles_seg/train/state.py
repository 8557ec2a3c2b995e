"""The state of a run between two epochs, on disk: enough to go on as if it had never stopped.

A folder holds one run: `forget_other_run` clears it of any but the one that would go on.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from magtiles_seg.config import TrainParams, present_names
from magtiles_seg.dataset.samples import Sample
from magtiles_seg.dataset.splits import data_sha256, part_sha256, taken_over
from magtiles_seg.errors import ConfigError, DataError, ModelError
from magtiles_seg.files import sha256_of
from magtiles_seg.fingerprint import code_sha256
from magtiles_seg.labels import LABELS
from magtiles_seg.model.bundled import BUNDLED_MODEL, model_path
from magtiles_seg.model.checkpoint import (
    CHECKPOINT,
    FINISHED,
    STATE,
    read_meta,
    read_tensors,
    write_tensors,
)
from magtiles_seg.model.warmstart import training_of

_MACHINE = ("threads", "device", "devices")
"""Parameters that say where a run computes, and not what."""

_LATER = ("start", "teacher", "accumulate", "keep", "coarse_fraction", "patch_share")
"""Parameters that are of no matter at their usual values: runs from before they came go on."""


class Fingerprints(NamedTuple):
    """What a run was started with, beside its parameters.

    Attributes:
        code_sha256: Of the code that trains, comments aside.
        data_sha256: Of the pictures and masks that it learns from.
    """

    code_sha256: str
    data_sha256: str


@dataclass
class RunState:
    """What a run carries from epoch to epoch, beside tensors.

    Attributes:
        identity: What the run was started with; a run goes on only with the same.
        epoch: Epochs done.
        best_score: Validation score of the kept checkpoint; -1 before the first.
        best_epoch: Epoch of the kept checkpoint.
        history: One row of figures per epoch.
        scaler: State of the loss scaler of fp16; empty without one.
        code_sha256: Of the code that it was started with, comments aside.
        data_sha256: Of the pictures and masks that it was started with.
    """

    identity: dict[str, Any]
    epoch: int = 0
    best_score: float = -1.0
    best_epoch: int = -1
    history: list[dict[str, float]] = field(default_factory=list)
    scaler: dict[str, float] = field(default_factory=dict)
    code_sha256: str = ""
    data_sha256: str = ""

    @property
    def fingerprints(self) -> Fingerprints:
        """What the run was started with."""
        return Fingerprints(self.code_sha256, self.data_sha256)

    def finished(self, params: TrainParams) -> bool:
        """Return whether all epochs are done, or too many of them brought nothing better."""
        stale = self.epoch - 1 - self.best_epoch
        return self.epoch >= params.epochs or 0 < params.patience <= stale


def identity(
    training: Sequence[Sample],
    validation: Sequence[Sample],
    params: TrainParams,
    labels: tuple[str, ...],
) -> dict[str, object]:
    """Return what makes two runs the same run, as JSON values."""
    parts = {"training": training, "validation": validation}
    digests = {name: part_sha256(sample.id for sample in part) for name, part in parts.items()}
    fixed = dataclasses.asdict(params)
    for name in _MACHINE:
        del fixed[name]
    usual = TrainParams()
    for name in _LATER:
        if fixed[name] == getattr(usual, name):
            del fixed[name]
    if params.start is not None:
        fixed["start"] = sha256_of(start_path(params.start))
    if params.teacher is None:
        del fixed["teacher_weight"]
    else:
        fixed["teacher"] = sha256_of(teacher_path(params.teacher))
    return {
        **fixed,
        "labels": list(labels),
        **{f"{name}_sha256": digest for name, digest in digests.items()},
    }


def fingerprints(training: Sequence[Sample], validation: Sequence[Sample]) -> Fingerprints:
    """Return the SHA-256 of the code that trains, comments aside, and of what it learns from."""
    code = code_sha256(["magtiles_seg.train.loop"])
    return Fingerprints(code, data_sha256([*training, *validation]))


def check_run(
    out_dir: Path,
    expected: dict[str, object],
    training: Sequence[Sample],
    validation: Sequence[Sample],
    known: Fingerprints | None = None,
) -> None:
    """Refuse a folder that holds another run, or this one with pictures that were changed since.

    Args:
        out_dir: The run's folder; empty or missing, it holds none.
        expected: What `identity` returns for the run to start, or to go on: it knows pictures by
            name.
        training: Pictures that the weights are fitted to.
        validation: Pictures that choose the checkpoint.
        known: What `fingerprints` returns for the two parts, where the caller has it.

    Raises:
        DataError: The checkpoint or the state in it is of a run with other parameters, labels or
            parts; or a picture, a mask or a tile's number is another one than when it began.
    """
    for name, key, place in ((CHECKPOINT, "training", FINISHED), (STATE, "identity", None)):
        try:
            meta = read_meta(out_dir / name)
        except (FileNotFoundError, ModelError):
            continue
        _check_same(out_dir / name, meta.get(key), expected)
        began = (meta.get(place) or {} if place else meta).get("data_sha256")
        if not began:
            continue
        now = known.data_sha256 if known else data_sha256([*training, *validation])
        if now != began:
            raise DataError(
                f"{out_dir / name} was begun with other pictures or masks of the same names: they "
                "have changed since; give the run another output directory, or --restart it"
            )


def ancestors(params: TrainParams) -> list[str]:
    """Return which training parts a run knows beside its own, by `part_sha256`.

    They are those of the model that it starts from and of its teacher, and what these know in
    turn; "" for a model that does not say.

    Raises:
        FileNotFoundError, ModelError: A model is missing or damaged.
    """
    paths = [] if params.start is None else [start_path(params.start)]
    paths += [] if params.teacher is None else [teacher_path(params.teacher)]
    return parts_known_to(paths)


def parts_known_to(paths: Iterable[Path]) -> list[str]:
    """Return which training parts some models know, by `part_sha256`; "" for what is not said.

    Raises:
        FileNotFoundError, ModelError: A model is missing or damaged.
    """
    found = set[str]()
    for path in paths:
        said = training_of(path)
        found |= {str(said.get("training_sha256", "")), *taken_over(said)}
    return sorted(found)


def start_path(start: str) -> Path:
    """Return the file that `train.start` names.

    Raises:
        FileNotFoundError: There is no such file.
    """
    path = BUNDLED_MODEL if start == "bundled" else model_path(start)
    if not path.is_file():
        raise FileNotFoundError(f"train.start: no model file at {path}")
    return path


def teacher_path(teacher: str) -> Path:
    """Return the checkpoint that `train.teacher` names.

    Raises:
        ConfigError: It is no checkpoint by its name.
    """
    path = Path(teacher)
    if path.suffix.lower() != ".safetensors":
        raise ConfigError(
            f"train.teacher is {teacher}; expected a checkpoint that training wrote "
            "(.safetensors): exported and bundled models do not teach"
        )
    return path


def save_state(
    path: Path, state: RunState, network: nn.Module, average: nn.Module, optimizer: Optimizer
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
    write_tensors(path, {name: tensor.cpu() for name, tensor in tensors.items()}, vars(state))


def load_state(
    path: Path,
    identity: dict[str, Any],
    network: nn.Module,
    average: nn.Module,
    optimizer: Optimizer,
) -> RunState:
    """Fill network, average and optimizer from a file, and return the rest of the state.

    Raises:
        DataError: The file belongs to a run that was started with other parameters or pictures.
        ModelError: The file is damaged.
    """
    tensors, meta = read_tensors(path)
    _check_same(path, meta["identity"], identity)
    meta["identity"] = identity
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
    _lay_out_as_weights(optimizer)
    return RunState(**meta)


def history_of(out_dir: Path) -> list[dict[str, float]]:
    """Return one row of figures for each epoch that a folder's run has done, as far as it tells."""
    try:
        history: list[dict[str, float]] = read_meta(out_dir / STATE)["history"]
    except (FileNotFoundError, ModelError):  # a damaged state is refused where it is to be gone on
        return []
    return history


def _lay_out_as_weights(optimizer: Optimizer) -> None:
    """Give moments the strides of their weights: the fused AdamW pairs them by place in memory."""
    for weight, moments in optimizer.state.items():
        for name, value in moments.items():
            if value.shape == weight.shape:
                moments[name] = torch.empty_like(weight).copy_(value)


def forget_other_run(
    training: Sequence[Sample],
    validation: Sequence[Sample],
    params: TrainParams,
    out_dir: Path,
    *,
    labels: tuple[str, ...] = LABELS,
    known: Fingerprints | None = None,
) -> bool:
    """Clear a folder of any run but the one that `train`, with the same arguments, would go on.

    It is the same run if parameters, pictures, masks and code are the same, comments aside, and the
    checkpoint is still the one it wrote; stopped half-way it goes on, and finished it stays.

    Args:
        training: As of `train`, like all that follow.
        validation: Pictures that choose the checkpoint.
        params: The run's parameters.
        out_dir: The folder.
        labels: Class names by index.
        known: What `fingerprints` returns for the two parts, where the caller has it.

    Returns:
        Whether the next `train` starts afresh.
    """
    expected = identity(training, validation, params, labels)
    if _is_that_run(out_dir, expected, known or fingerprints(training, validation)):
        return False
    for name in (STATE, CHECKPOINT):
        (out_dir / name).unlink(missing_ok=True)
    return True


def _is_that_run(out_dir: Path, expected: dict[str, object], known: Fingerprints) -> bool:
    try:
        best = read_meta(out_dir / CHECKPOINT)
        if _started_with(best.get("training")) != expected:
            return False
        if FINISHED in best:
            return bool(best[FINISHED] == known._asdict())
        meta = read_meta(out_dir / STATE)
    except (FileNotFoundError, ModelError):
        return False
    state = RunState(**meta)
    if _started_with(state.identity) != expected or state.fingerprints != known:
        return False
    # That of the state, or of the epoch after it: killed between writing the one and the other.
    return best.get("epoch") in (state.best_epoch, state.epoch)


_PICTURES = {
    "training_sha256": "pictures to train on",
    "validation_sha256": "pictures to validate on",
}
"""What parts of an identity are called, where a message names them."""


def _check_same(path: Path, kept: dict[str, Any] | None, expected: dict[str, Any]) -> None:
    """Refuse a file of another run.

    Raises:
        DataError: It is of one.
    """
    began = _started_with(kept)
    keys = sorted({**began, **expected})
    changed = [key for key in keys if began.get(key, ...) != expected.get(key, ...)]
    if changed:
        named = ", ".join(_PICTURES.get(key, key) for key in changed)
        raise DataError(
            f"{path} is of a run with other {named}: give the run another output directory, or "
            "--restart it, which forgets this one"
        )


def _started_with(kept: dict[str, Any] | None) -> dict[str, Any]:
    """Return a run's identity as it was kept, its parameters by their present names."""
    return present_names("train", kept or {})


def seal_checkpoint(out_dir: Path, state: RunState) -> None:
    """Write into a run's checkpoint that the run is finished, and what it was started with.

    So the checkpoint speaks for the run where the state is not: DVC keeps and brings the one alone.

    Raises:
        FileNotFoundError: There is no checkpoint.
        ModelError: It is damaged.
    """
    tensors, meta = read_tensors(out_dir / CHECKPOINT)
    sealed = {**meta, FINISHED: state.fingerprints._asdict()}
    if sealed != meta:
        write_tensors(out_dir / CHECKPOINT, tensors, sealed)


def is_finished(out_dir: Path, expected: dict[str, object]) -> bool:
    """Return whether a folder has the sealed checkpoint of a run, given the run's `identity`."""
    try:
        meta = read_meta(out_dir / CHECKPOINT)
    except (FileNotFoundError, ModelError):
        return False
    return FINISHED in meta and _started_with(meta.get("training")) == expected
