"""Engines on TensorRT or TensorRT-RTX: what `magtiles-seg export --to tensorrt` or `rtx` built."""

from __future__ import annotations

import logging
import math
import threading
from collections import OrderedDict
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from magtiles_seg.errors import ConfigError, InferenceError, ModelError, StaleEngineError
from magtiles_seg.files import sha256_of
from magtiles_seg.infer.backends.base import (
    Answer,
    BackendSpec,
    check_images,
    check_shape,
    parse_device,
    read_model,
)
from magtiles_seg.infer.backends.held import Held, gpu_after_fork
from magtiles_seg.infer.backends.vendor import (
    FLAVOURS,
    Cuda,
    host_bytes,
    import_tensorrt,
    make_logger,
    runtime_name,
    version_numbers,
)
from magtiles_seg.infer.manifest import Manifest, local_environment, mismatches

_log = logging.getLogger(__name__)

Shape = tuple[int, ...]

_INPUT = "image"
_OUTPUTS = ("probability", "classes")
_TYPES = {"image": np.uint8, "probability": np.float32, "classes": np.uint8}
_MAX_GRAPHS = 8
_BUILD_AGAIN = (
    "build it here with `magtiles-seg export`, or load it with --rebuild "
    "(rebuild=magtiles_seg.export.rebuild.rebuild_engine)"
)
_BINDING = ("runtime", "runtime_version", "compute_capability", "os", "arch")
"""What TensorRT itself holds an engine to. Which driver, CUDA and model of GPU were there is kept
for people: an update of the driver alone outdates no engine, and a library that refuses one all the
same says why."""


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
            StaleEngineError: The library refuses the engine.
            ModelError: It is not an engine of this package.
            InferenceError: The device's memory does not suffice.
        """
        self._library = library
        self._cuda = cuda
        self._logger = make_logger(library)
        self._buckets: OrderedDict[Shape, _Bucket] = OrderedDict()
        self._context: Any = None
        self._capturing = True
        self._owned = ExitStack()
        runtime = library.Runtime(self._logger)
        if trusted:
            runtime.engine_host_code_allowed = True
        self._runtime = runtime
        self._engine = runtime.deserialize_cuda_engine(plan)
        if self._engine is None:
            raise StaleEngineError(
                f"{library.__name__} {library.__version__} refuses the engine: "
                f"{self._logger.last()}; {_BUILD_AGAIN}"
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
        elif bucket.context is None and self._capturing:
            try:
                self._capture(bucket, shape)
            except InferenceError as error:
                self._capturing = False
                self._cuda.forget_error()
                _log.warning(
                    "no CUDA graph of pictures %s: %s; the engine runs without graphs", shape, error
                )
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


class TrtBackend:
    """One engine on one GPU. Calls from several threads run one after the other."""

    def __init__(self, path: Path, *, device: str = "cuda") -> None:
        """Load an engine.

        Args:
            path: An `.engine` file, its manifest beside it.
            device: `"cuda"` or `"cuda:N"`.

        Raises:
            FileNotFoundError: There is no such file.
            StaleEngineError: The engine does not fit this machine; names every difference.
            ModelError: There is no manifest, or the library refuses the engine.
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
        flavour = flavour_of(manifest, path)
        library = import_tensorrt(flavour)
        cuda = Cuda(number)
        here = environment(library, flavour, cuda)
        reasons = _misfits(manifest, here, plan)
        if reasons:
            raise StaleEngineError(
                "\n  - ".join([f"{path} was not built for this machine:", *reasons])
                + f"\n{_BUILD_AGAIN}"
            )
        _tell_of_another_gpu(manifest, here, path)
        self._lock = threading.Lock()
        self._cuda = cuda
        trusted = bool(manifest.recipe.get("version_compatible"))
        self._runner: Held[Runner] = Held(
            lambda: Runner(library, cuda, plan, trusted=trusted), str(path), again=gpu_after_fork
        )
        runner = self._runner.get()
        self._shapes = (runner.least, runner.greatest)
        self.spec = BackendSpec(
            name="tensorrt",
            device=f"cuda:{number}",
            provider=f"{runtime_name(flavour)} {library.__version__}",
            threads=1,
            path=path,
            sha256=sha256_of(plan),
            card=manifest.card,
            precision=manifest.precision,
        )

    def infer(self, images: npt.NDArray[np.uint8]) -> Answer:
        """Answer as every `Backend`; a batch greater than the engine takes, in parts."""
        check_images(images)
        runner = self._runner.get()
        least, greatest = self._shapes
        step = greatest[0]
        for count in {min(step, len(images)), (len(images) - 1) % step + 1}:
            check_shape((count, *images.shape[1:]), least, greatest)
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
    return {**local_environment(runtime_name(flavour), library.__version__), **cuda.gpu()}


def flavour_of(manifest: Manifest, path: Path) -> str:
    """Return which of `FLAVOURS` an engine was built with.

    Raises:
        ModelError: The manifest names none of them.
    """
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
    binding = set(_BINDING)
    if recipe.get("version_compatible") and not _older(here, built):
        binding.remove("runtime_version")
    newest = int(str(here["compute_capability"])[2:])
    if recipe.get("hardware_compatible") == "ampere_plus" and newest >= 80:
        binding.remove("compute_capability")
    held = {key: value for key, value in built.items() if key in binding}
    return mismatches(replace(manifest, environment=held), {**here, "sha256": sha256_of(plan)})


def _tell_of_another_gpu(manifest: Manifest, here: dict[str, str | list[str]], path: Path) -> None:
    """Warn of an engine that was tuned for another model of GPU, unless it was meant for several.

    TensorRT runs it where the compute capability is the same, and warns as well.
    """
    built = manifest.environment.get("gpu")
    meant = manifest.recipe.get("hardware_compatible", "none") != "none"
    if built is not None and built != here["gpu"] and not meant:
        _log.warning(
            "%s was tuned on %s and runs on %s: it may be slower than one that is built here",
            path,
            built,
            here["gpu"],
        )


def _older(here: dict[str, str | list[str]], built: Any) -> bool:  # noqa: ANN401
    """Return whether this machine's library is older than the one that built: never compatible."""
    versions = [str(facts.get("runtime_version", "0")) for facts in (here, built)]
    return version_numbers(versions[0]) < version_numbers(versions[1])
