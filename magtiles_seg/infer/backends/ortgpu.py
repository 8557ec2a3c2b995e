"""onnxruntime on an NVIDIA GPU: libraries found, providers set up, refusals explained."""

from __future__ import annotations

import ctypes
import io
import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from importlib import metadata
from pathlib import Path
from typing import Any

from magtiles_seg.errors import BackendUnavailableError, ConfigError
from magtiles_seg.image import MIN_SIDE_PX
from magtiles_seg.infer.backends.vendor import first_line, import_vendor

Shape = tuple[int, int, int]
Profile = tuple[Shape, Shape, Shape]
"""Least, tuned and greatest (N, H, W) of the pictures."""

PROVIDERS = {"cuda": "CUDAExecutionProvider", "tensorrt": "TensorrtExecutionProvider"}
GPU_FIX = "pip uninstall -y onnxruntime && pip install 'onnxruntime-gpu[cuda,cudnn]'"

_FATAL_ONLY, _DEFAULT_SEVERITY = 4, 2
_log = logging.getLogger(__name__)

CUDA_OPTIONS = {
    # The default tries every algorithm at the first picture of each new size, and stops the line.
    "cudnn_conv_algo_search": "HEURISTIC",
    # The fast algorithms of convolution need memory to work in.
    "cudnn_conv_use_max_workspace": "1",
    # fp32 is what passed parity. TF32, the default, rounds each factor to 10 bits.
    "use_tf32": "0",
    # The default doubles its memory, and what another size once took is never given back.
    "arena_extend_strategy": "kSameAsRequested",
}
"""What onnxruntime's CUDA provider is told, and why."""


@contextmanager
def quiet(onnxruntime: Any) -> Iterator[None]:  # noqa: ANN401  (a module without type information)
    """Keep onnxruntime from printing what fails: it is raised as an exception.

    A provider that does not start is told to the process's log, not to the session's.
    """
    onnxruntime.set_default_logger_severity(_FATAL_ONLY)
    try:
        yield
    finally:
        onnxruntime.set_default_logger_severity(_DEFAULT_SEVERITY)


def preload(onnxruntime: Any, kind: str) -> None:  # noqa: ANN401
    """Load the libraries that a provider needs, where pip has put them: the loader looks elsewhere.

    Args:
        onnxruntime: The module; before version 1.21 it cannot, and the system's libraries serve.
        kind: `"cuda"` or `"tensorrt"`.
    """
    load = getattr(onnxruntime, "preload_dlls", None)
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        if load is not None:
            load()  # It prints what is missing: `why_not` finds that out if the provider fails.
        if kind == "tensorrt":
            with suppress(BackendUnavailableError):
                import_vendor("tensorrt", "")  # Loads its libraries, as the system's would be.


def providers(
    kind: str, number: int, *, model_sha256: str, profile: Profile | None
) -> list[str | tuple[str, dict[str, Any]]]:
    """Return the execution providers for a GPU, and behind them those for what it cannot run.

    Args:
        kind: `"cuda"` or `"tensorrt"`.
        number: Of the GPU.
        model_sha256: Under which TensorRT's engines are kept.
        profile: Of TensorRT; None: what it meets, and a build at each size beyond.
    """
    found: list[str | tuple[str, dict[str, Any]]] = [
        (PROVIDERS["cuda"], {"device_id": number, **CUDA_OPTIONS}),
        "CPUExecutionProvider",
    ]
    if kind == "tensorrt":
        options = {"device_id": number, **_tensorrt_options(model_sha256, profile)}
        found.insert(0, (PROVIDERS["tensorrt"], options))
    return found


def check_profile(profile: Any, kind: str) -> Profile | None:  # noqa: ANN401  (the caller's)
    """Return an optimisation profile as tuples.

    Raises:
        ConfigError: It is not least <= tuned <= greatest (N, H, W), or not for this device.
    """
    if profile is None:
        return None
    if kind != "tensorrt":
        raise ConfigError(
            f"a profile is for device='tensorrt', got device={kind!r}: leave one of them out"
        )
    try:
        least, tuned, greatest = (tuple(shape) for shape in profile)
        ordered = all(
            type(side) is int for shape in (least, tuned, greatest) for side in shape
        ) and all(a <= b <= c for a, b, c in zip(least, tuned, greatest, strict=True))
    except (TypeError, ValueError):
        ordered = False
    if not ordered or len(least) != 3 or least[0] < 1 or min(least[1:]) < MIN_SIDE_PX:
        raise ConfigError(
            f"profile is {profile!r}; expected least, tuned and greatest (N, H, W) of the pictures,"
            f" N >= 1, sides of at least {MIN_SIDE_PX}, such as "
            "((1, 32, 32), (1, 256, 2048), (4, 512, 2048)); a recipe's `shapes` are one"
        )
    return least, tuned, greatest


def why_not(onnxruntime: Any, kind: str, error: Exception | None = None) -> str:  # noqa: ANN401
    """Return why a provider did not start, and what mends it.

    Args:
        onnxruntime: The module.
        kind: `"cuda"` or `"tensorrt"`.
        error: What onnxruntime said, which of a library that is missing says nothing.
    """
    reason = _missing(Path(onnxruntime.__file__).parent / "capi", kind)
    if not reason and error is not None:
        reason = first_line(error).rpartition("): ")[2] or first_line(error)
    return f"{reason or 'no reason given'}; {_fix(reason)}, or use device='cpu'"


def _missing(folder: Path, kind: str) -> str:
    """Return what the loader says of a provider's library; empty: it loads, or is not a file."""
    for name in ("shared", kind):
        for path in sorted(folder.glob(f"*onnxruntime_providers_{name}.*")):
            try:
                ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
            except OSError as error:
                return first_line(error)
    return ""


def _fix(reason: str) -> str:
    if "nvinfer" in reason or "nvonnxparser" in reason:
        version = "".join(filter(str.isdecimal, reason.partition(".so")[2].partition(":")[0]))
        wanted = f"tensorrt-cu13=={version}.*" if version else "tensorrt"
        return f"pip install '{wanted}'"
    if "libcuda.so" in reason or "nvcuda" in reason:
        return "install the NVIDIA driver, and see that `nvidia-smi` lists the GPU"
    if ".so" in reason or ".dll" in reason:
        return "pip install 'onnxruntime-gpu[cuda,cudnn]', which brings CUDA and cuDNN"
    return "check `nvidia-smi` and whether the driver is new enough for that CUDA"


def _tensorrt_options(model_sha256: str, profile: Profile | None) -> dict[str, Any]:
    options: dict[str, Any] = {}
    folder = _cache_folder(model_sha256)
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        _log.warning("TensorRT builds at every start: %s cannot be made: %s", folder, error)
    else:
        options = {
            "trt_engine_cache_enable": True,
            "trt_engine_cache_path": str(folder),
            "trt_timing_cache_enable": True,
            "trt_timing_cache_path": str(folder),
        }
    if profile is not None:
        for name, shape in zip(("min", "opt", "max"), profile, strict=True):
            options[f"trt_profile_{name}_shapes"] = f"image:{_words(shape)}"
    return options


def _words(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))


def _cache_folder(model_sha256: str) -> Path:
    """Return where engines of a model are kept, apart by what they would not survive."""
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")  # noqa: PTH111
    versions = []
    for name in ("onnxruntime-gpu", "tensorrt"):
        with suppress(metadata.PackageNotFoundError):
            versions.append(f"{name}-{metadata.version(name)}")
    return Path(home) / "magtiles-seg" / "_".join(versions or ["tensorrt"]) / model_sha256[:16]
