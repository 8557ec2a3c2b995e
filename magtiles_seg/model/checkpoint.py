"""Checkpoints: one safetensors file with the weights, and JSON in its header. No pickle."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from magtiles_seg.errors import ConfigError, ModelError
from magtiles_seg.files import lfs_pointer, write
from magtiles_seg.jsontext import parse_json
from magtiles_seg.model.card import JOINT
from magtiles_seg.model.ensemble import Ensemble, Member, Network, members_of
from magtiles_seg.model.network import SegmentationNetwork, build_network
from magtiles_seg.model.patch_network import PATCHES, PatchNetwork

CHECKPOINT, STATE = "model.safetensors", "state.safetensors"
"""What a run's best weights, and what it goes on from, are called in its folder."""

FINISHED = "finished"
"""What the header of a checkpoint has once its run is done."""

_META_KEY = "magtiles_seg"
_PATCH_SHARE = "patch_share"
_MOST_LABELS = 255
_RENAMED = {"kind_head.": "class_head."}
"""Former to present name of a part of the network; files of the former are read."""


def present_name(tensor: str) -> str:
    """Return the present name of a network's tensor, which a file may hold by a former one."""
    for former, now in _RENAMED.items():
        tensor = tensor.replace(former, now)
    return tensor


def write_tensors(path: Path, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
    """Write tensors and a JSON header to a safetensors file, whole or not at all."""
    data = save(
        {name: tensor.contiguous() for name, tensor in tensors.items()},
        {_META_KEY: json.dumps(meta)},
    )
    write(path, data, durable=True)


_DAMAGED = "take a whole copy of it, or train again (`magtiles-seg train --restart`)"


def read_meta(path: Path) -> dict[str, Any]:
    """Return the JSON header of a file that `write_tensors` wrote, without reading its tensors.

    Raises:
        FileNotFoundError, ModelError: As `read_tensors`.
    """
    return _read(path, tensors=False)[1]


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors and the JSON header of a file that `write_tensors` wrote.

    Raises:
        FileNotFoundError: There is no such file.
        ModelError: The file is damaged, or is not one of ours.
    """
    return _read(path, tensors=True)


def _read(path: Path, *, tensors: bool) -> tuple[dict[str, Tensor], dict[str, Any]]:
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}")
    try:
        with path.open("rb") as head:
            if said := lfs_pointer(head.read(64), "checkpoint"):
                raise ModelError(f"{path} {said}")
        with safe_open(path, framework="pt") as file:
            header = (file.metadata() or {}).get(_META_KEY)
            names = file.keys() if tensors else ()
            read = {present_name(name): file.get_tensor(name) for name in names}
    except (SafetensorError, OSError, ValueError) as error:
        raise ModelError(f"{path} is no readable safetensors file ({error}): {_DAMAGED}") from error
    if header is None:
        raise ModelError(
            f"{path} has no {_META_KEY!r} header: expected a checkpoint of magtiles-seg train"
        )
    try:
        meta = parse_json(header)
    except ValueError as error:
        raise ModelError(f"{path} has a damaged header ({error}): {_DAMAGED}") from error
    if not isinstance(meta, dict):
        raise ModelError(f"{path} has a damaged header (no mapping): {_DAMAGED}")
    return read, meta


def unfinished(checkpoint: Path) -> tuple[str, ...]:
    """Return a sentence where a checkpoint is of a run that still trains, or was stopped.

    Args:
        checkpoint: In the run's folder: the state that the run goes on from tells, beside it.

    Raises:
        FileNotFoundError, ModelError: As `read_tensors`.
    """
    if not (checkpoint.parent / STATE).is_file() or FINISHED in read_meta(checkpoint):
        return ()
    return (
        f"{checkpoint} is of a training that has not ended: start it again with the same arguments "
        "(`magtiles-seg train`), and use what it then leaves.",
    )


def save_checkpoint(
    path: str | os.PathLike[str], network: Network, meta: Mapping[str, Any]
) -> None:
    """Write a network's weights, architecture and labels, and `meta` (JSON values)."""
    identity = {"architecture": network.architecture, "labels": list(network.labels)}
    write_tensors(Path(path), network.state_dict(), {**meta, **identity})


def load_checkpoint(path: str | os.PathLike[str]) -> tuple[Network, dict[str, Any]]:
    """Return a checkpoint's network, in evaluation mode, and its metadata.

    Raises:
        FileNotFoundError: There is no such file.
        ModelError: The file is damaged, or does not hold one of our networks.
    """
    tensors, meta = read_tensors(Path(path))
    try:
        network = network_of(_text(meta["architecture"]), _labels(meta["labels"]), tensors)
        _refuse_others(tensors, network.state_dict())
        network.load_state_dict(tensors)
    except (KeyError, ValueError, RuntimeError) as error:
        raise ModelError(
            f"{path} does not hold a network of this version ({error}): train or export it again"
        ) from error
    return network.eval(), meta


def member_tensors(tensors: Mapping[str, Tensor], index: int) -> dict[str, Tensor]:
    """Return the tensors of one member of an ensemble, by the names that it has alone."""
    prefix = f"members.{index}."
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }


def _refuse_others(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Check names and shapes of a file's weights: PyTorch's own message names hundreds.

    Raises:
        ValueError: Some are missing, are another network's, or have another shape.
    """
    shapes, wanted = ({k: v.shape for k, v in part.items()} for part in (tensors, expected))
    others = sorted(name for name in shapes | wanted if shapes.get(name) != wanted.get(name))
    if others:
        raise ValueError(
            f"{len(others)} of {len(wanted)} weights are another network's, such as {others[0]!r}"
        )


def network_of(
    architecture: str, labels: tuple[str, ...], tensors: Mapping[str, Tensor] | None = None
) -> Network:
    """Return a network of some architecture, an ensemble's or a patch classifier's among them.

    Args:
        architecture: As a card or a checkpoint has it.
        labels: Class names by index, background first.
        tensors: Of a checkpoint, which tell whether there is a second opinion; None: without one.

    Raises:
        ConfigError: The architecture is unknown.
    """
    tensors = tensors or {}
    names = architecture.split(JOINT)
    if len(names) == 1:
        return _empty_member(architecture, labels, tensors)
    parts = [member_tensors(tensors, index) for index in range(len(names))]
    members = [_empty_member(name, labels, part) for name, part in zip(names, parts, strict=True)]
    return Ensemble(members, [1.0] * len(members))


def _empty_member(
    architecture: str, labels: tuple[str, ...], tensors: Mapping[str, Tensor]
) -> Member:
    if architecture == PATCHES:
        return PatchNetwork(labels)
    network = build_network(architecture, labels=labels)
    if _PATCH_SHARE in tensors:
        network.add_patches()
    return network


def _labels(values: object) -> tuple[str, ...]:
    if not isinstance(values, list) or not 2 <= len(values) <= _MOST_LABELS:
        raise ValueError(f"labels must be a list of 2 to {_MOST_LABELS} names")
    return tuple(map(_text, values))


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"expected a text, got {type(value).__name__}")
    return value


def _heads(member: Member) -> list[nn.Conv2d]:
    """Return the last layers of a network's defect logit, of which it is a mean."""
    heads = [member.defect_head] if isinstance(member, SegmentationNetwork) else []
    return heads if member.patches is None else [*heads, member.patches.answer]


def calibrate_checkpoint(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    scale: float,
    bias: float,
) -> None:
    """Write a checkpoint whose defect logit is `scale * logit + bias` of another's.

    What is exported from it, in any precision and for any runtime, is calibrated.

    Args:
        source: A checkpoint without a calibration.
        target: Where to write.
        scale: Above 0.
        bias: Added to the scaled logit.

    Raises:
        FileNotFoundError: There is no such checkpoint.
        ModelError: It is damaged, or is calibrated already.
        ConfigError: The scale is not above 0, or a number is not finite.
    """
    if not 0 < scale < math.inf or not math.isfinite(bias):
        raise ConfigError(
            f"the calibration is scale {scale!r}, bias {bias!r}; expected finite numbers, and a "
            "scale above 0"
        )
    network, meta = load_checkpoint(source)
    if meta.get("calibration"):
        raise ModelError(
            f"{source} is calibrated already, by {meta['calibration']}: "
            "calibrate the checkpoint that training wrote"
        )
    with torch.no_grad():
        for head in (head for member in members_of(network) for head in _heads(member)):
            head.weight.mul_(scale)
            if head.bias is not None:
                head.bias.mul_(scale).add_(bias)
    save_checkpoint(target, network, {**meta, "calibration": {"scale": scale, "bias": bias}})
