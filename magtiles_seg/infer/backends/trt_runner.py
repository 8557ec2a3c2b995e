"""One engine on one GPU: its buffers, its stream and its CUDA graphs.

Everything is allocated when the engine is loaded. A shape that comes again is captured as a CUDA
graph (upload, network, download: one launch); graphs are kept for the shapes used last. Each graph
has an execution context of its own, because a context's graph is void once its shape changes; all
contexts share one scratch memory, because they run one after the other on one stream.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from magtiles_seg.errors import InferenceError, ModelError
from magtiles_seg.infer.backends.cuda import Cuda, host_bytes
from magtiles_seg.infer.backends.vendor import make_logger

Shape = tuple[int, ...]

_INPUT = "image"
_OUTPUTS = ("probability", "classes")
_TYPES = {"image": np.uint8, "probability": np.float32, "classes": np.uint8}
_MAX_GRAPHS = 8


@dataclass(frozen=True, eq=False)
class _Buffer:
    """A tensor's memory on both sides: device address, and pinned host memory as an array."""

    device: int
    address: int
    host: npt.NDArray[Any]

    def view(self, shape: Shape) -> npt.NDArray[Any]:
        """Return the first of the host's elements in a shape."""
        return self.host[: math.prod(shape)].reshape(shape)


@dataclass(eq=False)
class _Bucket:
    """What is kept for one shape: nothing yet, or a graph and the context that it was made of."""

    context: Any = None
    graph: Any = None


class Runner:
    """A loaded engine. Not safe for threads: who owns it locks it."""

    def __init__(self, library: Any, cuda: Cuda, plan: bytes, *, trusted: bool = False) -> None:  # noqa: ANN401
        """Load an engine and allocate all that it will ever need.

        Args:
            library: `tensorrt` or `tensorrt_rtx`.
            cuda: The device.
            plan: The engine.
            trusted: Whether the engine may bring code of its own for this computer's processor, as
                version-compatible engines do.

        Raises:
            ModelError: The library refuses the engine, or it is not one of this package.
            InferenceError: The device's memory does not suffice.
        """
        self._library = library
        self._cuda = cuda
        self._logger = make_logger(library)
        self._buckets: OrderedDict[Shape, _Bucket] = OrderedDict()
        self._context: Any = None
        self._owned = ExitStack()
        runtime = library.Runtime(self._logger)
        if trusted:
            runtime.engine_host_code_allowed = True
        self._runtime = runtime
        self._engine = runtime.deserialize_cuda_engine(plan)
        if self._engine is None:
            raise ModelError(
                f"{library.__name__} {library.__version__} refuses the engine: "
                f"{self._logger.last()}; build it again on this machine"
            )
        self._check_tensors()
        least, _, greatest = self._engine.get_tensor_profile_shape(_INPUT, 0)
        self.least: Shape = tuple(least)
        self.greatest: Shape = tuple(greatest)
        try:
            self._allocate()
            self._context = self._make_context()
        except BaseException:
            self.close()
            raise

    @property
    def graphs(self) -> int:
        """How many CUDA graphs are held."""
        return sum(bucket.graph is not None for bucket in self._buckets.values())

    def run(
        self,
        images: npt.NDArray[np.uint8],
        probability: npt.NDArray[np.float32],
        classes: npt.NDArray[np.uint8],
    ) -> None:
        """Answer pictures.

        Args:
            images: (N, H, W) uint8 within the profile.
            probability: (N, H, W) float32 to fill.
            classes: (N, H, W) uint8 to fill.

        Raises:
            InferenceError: The library or the device failed.
        """
        np.copyto(self._buffers[_INPUT].view(images.shape), images)
        bucket = self._bucket(images.shape)
        if bucket.graph is None:
            self._enqueue(self._context, images.shape)
        else:
            self._cuda.launch(bucket.graph, self._stream)
        self._cuda.wait(self._stream)
        np.copyto(probability, self._buffers["probability"].view(images.shape))
        np.copyto(classes, self._buffers["classes"].view(images.shape))

    def close(self) -> None:
        """Free all memory. Closing twice is harmless."""
        while self._buckets:
            self._forget()
        self._context = self._engine = self._runtime = None
        self._owned.close()

    def _check_tensors(self) -> None:
        engine, types = self._engine, self._library.DataType
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        found = {name: engine.get_tensor_dtype(name) for name in names}
        wanted = {"image": types.UINT8, "probability": types.FLOAT, "classes": types.UINT8}
        if found != wanted:
            raise ModelError(
                f"the engine is not one of magtiles-seg: expected tensors {sorted(wanted)} of "
                f"uint8, float32, uint8, got {found}; build it with `magtiles-seg export`"
            )

    def _allocate(self) -> None:
        cuda, owned = self._cuda, self._owned
        self._stream = cuda.make_stream()
        owned.callback(cuda.free_stream, self._stream)
        count = math.prod(self.greatest)
        self._buffers: dict[str, _Buffer] = {}
        for name, dtype in _TYPES.items():
            size = count * np.dtype(dtype).itemsize
            device = cuda.allocate(size)
            owned.callback(cuda.free, device)
            address = cuda.allocate_pinned(size)
            owned.callback(cuda.free_pinned, address)
            host = host_bytes(address, size).view(dtype)
            self._buffers[name] = _Buffer(device, address, host)
        self._scratch_size = max(1, self._engine.device_memory_size_v2)
        self._scratch = cuda.allocate(self._scratch_size)
        owned.callback(cuda.free, self._scratch)

    def _make_context(self) -> Any:  # noqa: ANN401
        """Return a context that works in our scratch memory and on our buffers."""
        library = self._library
        strategy = library.ExecutionContextAllocationStrategy.USER_MANAGED
        how = strategy
        if hasattr(library, "DynamicShapesKernelSpecializationStrategy"):  # TensorRT-RTX
            how = self._engine.create_runtime_config()
            how.set_execution_context_allocation_strategy(strategy)
            # By default better kernels come later, in the background: a graph would keep the worse.
            eager = library.DynamicShapesKernelSpecializationStrategy.EAGER
            how.dynamic_shapes_kernel_specialization_strategy = eager
        context = self._engine.create_execution_context(how)
        if context is None:
            raise InferenceError(
                f"{library.__name__} makes no execution context: {self._logger.last()}; "
                "if memory ran out, give the recipe a smaller greatest shape"
            )
        context.set_device_memory(self._scratch, self._scratch_size)
        for name, buffer in self._buffers.items():
            context.set_tensor_address(name, buffer.device)
        return context

    def _bucket(self, shape: Shape) -> _Bucket:
        """Return what is kept for a shape; seen the second time, the shape is captured."""
        bucket = self._buckets.get(shape)
        if bucket is None:
            if len(self._buckets) >= _MAX_GRAPHS:
                self._forget()
            bucket = self._buckets[shape] = _Bucket()
        elif bucket.context is None:
            self._capture(bucket, shape)
        self._buckets.move_to_end(shape)
        return bucket

    def _capture(self, bucket: _Bucket, shape: Shape) -> None:
        context = self._make_context()
        self._enqueue(context, shape)  # What the library does once for a shape cannot be captured.
        self._cuda.wait(self._stream)
        capturable = getattr(context, "is_stream_capturable", None)  # TensorRT-RTX alone has it.
        if capturable is None or capturable(int(self._stream)):
            bucket.graph = self._cuda.capture(self._stream, lambda: self._enqueue(context, shape))
        bucket.context = context

    def _forget(self) -> None:
        """Free what is kept for the shape that was not used for longest."""
        _, bucket = self._buckets.popitem(last=False)
        if bucket.graph is not None:
            self._cuda.free_graph(bucket.graph)

    def _enqueue(self, context: Any, shape: Shape) -> None:  # noqa: ANN401
        """Queue upload, network and download."""
        cuda, stream = self._cuda, self._stream
        image = self._buffers[_INPUT]
        cuda.upload(image.device, image.address, image.view(shape).nbytes, stream)
        if not context.set_input_shape(_INPUT, shape) or not context.execute_async_v3(int(stream)):
            raise InferenceError(
                f"{self._library.__name__} failed on pictures {shape}: {self._logger.last()}; "
                "use smaller pictures, or build the engine again"
            )
        for name in _OUTPUTS:
            buffer = self._buffers[name]
            cuda.download(buffer.address, buffer.device, buffer.view(shape).nbytes, stream)
