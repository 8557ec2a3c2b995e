"""Rebuild: an engine that does not fit its machine, made again from the ONNX file beside it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from magtiles_seg.errors import ConfigError, ModelError
from magtiles_seg.export.engine import BuiltEngine, Recipe, build_engine
from magtiles_seg.export.parity import Tolerance, check, compare, fit, frozen_pictures
from magtiles_seg.files import sha256_of, staged
from magtiles_seg.infer.backends.base import parse_device
from magtiles_seg.infer.backends.ort import OrtBackend
from magtiles_seg.infer.backends.trt import TrtBackend, flavour_of
from magtiles_seg.infer.backends.vendor import Cuda
from magtiles_seg.infer.manifest import Manifest, manifest_path


def rebuild_engine(
    path: Path,
    device: str | None = None,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Build an engine again for this machine's GPU, and put it in place if it passes parity.

    It is compared with its own ONNX file on the CPU. If anything fails, the old files stay.

    Args:
        path: The `.engine` file to replace, its ONNX file in the same folder.
        device: `"cuda"` or `"cuda:N"`; None: the first GPU.
        progress: Called with (steps done, steps known so far).

    Raises:
        ModelError: The manifest or the ONNX file is not there, or the graph cannot be built.
        ParityError: The new engine answers differently.
        BackendUnavailableError: The library or the GPU is not there.
    """
    manifest = Manifest.read(path)
    flavour = flavour_of(manifest, path)
    _, number = parse_device(device or "cuda")
    source, data = _find_onnx(path, manifest.onnx_sha256)
    capability = Cuda(number).gpu()["compute_capability"]
    try:
        recipe = replace(Recipe(**manifest.recipe), compute_capability=capability)
    except (ConfigError, TypeError) as error:
        raise ModelError(
            f"the manifest of {path} holds no recipe to build by: {error}; export the model again"
        ) from error
    built = build_engine(data, recipe, flavour=flavour, device=number, progress=progress)
    fresh = _manifest(manifest, built)
    with staged(path, durable=True) as part:
        part.write_bytes(built.plan)
        fresh.write(part)  # an engine is loaded by its manifest
        try:
            figures = _prove(source, part, fresh, number)
        finally:
            manifest_path(part).unlink()
    replace(fresh, parity={**fresh.parity, "artefact": figures}).write(path)


def _find_onnx(path: Path, sha256: str) -> tuple[Path, bytes]:
    """Return the ONNX file beside an engine that it was made from."""
    found = sorted(path.parent.glob("*.onnx"))
    for candidate in found:
        data = candidate.read_bytes()
        if sha256_of(data) == sha256:
            return candidate, data
    names = ", ".join(candidate.name for candidate in found) or "no .onnx file"
    raise ModelError(
        f"{path} cannot be built again: expected its ONNX file (SHA-256 {sha256[:12]}…) in "
        f"{path.parent}, got {names}; copy that file there, or export the model again"
    )


def _manifest(old: Manifest, built: BuiltEngine) -> Manifest:
    return replace(
        old,
        sha256=sha256_of(built.plan),
        environment=built.facts["environment"],
        profile=built.facts["profile"],
        recipe=built.facts["recipe"],
    )


def _prove(source: Path, part: Path, manifest: Manifest, device: int) -> dict[str, Any]:
    """Compare an engine with its ONNX file, and return the figures."""
    (_, *least), _, (_, *greatest) = Recipe(**manifest.recipe).shapes
    reference = OrtBackend(source)
    candidate = TrtBackend(part, device=f"cuda:{device}")
    try:
        pictures = fit(frozen_pictures(), least, greatest)
        report = compare(reference, candidate, pictures)
    finally:
        candidate.close()
        reference.close()
    check(report, Tolerance(**manifest.parity.get("tolerance", {})))
    return {"ran_on": candidate.spec.provider, **report.to_dict()}
