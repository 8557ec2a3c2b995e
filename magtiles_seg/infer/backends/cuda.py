"""A thin seam over NVIDIA's CUDA runtime: its error codes become errors, its memory has owners."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from magtiles_seg.errors import BackendUnavailableError, InferenceError
from magtiles_seg.infer.backends.vendor import first_line, import_vendor

_FIX = "pip install -U 'cuda-bindings>=12.8'"


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """A device, in the words of a manifest.

    Attributes:
        number: Of the device in this process.
        name: As its maker calls it.
        compute_capability: As `"SM89"`.
        driver: Newest CUDA that the driver runs, as `"13.0"`.
        cuda: Major version of the CUDA runtime, as `"13"`: engines do not outlive it.
    """

    number: int
    name: str
    compute_capability: str
    driver: str
    cuda: str


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
            failed = self._describe(code) if int(code) else ""
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

    def gpu(self) -> Gpu:
        """Return what the device is."""
        facts = self.call(self._api.cudaGetDeviceProperties, self.number)
        driver = self.call(self._api.cudaDriverGetVersion)
        runtime = self.call(self._api.cudaRuntimeGetVersion)
        return Gpu(
            number=self.number,
            name=facts.name.split(b"\0")[0].decode(),
            compute_capability=f"SM{facts.major}{facts.minor}",
            driver=f"{driver // 1000}.{driver % 1000 // 10}",
            cuda=str(runtime // 1000),
        )

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
