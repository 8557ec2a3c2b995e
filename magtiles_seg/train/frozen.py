"""Training without epochs: a patch classifier that answers alone, by frozen features.

It learns from what labelled defects there are, and from defects that are drawn on sound pictures,
or pasted there. So sound pictures alone are enough, and a first model of a line without any known
defect comes of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from magtiles_seg.config import TrainParams
from magtiles_seg.dataset.augment import CopyPaste
from magtiles_seg.dataset.samples import Sample
from magtiles_seg.errors import ConfigError
from magtiles_seg.evaluate.protocols import get_protocol
from magtiles_seg.labels import FREE
from magtiles_seg.model.checkpoint import CHECKPOINT, save_checkpoint
from magtiles_seg.model.patch_network import PatchNetwork
from magtiles_seg.train.data import learnt_from, training_pictures
from magtiles_seg.train.devices import Devices
from magtiles_seg.train.patches import fit_alone
from magtiles_seg.train.state import Fingerprints, RunState, fingerprints, identity, seal_checkpoint
from magtiles_seg.train.validation import Validation, ValidationPart


def train_patches(
    training: Sequence[Sample],
    validation: Sequence[Sample],
    params: TrainParams,
    out_dir: Path,
    *,
    labels: tuple[str, ...],
    known: Fingerprints | None = None,
) -> tuple[Validation, RunState]:
    """Fit a `PatchNetwork` and write it to `out_dir/model.safetensors`, as a finished run.

    Args:
        training: As of `loop.train`, like all that follow.
        validation: Pictures that the checkpoint's figures are of.
        params: The run's parameters; those of batches and rates are of no matter.
        out_dir: Where the checkpoint is written.
        labels: Class names by index, background first.
        known: What `fingerprints` returns for the two parts.

    Returns:
        What the validation part gave, and the run's state, as after a single epoch.

    Raises:
        DataError: A picture is damaged, or a part is empty.
        ConfigError: A parameter asks for what there is not, or no class can be drawn.
    """
    _check(params)
    kept, protocol = learnt_from(training, validation), get_protocol(params.protocol)
    known = known or fingerprints(training, validation)
    pictures = training_pictures(kept, protocol, labels)
    copy_paste = CopyPaste(pictures, labels, draws_any=True)
    if not copy_paste.has_any:
        raise ConfigError(
            "no training picture has a defect, and of sound pictures alone the classes "
            f"{', '.join(labels[1:])} cannot be told apart: set data_load.labels to "
            "[background, defect]"
        )
    network = PatchNetwork(labels, pretrained=True)
    devices = Devices(replace(params, devices=1, precision="fp32"))
    network.to(devices.device)
    fit_alone(network, pictures, copy_paste, seed=params.seed)
    held_out = ValidationPart(validation, protocol, labels=labels, stride=network.stride)
    found = held_out.score(network, devices)
    state = RunState(
        identity(training, validation, params, labels),
        epoch=1,
        best_epoch=0,
        history=[found.figures],
        code_sha256=known.code_sha256,
        data_sha256=known.data_sha256,
    )
    meta = {"training": state.identity, "learnt_from": _counts(kept), "validation": found.figures}
    save_checkpoint(out_dir / CHECKPOINT, network, meta)
    seal_checkpoint(out_dir, state)
    return found, state


def _check(params: TrainParams) -> None:
    """Refuse what a patch classifier has no use for."""
    wrong = {
        "train.start": params.start is not None,
        "train.teacher": params.teacher is not None,
        "train.pretrained=false": not params.pretrained,
        "train.patch_share": params.patch_share not in (None, 1),
    }
    named = ", ".join(name for name, is_set in wrong.items() if is_set)
    if named:
        raise ConfigError(
            f"{params.architecture!r}, a classifier of patches by ImageNet features as they are, "
            f"takes no {named}: leave it out"
        )


def _counts(samples: Sequence[Sample]) -> dict[str, int]:
    sound = sum(sample.label == FREE for sample in samples)
    return {"sound_pictures": sound, "defective_pictures": len(samples) - sound}
