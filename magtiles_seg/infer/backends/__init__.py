"""Runtimes under a model: each a `Backend`, chosen by the model file's suffix or by name."""

from __future__ import annotations

from pathlib import Path

from magtiles_seg.errors import ConfigError, ModelError
from magtiles_seg.infer.backends.base import Backend, BackendSpec

__all__ = ["BACKENDS", "Backend", "BackendSpec", "open_backend"]

BACKENDS: dict[str, str] = {"eager": ".safetensors", "onnxruntime": ".onnx"}
"""Names of the backends, and the suffix of the model files that each one runs."""


def open_backend(
    path: Path, *, device: str = "cpu", backend: str | None = None, threads: int | None = None
) -> Backend:
    """Load a model.

    Args:
        path: A `.onnx` file or a `.safetensors` checkpoint.
        device: `"cpu"`, `"cuda"` or `"cuda:N"`.
        backend: A name from `BACKENDS`; None chooses by the file's suffix.
        threads: Of one inference on a CPU; None: all physical cores that the process may use.

    Raises:
        FileNotFoundError: There is no such file.
        ModelError: The file is damaged, or not a model of this package.
        ConfigError: The device, the backend or the number of threads has no sense.
        BackendUnavailableError: The runtime, or its support for the device, is not installed.
    """
    suffix = path.suffix.lower()
    if backend is None:
        backend = next((name for name, wanted in BACKENDS.items() if wanted == suffix), None)
        if backend is None:
            raise ModelError(
                f"{path} is not a model file: "
                f"expected a name ending in {' or '.join(BACKENDS.values())}"
            )
    if backend not in BACKENDS:
        raise ConfigError(f"unknown backend {backend!r}: expected one of {', '.join(BACKENDS)}")
    if suffix != BACKENDS[backend]:
        raise ConfigError(f"backend {backend!r} runs {BACKENDS[backend]} files, got {path}")
    if backend == "onnxruntime":
        from magtiles_seg.infer.backends.ort import OrtBackend

        return OrtBackend(path, device=device, threads=threads)
    from magtiles_seg.infer.backends.eager import EagerBackend

    return EagerBackend(path, device=device, threads=threads)
