"""Engines on TensorRT or TensorRT-RTX: what `magtiles-seg export --to tensorrt` or `rtx` built.

This module and `trt_runner` were never run on a GPU. Tests run them against a stand-in whose names
are those of TensorRT 10.16, TensorRT 11.4 and TensorRT-RTX 1.7, and a CUDA runtime that counts.
"""

from __future__ import annotations

import hashlib
import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from magtiles_seg.errors import ConfigError, InferenceError, ModelError
from magtiles_seg.infer.backends.base import (
    BackendSpec,
    check_images,
    parse_device,
    read_model,
)
from magtiles_seg.infer.backends.cuda import Cuda
from magtiles_seg.infer.backends.held import Held, gpu_after_fork
from magtiles_seg.infer.backends.trt_runner import Runner, Shape
from magtiles_seg.infer.backends.vendor import (
    FLAVOURS,
    import_tensorrt,
    runtime_name,
    version_numbers,
)
from magtiles_seg.infer.manifest import Manifest, local_environment, mismatches

_log = logging.getLogger(__name__)
_AXES = ("in one run", "px high", "px wide")
_KEYS = ("batch", "height", "width")


class TrtBackend:
    """One engine on one GPU. Calls from several threads run one after the other."""

    def __init__(
        self,
        path: Path,
        *,
        device: str = "cuda",
        rebuild: bool = False,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        """Load an engine.

        Args:
            path: An `.engine` file, its manifest beside it.
            device: `"cuda"` or `"cuda:N"`.
            rebuild: Whether an engine that does not fit this machine is built again from the ONNX
                file beside it, which is logged as a warning; otherwise it is an error.
            progress: Of a rebuild: called with (steps done, steps known so far).

        Raises:
            FileNotFoundError: There is no such file.
            ModelError: There is no manifest, the engine does not fit this machine, or the library
                refuses it.
            ParityError: The engine that was built again answers differently from its ONNX file.
            ConfigError: The device is no GPU.
            BackendUnavailableError: The library is not installed, or there is no such GPU.
        """
        kind, number = parse_device(device)
        if kind != "cuda":
            raise ConfigError(
                f"{path} runs on a GPU, got device={device!r}: leave the device out, or use the "
                ".onnx file"
            )
        plan = read_model(path)
        manifest = Manifest.read(path)
        flavour = _flavour(manifest, path)
        library = import_tensorrt(flavour)
        cuda = Cuda(number)
        reasons = _misfits(manifest, environment(library, flavour, cuda), plan)
        if reasons:
            if not rebuild:
                raise ModelError(
                    "\n  - ".join([f"{path} was not built for this machine:", *reasons])
                    + "\nbuild it here with `magtiles-seg export`, or load it with rebuild=True"
                )
            from magtiles_seg.export.rebuild import rebuild_engine

            _log.warning("building %s again: %s", path, "; ".join(reasons))
            rebuild_engine(path, manifest, flavour=flavour, device=number, progress=progress)
            plan, manifest = read_model(path), Manifest.read(path)
        self._lock = threading.Lock()
        self._cuda = cuda
        trusted = bool(manifest.recipe.get("version_compatible"))
        self._runner: Held[Runner] = Held(
            lambda: Runner(library, cuda, plan, trusted=trusted), str(path), again=gpu_after_fork
        )
        runner = self._runner.get()
        self._shapes = (runner.least, runner.greatest)
        self._spec = BackendSpec(
            name="tensorrt",
            device=f"cuda:{number}",
            provider=f"{runtime_name(flavour)} {library.__version__}",
            threads=1,
            path=path,
            sha256=hashlib.sha256(plan).hexdigest(),
            card=manifest.card,
        )

    @property
    def spec(self) -> BackendSpec:
        """What runs, and on what."""
        return self._spec

    def infer(
        self, images: npt.NDArray[np.uint8]
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.uint8]]:
        """Return probability (N, H, W) float32 and classes (N, H, W) uint8 of (N, H, W) uint8.

        A batch greater than the engine takes is run in parts.

        Raises:
            InferenceError: The pictures do not fit the engine, the backend is closed, or the
                library failed.
        """
        check_images(images)
        runner = self._runner.get()
        least, greatest = self._shapes
        step = greatest[0]
        for count in {min(step, len(images)), (len(images) - 1) % step + 1}:
            _check_shape((count, *images.shape[1:]), least, greatest)
        probability = np.empty(images.shape, np.float32)
        classes = np.empty(images.shape, np.uint8)
        with self._lock:
            self._runner.get()  # it may have been closed while this call waited
            self._cuda.enter()
            for start in range(0, len(images), step):
                part = slice(start, start + step)
                runner.run(images[part], probability[part], classes[part])
        return probability, classes

    def close(self) -> None:
        """Free the engine once the call in progress has ended."""
        runner = self._runner.close()
        if runner is not None:
            with self._lock:
                self._cuda.enter()
                runner.close()


def environment(library: Any, flavour: str, cuda: Cuda) -> dict[str, str | list[str]]:  # noqa: ANN401
    """Return this machine's facts by the names of a manifest."""
    gpu = cuda.gpu()
    return {
        **local_environment(runtime_name(flavour), library.__version__),
        "gpu": gpu.name,
        "compute_capability": gpu.compute_capability,
        "driver": gpu.driver,
        "cuda": gpu.cuda,
    }


def _flavour(manifest: Manifest, path: Path) -> str:
    runtime = manifest.environment.get("runtime")
    for flavour in FLAVOURS:
        if runtime == runtime_name(flavour):
            return flavour
    raise ModelError(
        f"the manifest of {path} says runtime {runtime!r}, expected "
        f"{' or '.join(map(runtime_name, FLAVOURS))}: export the model again"
    )


def _misfits(manifest: Manifest, here: dict[str, str | list[str]], plan: bytes) -> tuple[str, ...]:
    """Return in what this machine or the file differs from the manifest, where it matters."""
    built, recipe = manifest.environment, manifest.recipe
    here = {**here, "sha256": hashlib.sha256(plan).hexdigest()}
    allowed: list[str] = []
    if recipe.get("version_compatible") and not _older(here, built):
        allowed = ["runtime_version", "driver", "cuda"]
    level = recipe.get("hardware_compatible")
    if level == "same_compute_capability":
        allowed.append("gpu")
    elif level == "ampere_plus" and int(str(here["compute_capability"])[2:]) >= 80:
        allowed += ["gpu", "compute_capability"]
    return mismatches(manifest, {**here, **{key: built[key] for key in allowed if key in built}})


def _older(here: dict[str, str | list[str]], built: Any) -> bool:  # noqa: ANN401
    """Return whether this machine's library is older than the one that built: never compatible."""
    versions = [str(facts.get("runtime_version", "0")) for facts in (here, built)]
    return version_numbers(versions[0]) < version_numbers(versions[1])


def _check_shape(shape: Shape, least: Shape, greatest: Shape) -> None:
    for axis, size in enumerate(shape):
        low, high = least[axis], greatest[axis]
        if not low <= size <= high:
            key, bound = ("min", size) if size < low else ("max", size)
            name = f"{_KEYS[axis]}_{key}" + ("_px" if axis else "")
            raise InferenceError(
                f"the engine takes pictures {low} to {high} {_AXES[axis]}, got {size}: build one "
                f"by a recipe with {name}: {bound}, or use the .onnx file"
            )
