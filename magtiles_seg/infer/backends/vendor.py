"""Vendors' libraries behind one door: TensorRT and TensorRT-RTX, and NVIDIA's CUDA runtime."""

from __future__ import annotations

import ctypes
import os
import warnings
from collections.abc import Callable
from importlib import import_module
from typing import Any

import numpy as np
import numpy.typing as npt

from magtiles_seg.errors import BackendUnavailableError, ConfigError, InferenceError

_MODULES = {"tensorrt": "tensorrt", "rtx": "tensorrt_rtx"}
_OLDEST = (10, 12)  # Before it, a strongly typed network is a lesser way of building.

FLAVOURS = tuple(_MODULES)
"""`"tensorrt"`: for data centres and Jetson, builds on the device. `"rtx"`: for workstation cards,
builds anywhere and finishes on the device."""


def import_vendor(module: str, fix: str) -> Any:  # noqa: ANN401  (a module without type information)
    """Return a vendor's module.

    Args:
        module: Its name.
        fix: The command that installs it.

    Raises:
        BackendUnavailableError: It is not installed, or a library that it needs is missing or does
            not fit: vendors' modules answer that with errors of many types while they load.
    """
    try:
        with warnings.catch_warnings():  # SWIG modules warn while loading; as errors that aborts
            warnings.simplefilter("ignore")
            return import_module(module)
    except ModuleNotFoundError as error:
        raise BackendUnavailableError(f"{module} is not installed ({error}): {fix}") from error
    except Exception as error:
        raise BackendUnavailableError(
            f"{module} cannot be loaded ({type(error).__name__}: {first_line(error)}): check the "
            f"driver and the libraries that it needs, or install it anew: {fix}"
        ) from error


def import_onnxruntime() -> Any:  # noqa: ANN401
    """Return onnxruntime, with its telemetry off unless `ORT_DISABLE_TELEMETRY` says otherwise.

    From 1.31 on it reports to its maker from a thread that starts with the import. Nobody asked
    for that, and a forked child that ends normally waits for the thread for good.

    Raises:
        BackendUnavailableError: It is not installed, or cannot be loaded.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    return import_vendor("onnxruntime", "pip install onnxruntime")


def import_tensorrt(flavour: str) -> Any:  # noqa: ANN401  (a module without type information)
    """Return the module of a flavour.

    Raises:
        ConfigError: There is no such flavour.
        BackendUnavailableError: It is not installed, cannot be loaded, or is too old.
    """
    if flavour not in _MODULES:
        raise ConfigError(f"unknown flavour {flavour!r}: expected one of {', '.join(FLAVOURS)}")
    fix = f"pip install 'magtiles-seg[{flavour}]'"
    library = import_vendor(_MODULES[flavour], fix)
    version = str(getattr(library, "__version__", "unknown"))
    if flavour == "tensorrt" and version_numbers(version) < _OLDEST:
        raise BackendUnavailableError(
            f"TensorRT {version} is too old, expected 10.12 or newer: {fix}"
        )
    return library


def version_numbers(version: str) -> tuple[int, ...]:
    """Return the numbers of a version for comparison, up to the first part that is none."""
    numbers = []
    for part in version.split("."):
        if not part.isdecimal():
            break
        numbers.append(int(part))
    return tuple(numbers)


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its type where it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def runtime_name(flavour: str) -> str:
    """Return what manifests call the package: `"tensorrt"` or `"tensorrt-rtx"`."""
    return _MODULES[flavour].replace("_", "-")


def make_logger(library: Any) -> Any:  # noqa: ANN401  (a class of the library)
    """Return a logger that prints nothing and keeps the errors, as `errors`, for our messages."""

    class ErrorLog(library.ILogger):  # type: ignore[misc]  # the library carries no types
        def __init__(self) -> None:
            library.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, msg: str) -> None:  # noqa: ANN401
            if severity in (library.ILogger.ERROR, library.ILogger.INTERNAL_ERROR):
                self.errors.append(" ".join(msg.split()))

        def last(self) -> str:
            """Return the newest error, which is the nearest to the cause."""
            return self.errors[-1] if self.errors else "no reason given"

    return ErrorLog()


_FIX = "pip install -U 'cuda-bindings>=12.8'"


class Cuda:
    """The CUDA runtime on one device. Memory and streams belong to who asked for them."""

    def __init__(self, number: int = 0) -> None:
        """Take a device.

        Args:
            number: Of the device.

        Raises:
            BackendUnavailableError: cuda-bindings is not installed, the driver is missing
                or does not fit, or there is no such GPU.
        """
        self._api = import_vendor("cuda.bindings.runtime", _FIX)
        try:
            code, count = self._api.cudaGetDeviceCount()
            failed = self._refusal(code) if int(code) else ""
        except Exception as error:  # bindings without a driver raise instead of answering
            failed, count = f"{type(error).__name__}: {first_line(error)}", 0
        if failed or number >= count:
            found = failed or f"{count} NVIDIA GPUs"
            raise BackendUnavailableError(
                f"there is no GPU cuda:{number} ({found}): check `nvidia-smi` and the driver, or "
                "use an .onnx model with device='cpu'"
            )
        self.number = number
        try:
            self.enter()
        except (InferenceError, RuntimeError) as error:
            raise BackendUnavailableError(
                f"the GPU cuda:{number} cannot be used: {first_line(error)}; check `nvidia-smi`, "
                "what else runs on it, and the driver"
            ) from error

    def enter(self) -> None:
        """Make the device the calling thread's; each thread has its own."""
        self.call(self._api.cudaSetDevice, self.number)

    def gpu(self) -> dict[str, str]:
        """Return what the device is, in the words of a manifest.

        Returns:
            `gpu`: what its maker calls it; `compute_capability`: as `"SM89"`; `driver`: the newest
            CUDA that the driver runs, as `"13.0"`; `cuda`: major version of the CUDA runtime, as
            `"13"`: engines do not outlive it.
        """
        facts = self.call(self._api.cudaGetDeviceProperties, self.number)
        driver = self.call(self._api.cudaDriverGetVersion)
        runtime = self.call(self._api.cudaRuntimeGetVersion)
        return {
            "gpu": facts.name.split(b"\0")[0].decode(),
            "compute_capability": f"SM{facts.major}{facts.minor}",
            "driver": f"{driver // 1000}.{driver % 1000 // 10}",
            "cuda": str(runtime // 1000),
        }

    def _refusal(self, code: Any) -> str:  # noqa: ANN401
        """Return why no device answers: without a driver, CUDA calls the driver too old."""
        failed, newest = self._api.cudaDriverGetVersion()
        if not int(failed) and newest == 0:
            return "no NVIDIA driver is loaded"
        return self._describe(code)

    def call(self, function: Callable[..., tuple[Any, ...]], *arguments: Any) -> Any:  # noqa: ANN401
        """Return what a function of the runtime returns behind its error code.

        Raises:
            InferenceError: The code is an error.
        """
        code, *values = function(*arguments)
        if int(code):
            raise InferenceError(
                f"{function.__name__} failed: {self._describe(code)}; if memory ran out, give the "
                "recipe a smaller greatest shape"
            )
        return values[0] if len(values) == 1 else None

    def allocate(self, size: int) -> int:
        """Return the address of new device memory.

        Args:
            size: In bytes.
        """
        return int(self.call(self._api.cudaMalloc, size))

    def allocate_pinned(self, size: int) -> int:
        """Return the address of new host memory that the device copies from without a detour."""
        return int(self.call(self._api.cudaHostAlloc, size, self._api.cudaHostAllocDefault))

    def free(self, address: int) -> None:
        """Give device memory back."""
        self.call(self._api.cudaFree, address)

    def free_pinned(self, address: int) -> None:
        """Give host memory back."""
        self.call(self._api.cudaFreeHost, address)

    def make_stream(self) -> Any:  # noqa: ANN401  (a handle)
        """Return a new stream, which does not wait for the default one."""
        return self.call(self._api.cudaStreamCreateWithFlags, self._api.cudaStreamNonBlocking)

    def free_stream(self, stream: Any) -> None:  # noqa: ANN401
        """Give a stream back."""
        self.call(self._api.cudaStreamDestroy, stream)

    def upload(self, device: int, host: int, size: int, stream: Any) -> None:  # noqa: ANN401
        """Queue a copy of `size` bytes to the device."""
        kind = self._api.cudaMemcpyKind.cudaMemcpyHostToDevice
        self.call(self._api.cudaMemcpyAsync, device, host, size, kind, stream)

    def download(self, host: int, device: int, size: int, stream: Any) -> None:  # noqa: ANN401
        """Queue a copy of `size` bytes from the device."""
        kind = self._api.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self.call(self._api.cudaMemcpyAsync, host, device, size, kind, stream)

    def wait(self, stream: Any) -> None:  # noqa: ANN401
        """Return when all that was queued on a stream is done."""
        self.call(self._api.cudaStreamSynchronize, stream)

    def capture(self, stream: Any, work: Callable[[], None]) -> Any:  # noqa: ANN401
        """Return what `work` queues on a stream as a graph that is launched as one; it is not run.

        Raises:
            InferenceError: Something in it cannot be captured.
        """
        mode = self._api.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self.call(self._api.cudaStreamBeginCapture, stream, mode)
        try:
            work()
        except BaseException:
            self._api.cudaStreamEndCapture(stream)  # Else the stream stays unusable.
            raise
        graph = self.call(self._api.cudaStreamEndCapture, stream)
        try:
            return self.call(self._api.cudaGraphInstantiate, graph, 0)
        finally:
            self.call(self._api.cudaGraphDestroy, graph)

    def forget_error(self) -> None:
        """Take back the error of a call that failed: a library's next call would see it."""
        self._api.cudaGetLastError()

    def launch(self, graph: Any, stream: Any) -> None:  # noqa: ANN401
        """Queue a captured graph."""
        self.call(self._api.cudaGraphLaunch, graph, stream)

    def free_graph(self, graph: Any) -> None:  # noqa: ANN401
        """Give a captured graph back."""
        self.call(self._api.cudaGraphExecDestroy, graph)

    def _describe(self, code: Any) -> str:  # noqa: ANN401
        _, text = self._api.cudaGetErrorString(code)
        return text.decode() if isinstance(text, bytes) else str(text)


def host_bytes(address: int, size: int) -> npt.NDArray[np.uint8]:
    """Return host memory as (size,) uint8; whoever owns the memory must outlive the array."""
    return np.frombuffer(memoryview((ctypes.c_uint8 * size).from_address(address)), np.uint8)
