"""Networks that were trained one by one, joined to one checkpoint, or rounded to 8 bits."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from magtiles_seg.dataset.splits import SPLIT_NAME
from magtiles_seg.errors import ConfigError
from magtiles_seg.model.card import JOINT
from magtiles_seg.model.checkpoint import (
    CHECKPOINT,
    FINISHED,
    STATE,
    load_checkpoint,
    read_meta,
    save_checkpoint,
    unfinished,
)
from magtiles_seg.model.ensemble import Ensemble, Member, Network, parts_of
from magtiles_seg.model.rounding import round_weights
from magtiles_seg.progress import note
from magtiles_seg.train.state import parts_known_to

_WEIGHT_BITS = "weight_bits"
_KEPT = ("protocol", "labels", "training_sha256", "validation_sha256")


def join(
    runs: Sequence[str | os.PathLike[str]],
    out_dir: str | os.PathLike[str],
    *,
    shares: Sequence[float],
    rounded: bool = False,
) -> Network:
    """Write trained networks as one checkpoint, which is evaluated and exported as any other.

    Args:
        runs: Folders that training wrote; the first one's network tells the class of a defect, and
            its split, where there is one beside it, becomes the ensemble's. One alone is no
            ensemble: it stays what it is, but for its weights being rounded.
        out_dir: Gets `model.safetensors` and `split.json`.
        shares: Each network's part of the defect logit; they are divided by their sum.
        rounded: Whether the weights are rounded to 8 bits, see `magtiles_seg.model.rounding`.

    Returns:
        What was written.

    Raises:
        FileNotFoundError, ModelError: A run has no checkpoint, or a damaged one.
        ConfigError: The shares do not fit, the labels differ, a member is an ensemble itself or is
            named twice, there is one alone that is not to be rounded, or the folder holds a run, or
            another split.
    """
    out_dir, folders = Path(out_dir), [Path(run) for run in runs]
    paths = [folder / CHECKPOINT for folder in folders]
    for number, path in enumerate(paths):
        if path.resolve() in [other.resolve() for other in paths[:number]]:
            raise ConfigError(f"{path.parent} is named twice: its networks would answer alike")
    if out_dir.resolve() in [folder.resolve() for folder in folders]:
        raise ConfigError(f"{out_dir} is read: give what is written a folder of its own")
    split = folders[0] / SPLIT_NAME
    _refuse_to_lose(out_dir, split)
    loaded = [_load_member(path) for path in paths]
    for said in (said for path in paths for said in unfinished(path)):
        note(said)
    network: Network
    if rounded and len(loaded) == 1:
        parts_of(shares, 1)
        network, meta = loaded[0]
    else:
        network = Ensemble([member for member, _ in loaded], shares)
        meta = _joint_meta(network, [meta for _, meta in loaded], parts_known_to(paths))
    if rounded:
        round_weights(network)
        meta = {**meta, "training": {**meta.get("training", {}), _WEIGHT_BITS: 8}}
    out_dir.mkdir(parents=True, exist_ok=True)
    _note_other_training(folders, [meta.get("training", {}) for _, meta in loaded])
    if split.is_file():
        shutil.copyfile(split, out_dir / SPLIT_NAME)
    save_checkpoint(out_dir / CHECKPOINT, network, meta)
    return network


def _joint_meta(
    ensemble: Ensemble, metas: Sequence[Mapping[str, Any]], ancestors: Sequence[str]
) -> dict[str, Any]:
    """Return what an ensemble's checkpoint says of itself, of those of its members."""
    said = [_said(meta) for meta in metas]
    training = {
        **{key: said[0][key] for key in _KEPT if key in said[0]},
        "architecture": ensemble.architecture,
        "shares": [round(share, 6) for share in ensemble.shares.tolist()],
        "members": said,
        "ancestors": ancestors,
    }
    return {"training": training, "git_revision": metas[0].get("git_revision", "")}


def _load_member(path: Path) -> tuple[Member, dict[str, Any]]:
    network, meta = load_checkpoint(path)
    if isinstance(network, Ensemble):
        raise ConfigError(f"{path} is an ensemble itself: name its members instead")
    return network, meta


def _said(meta: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a checkpoint says of its training, its data and its weights' calibration."""
    others = {key: meta[key] for key in ("calibration", FINISHED) if meta.get(key)}
    return {**meta.get("training", {}), **others}


def _note_other_training(folders: Sequence[Path], said: Sequence[Mapping[str, Any]]) -> None:
    """Say which members were trained on other pictures than the first, or by another protocol."""
    for folder, one in zip(folders, said, strict=True):
        if one.get("training_sha256") != said[0].get("training_sha256"):
            note(
                f"{folder} was trained on other pictures than {folders[0]}, and may know its test "
                "tiles: figures on that split are of no protocol"
            )
        if one.get("protocol") != said[0].get("protocol"):
            note(
                f"{folder} was trained by protocol {one.get('protocol')}, and {folders[0]} by "
                f"{said[0].get('protocol')}: a picture may not have the size that both know"
            )


def _refuse_to_lose(out_dir: Path, split: Path) -> None:
    """Check that a folder holds nothing but what `join` wrote earlier, and no other split.

    Raises:
        ModelError: Its model is damaged.
        ConfigError: It holds a run, or a split that is not the members'.
    """
    own, model = out_dir / SPLIT_NAME, out_dir / CHECKPOINT
    if (out_dir / STATE).exists() or (model.exists() and not _is_joined(read_meta(model))):
        raise ConfigError(f"{out_dir} holds a run: give what is written a folder of its own")
    if own.exists() and not (split.is_file() and split.read_bytes() == own.read_bytes()):
        raise ConfigError(f"{own} is not the split of {split.parent}: name another folder")


def _is_joined(meta: Mapping[str, Any]) -> bool:
    return JOINT in str(meta.get("architecture")) or _WEIGHT_BITS in meta.get("training", {})
