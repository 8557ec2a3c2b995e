"""A CUDA runtime without a GPU: `cuda.bindings.runtime` as far as the package uses it.

Device memory is host memory. What is queued on a stream runs when the stream is waited for, so that
a missing wait shows; copies are checked against what is allocated; everything allocated is counted.
"""

from __future__ import annotations

import ctypes
from collections import Counter
from collections.abc import Callable
from enum import IntEnum
from functools import partial
from types import SimpleNamespace
from typing import Any

Work = Callable[[], object]


class Error(IntEnum):
    cudaSuccess = 0  # noqa: N815
    cudaErrorInvalidValue = 1  # noqa: N815
    cudaErrorMemoryAllocation = 2  # noqa: N815
    cudaErrorNoDevice = 100  # noqa: N815
    cudaErrorStreamCaptureUnsupported = 900  # noqa: N815


class Stream:
    def __init__(self, handle: int) -> None:
        self.handle = handle
        self.queue: list[Work] = []
        self.captured: list[Work] | None = None

    def __int__(self) -> int:
        return self.handle

    def add(self, work: Work) -> None:
        (self.queue if self.captured is None else self.captured).append(work)


class FakeCuda:
    """Stands for the module. `counts` says how often each function was called."""

    cudaHostAllocDefault = 0  # noqa: N815
    cudaStreamNonBlocking = 1  # noqa: N815
    cudaMemcpyKind = SimpleNamespace(cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2)  # noqa: N815
    cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal=1)  # noqa: N815

    def __init__(self, gpus: int = 1, memory: int = 1 << 30) -> None:
        self.gpus = gpus
        self.memory = memory
        self.name = "NVIDIA L4"
        self.capability = (8, 9)
        self.driver = 13000
        self.captures = True
        self.chosen: list[int] = []
        self.last_error = Error.cudaSuccess
        self.counts: Counter[str] = Counter()
        self.device_blocks: dict[int, Any] = {}
        self.host_blocks: dict[int, Any] = {}
        self.streams: dict[int, Stream] = {}
        self.graphs: list[list[Work]] = []

    @property
    def held(self) -> int:
        """What is allocated and not given back: memory, streams, graphs."""
        return sum(map(len, (self.device_blocks, self.host_blocks, self.streams, self.graphs)))

    def __getattribute__(self, name: str) -> Any:  # noqa: ANN401
        if name.startswith("cuda") and name[4:5].isupper():
            object.__getattribute__(self, "counts")[name] += 1
        return object.__getattribute__(self, name)

    def cudaGetDeviceCount(self) -> tuple[Error, int | None]:  # noqa: N802
        return (Error.cudaSuccess, self.gpus) if self.gpus else (Error.cudaErrorNoDevice, None)

    def cudaSetDevice(self, device: int) -> tuple[Error]:  # noqa: N802
        self.chosen.append(device)
        return (Error.cudaSuccess if device < self.gpus else Error.cudaErrorInvalidValue,)

    def cudaGetDeviceProperties(self, device: int) -> tuple[Error, Any]:  # noqa: N802
        del device
        major, minor = self.capability
        name = self.name.encode() + b"\0\0"
        return Error.cudaSuccess, SimpleNamespace(name=name, major=major, minor=minor)

    def cudaDriverGetVersion(self) -> tuple[Error, int]:  # noqa: N802
        return Error.cudaSuccess, self.driver

    def cudaRuntimeGetVersion(self) -> tuple[Error, int]:  # noqa: N802
        return Error.cudaSuccess, 13050

    def cudaGetErrorString(self, code: Error) -> tuple[Error, bytes]:  # noqa: N802
        return Error.cudaSuccess, code.name.encode()

    def cudaMalloc(self, size: int) -> tuple[Error, int | None]:  # noqa: N802
        return self._allocate(self.device_blocks, size)

    def cudaHostAlloc(self, size: int, flags: int) -> tuple[Error, int | None]:  # noqa: N802
        del flags
        return self._allocate(self.host_blocks, size)

    def cudaFree(self, address: int) -> tuple[Error]:  # noqa: N802
        return self._drop(self.device_blocks, address)

    def cudaFreeHost(self, address: int) -> tuple[Error]:  # noqa: N802
        return self._drop(self.host_blocks, address)

    def cudaStreamCreateWithFlags(self, flags: int) -> tuple[Error, Stream]:  # noqa: N802
        del flags
        stream = Stream(1000 + len(self.streams))
        self.streams[int(stream)] = stream
        return Error.cudaSuccess, stream

    def cudaStreamDestroy(self, stream: Stream) -> tuple[Error]:  # noqa: N802
        return self._drop(self.streams, int(stream))

    def cudaStreamSynchronize(self, stream: Stream) -> tuple[Error]:  # noqa: N802
        if stream.captured is not None:
            return (Error.cudaErrorStreamCaptureUnsupported,)
        while stream.queue:
            stream.queue.pop(0)()
        return (Error.cudaSuccess,)

    def cudaMemcpyAsync(  # noqa: N802
        self, target: int, source: int, size: int, kind: int, stream: Stream
    ) -> tuple[Error]:
        blocks = (self.device_blocks, self.host_blocks)
        onto, of = blocks if kind == 1 else blocks[::-1]
        for held, address in ((onto, target), (of, source)):
            if address not in held or ctypes.sizeof(held[address]) < size:
                return (Error.cudaErrorInvalidValue,)
        stream.add(partial(ctypes.memmove, target, source, size))
        return (Error.cudaSuccess,)

    def cudaStreamBeginCapture(self, stream: Stream, mode: int) -> tuple[Error]:  # noqa: N802
        del mode
        if stream.captured is not None:
            return (Error.cudaErrorInvalidValue,)
        stream.captured = []
        return (Error.cudaSuccess,)

    def cudaStreamEndCapture(self, stream: Stream) -> tuple[Error, list[Work] | None]:  # noqa: N802
        graph, stream.captured = stream.captured, None
        if graph is None:
            return Error.cudaErrorInvalidValue, None
        if not self.captures:
            self.last_error = Error.cudaErrorStreamCaptureUnsupported
            return self.last_error, None
        self.graphs.append(graph)
        return Error.cudaSuccess, graph

    def cudaGetLastError(self) -> tuple[Error]:  # noqa: N802
        error, self.last_error = self.last_error, Error.cudaSuccess
        return (error,)

    def cudaGraphInstantiate(  # noqa: N802
        self, graph: list[Work], flags: int
    ) -> tuple[Error, list[Work]]:
        del flags
        self.graphs.append(list(graph))
        return Error.cudaSuccess, self.graphs[-1]

    def cudaGraphDestroy(self, graph: list[Work]) -> tuple[Error]:  # noqa: N802
        return self._drop_graph(graph)

    def cudaGraphExecDestroy(self, graph: list[Work]) -> tuple[Error]:  # noqa: N802
        return self._drop_graph(graph)

    def cudaGraphLaunch(self, graph: list[Work], stream: Stream) -> tuple[Error]:  # noqa: N802
        if not any(held is graph for held in self.graphs):
            return (Error.cudaErrorInvalidValue,)
        for work in graph:
            stream.add(work)
        return (Error.cudaSuccess,)

    def _allocate(self, blocks: dict[int, Any], size: int) -> tuple[Error, int | None]:
        used = sum(ctypes.sizeof(block) for block in blocks.values())
        if used + size > self.memory:
            return Error.cudaErrorMemoryAllocation, None
        block = (ctypes.c_uint8 * size)()
        address = ctypes.addressof(block)
        blocks[address] = block
        return Error.cudaSuccess, address

    def _drop(self, held: dict[int, Any], key: int) -> tuple[Error]:
        return (Error.cudaSuccess if held.pop(key, None) else Error.cudaErrorInvalidValue,)

    def _drop_graph(self, graph: list[Work]) -> tuple[Error]:
        left = [held for held in self.graphs if held is not graph]
        found = len(left) < len(self.graphs)
        self.graphs = left
        return (Error.cudaSuccess if found else Error.cudaErrorInvalidValue,)
