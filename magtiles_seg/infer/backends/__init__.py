"""Runtimes under a model: each a `Backend`, chosen by the model file's suffix or by name."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from magtiles_seg.errors import ConfigError, ModelError
from magtiles_seg.infer.backends.base import Backend, BackendSpec, default_device
from magtiles_seg.model.bundled import BUNDLED_MODELS

if TYPE_CHECKING:
    from magtiles_seg.infer.backends.ortgpu import Profile

__all__ = [
    "BACKENDS",
    "Backend",
    "BackendSpec",
    "choose_backend",
    "default_device",
    "open_backend",
]

BACKENDS: dict[str, str] = {
    "eager": ".safetensors",
    "onnxruntime": ".onnx",
    "openvino": ".onnx",
    "tensorrt": ".engine",
}
"""Names of the backends, and the suffix of the model files that each one runs; where two run the
same files, the first is the one that a suffix alone chooses."""


def open_backend(
    path: Path,
    *,
    device: str | None = None,
    backend: str | None = None,
    threads: int | None = None,
    precision: str | None = None,
    profile: Profile | None = None,
) -> Backend:
    """Load a model.

    Args:
        path: An `.onnx` file, an `.engine` or a `.safetensors` checkpoint.
        device: `"cpu"`, `"cuda"` or `"cuda:N"`; onnxruntime takes `"tensorrt"` and `"tensorrt:N"`
            too, which is its TensorRT execution provider; None: the CPU, for an engine `"cuda"`.
        backend: A name from `BACKENDS`; None chooses by the file's suffix.
        threads: Of one inference on a CPU; None: all physical cores that the process may use.
        precision: `"fp32"` or `"bf16"`, of OpenVINO's arithmetic; None: fp32, and for the others
            as the file has it.
        profile: Of device `"tensorrt"`: least, tuned and greatest (N, H, W) of the pictures, as a
            recipe's `shapes`; None: as they come, with a build at each size beyond.

    Raises:
        FileNotFoundError: There is no such file.
        ModelError: The file is damaged, or not a model of this package.
        StaleEngineError: The engine was built for another machine.
        ConfigError: The device, the backend, the precision or the number of threads is invalid.
        BackendUnavailableError: The runtime, or its support for the device, is not installed.
    """
    backend = choose_backend(path, backend)
    if precision is not None and backend != "openvino":
        raise ConfigError(
            f"precision={precision!r} is for backend 'openvino'; {backend!r} computes as the model "
            "file has it: export the model in that precision"
        )
    if profile is not None and backend != "onnxruntime":
        raise ConfigError(
            f"a profile is for backend 'onnxruntime' and device='tensorrt', got {backend!r}; an "
            "engine's is that of the recipe it was built by"
        )
    device = device or default_device(path)
    if backend == "tensorrt":
        from magtiles_seg.infer.backends.trt import TrtBackend

        return TrtBackend(path, device=device)
    if backend == "onnxruntime":
        from magtiles_seg.infer.backends.ort import OrtBackend

        return OrtBackend(path, device=device, threads=threads, profile=profile)
    if backend == "openvino":
        from magtiles_seg.infer.backends.openvino import OpenVinoBackend

        return OpenVinoBackend(path, device=device, threads=threads, precision=precision)
    from magtiles_seg.infer.backends.eager import EagerBackend

    return EagerBackend(path, device=device, threads=threads)


def choose_backend(path: Path, backend: str | None = None) -> str:
    """Return the name of the backend that is to run a file.

    Args:
        path: The model file.
        backend: A name from `BACKENDS`; None chooses by the file's suffix.

    Raises:
        ModelError: It is no model file.
        ConfigError: There is no such backend, or it runs other files.
    """
    suffix = path.suffix.lower()
    if backend is None:
        for name, wanted in BACKENDS.items():
            if wanted == suffix:
                return name
        raise ModelError(
            f"{path} is not a model file: expected a name ending in "
            f"{' or '.join(dict.fromkeys(BACKENDS.values()))}, or a bundled model: "
            f"{', '.join(BUNDLED_MODELS) or 'none'}"
        )
    if backend not in BACKENDS:
        raise ConfigError(f"unknown backend {backend!r}: expected one of {', '.join(BACKENDS)}")
    if suffix != BACKENDS[backend]:
        raise ConfigError(f"backend {backend!r} runs {BACKENDS[backend]} files, got {path}")
    return backend
