"""Ensembles: networks that were trained one by one, joined to one checkpoint."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from magtiles_seg.errors import ConfigError
from magtiles_seg.model.checkpoint import load_checkpoint, save_checkpoint
from magtiles_seg.model.ensemble import Ensemble
from magtiles_seg.model.rounding import round_weights
from magtiles_seg.train.state import CHECKPOINT, parts_known_to

_SPLIT = "split.json"


def join(
    runs: Sequence[str | os.PathLike[str]],
    out_dir: str | os.PathLike[str],
    *,
    shares: Sequence[float],
    rounded: bool = False,
) -> Ensemble:
    """Write trained networks as one checkpoint, which is evaluated and exported as any other.

    Args:
        runs: Folders that training wrote; the first one's network tells the class of a defect, and
            its split, where there is one beside it, becomes the ensemble's.
        out_dir: Gets `model.safetensors` and `split.json`.
        shares: Each network's part of the defect logit; they are divided by their sum.
        rounded: Whether the weights are rounded to 8 bits, see `magtiles_seg.model.rounding`.

    Returns:
        What was written.

    Raises:
        FileNotFoundError, ModelError: A run has no checkpoint, or a damaged one.
        ConfigError: The shares do not fit, the labels differ, a member is an ensemble itself, or
            the folder is one of the runs.
    """
    out_dir, folders = Path(out_dir), [Path(run) for run in runs]
    paths = [folder / CHECKPOINT for folder in folders]
    if out_dir.resolve() in [folder.resolve() for folder in folders]:
        raise ConfigError(f"{out_dir} holds a member: give the ensemble a folder of its own")
    members, metas = [], []
    for path in paths:
        network, meta = load_checkpoint(path)
        if isinstance(network, Ensemble):
            raise ConfigError(f"{path} is an ensemble itself: name its members instead")
        members.append(network)
        metas.append(meta)
    ensemble = Ensemble(members, shares)
    if rounded:
        round_weights(ensemble)
    said = [dict(meta.get("training", {})) for meta in metas]
    first = said[0]
    training: dict[str, Any] = {
        "architecture": ensemble.architecture,
        "shares": [round(share, 6) for share in ensemble.shares.tolist()],
        "members": said,
        "ancestors": parts_known_to(paths),
    }
    if rounded:
        training["weight_bits"] = 8
    for key in ("protocol", "labels", "training_sha256", "validation_sha256"):
        if key in first:
            training[key] = first[key]
    out_dir.mkdir(parents=True, exist_ok=True)
    if (folders[0] / _SPLIT).is_file():
        shutil.copyfile(folders[0] / _SPLIT, out_dir / _SPLIT)
    meta = {"training": training, "git_revision": metas[0].get("git_revision", "")}
    save_checkpoint(out_dir / CHECKPOINT, ensemble, meta)
    return ensemble
