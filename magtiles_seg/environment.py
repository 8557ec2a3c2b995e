"""What is installed, and what the model in use says about itself: the content of `info`."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

_TOLD = ("auroc", "false_reject_at_95_recall", "iou", "macro_picture_dice")
"""The figures that are told of each bundled model."""

_RUNTIMES = ("onnxruntime", "onnxruntime-gpu", "openvino", "tensorrt", "tensorrt-rtx", "torch")


def describe(
    model: str | os.PathLike[str] | None = None, screen: Path | None = None
) -> dict[str, Any]:
    """Return versions, runtimes, their providers, and the model's card, as plain JSON values.

    Args:
        model: A model file; None is the bundled one.
        screen: What stands before it, whose card is shown as well; None: nothing.

    Raises:
        FileNotFoundError, ModelError: The model or the screen cannot be loaded.
    """
    import magtiles_seg
    from magtiles_seg.infer.backends.vendor import import_onnxruntime
    from magtiles_seg.infer.screen import ScreenedBackend
    from magtiles_seg.infer.segmenter import Segmenter
    from magtiles_seg.infer.selection import machine
    from magtiles_seg.model.bundled import BUNDLED_MODELS

    with Segmenter(model, screen=screen) as segmenter:
        spec, backend = segmenter.spec, segmenter.backend
    facts: dict[str, Any] = {
        "magtiles-seg": magtiles_seg.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "runtimes": _installed(_RUNTIMES),
        "providers": import_onnxruntime().get_available_providers(),
        "model": str(spec.path),
        "model_sha256": spec.sha256,
        "backend": f"{spec.name} ({spec.provider}), {spec.precision}, {spec.threads} threads",
        "selected by": spec.selection or "default; `magtiles-seg bench --select` finds the fastest",
        "machine": machine(),
        "card": json.loads(spec.card.to_json()),
        "bundled_models": {name: _described(name) for name in BUNDLED_MODELS},
    }
    if isinstance(backend, ScreenedBackend):
        facts["screen"] = str(screen)
        facts["screen_sha256"] = backend.screen.sha256
        facts["screen_card"] = json.loads(backend.screen.card.to_json())
    clash = onnxruntime_clash()
    return {"warning": clash, **facts} if clash else facts


def _described(name: str) -> dict[str, Any]:
    """Return what tells one bundled model from another: its size, and what its card says."""
    from magtiles_seg.infer.segmenter import Segmenter
    from magtiles_seg.model.bundled import BUNDLED_MODELS

    with Segmenter(name, backend="onnxruntime", threads=1) as segmenter:
        card = segmenter.spec.card
    measured = card.metrics[0] if card.metrics else {"protocol": None, "figures": {}}
    figures = {key: measured["figures"][key] for key in _TOLD if key in measured["figures"]}
    size = round(BUNDLED_MODELS[name].stat().st_size / 1e6, 1)
    return {"megabytes": size, "protocol": measured["protocol"], **figures}


def onnxruntime_clash() -> str | None:
    """Return what is wrong, and the fix, when wheels of onnxruntime overwrite each other.

    `onnxruntime` and `onnxruntime-gpu` install the same files; pip lets both stand, and which one
    then runs is chance.
    """
    found = sorted(_installed(("onnxruntime", "onnxruntime-gpu")))
    if len(found) < 2:
        return None
    return (
        f"{' and '.join(found)} are both installed and overwrite each other's files: "
        "pip uninstall -y onnxruntime onnxruntime-gpu, then install the one you want"
    )


def git_revision() -> str:
    """Return the commit that the working directory stands on; empty outside a repository."""
    command = ["git", "rev-parse", "--verify", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return done.stdout.strip()


def _installed(names: tuple[str, ...]) -> dict[str, str]:
    found = {}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
