"""The running half of the stand-in for TensorRT: onnxruntime computes when the stream runs."""

from __future__ import annotations

import ctypes
import json
from typing import Any

import numpy as np
from fake_session import open_session
from strict import Strict

_TYPES = {"image": "UINT8", "probability": "FLOAT", "classes": "UINT8"}


class IRuntimeConfig(Strict):
    dynamic_shapes_kernel_specialization_strategy: Any = None

    def set_execution_context_allocation_strategy(self, strategy: int) -> None:
        self._strategy = strategy


class IExecutionContext(Strict):
    def __init__(self, engine: ICudaEngine) -> None:
        self._engine = engine
        self._addresses: dict[str, int] = {}
        self._shape: tuple[int, ...] = ()
        self._ready: tuple[int, ...] = ()

    def set_device_memory(self, memory: int, size: int) -> None:
        assert memory in self._cuda.device_blocks
        assert size >= self._engine.device_memory_size_v2
        self._scratch = memory

    def set_tensor_address(self, name: str, memory: int) -> bool:
        self._addresses[name] = memory
        return name in _TYPES

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        least, _, greatest = self._engine.get_tensor_profile_shape(name, 0)
        self._shape = shape
        return all(a <= b <= c for a, b, c in zip(least, shape, greatest, strict=True))

    def is_stream_capturable(self, stream: int) -> bool:
        del stream
        return bool(self._engine._head["user_memory"])

    def execute_async_v3(self, stream_handle: int) -> bool:
        stream = self._cuda.streams[stream_handle]
        assert self._cuda.last_error == 0, "the library takes an error of ours for its own"
        assert self._scratch in self._cuda.device_blocks
        assert set(self._addresses) == set(_TYPES)
        if stream.captured is not None and self._ready != self._shape:
            return False  # What is set up once for a shape cannot be captured.
        shape = self._ready = self._shape
        stream.add(lambda: self._compute(shape))
        return True

    def _compute(self, shape: tuple[int, ...]) -> None:
        assert shape == self._shape, "a context's graph is void once its shape has changed"
        self._module.calls.append(shape)
        image = _array(self._addresses["image"], shape, np.uint8)
        answers = self._engine._session.run(list(_TYPES)[1:], {"image": image.copy()})
        for name, answer in zip(list(_TYPES)[1:], answers, strict=True):
            _array(self._addresses[name], shape, answer.dtype)[...] = answer


class ICudaEngine(Strict):
    device_memory_size_v2 = 4096
    num_io_tensors = len(_TYPES)

    def __init__(self, head: dict[str, Any], onnx: bytes) -> None:
        self._head = head
        self._session = open_session(onnx)

    def get_tensor_name(self, index: int) -> str:
        return list(_TYPES)[index]

    def get_tensor_dtype(self, name: str) -> Any:  # noqa: ANN401
        return getattr(self._module.DataType, _TYPES[name])

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[list[int]]:
        del name, profile_index
        shapes: list[list[int]] = self._head["shapes"]
        return shapes

    def create_runtime_config(self) -> Any:  # noqa: ANN401
        return self._module.IRuntimeConfig()

    def create_execution_context(self, how: Any) -> Any:  # noqa: ANN401
        strategy = getattr(how, "_strategy", how)
        assert strategy == self._module.ExecutionContextAllocationStrategy.USER_MANAGED
        return self._module.IExecutionContext(self)


class Runtime(Strict):
    engine_host_code_allowed = False

    def __init__(self, logger: Any) -> None:  # noqa: ANN401
        self._logger = logger

    def deserialize_cuda_engine(self, serialized_engine: bytes) -> Any:  # noqa: ANN401
        first, _, onnx = serialized_engine.partition(b"\n")
        try:
            head = json.loads(first)
        except ValueError:
            head = {"version": "?"}
        newer = self.engine_host_code_allowed and head.get("portable")
        if head["version"] != self._module.__version__ and not newer:
            self._logger.log(self._module.ILogger.ERROR, "the engine is of another version")
            return None
        return self._module.ICudaEngine(head, onnx)


def _array(address: int, shape: tuple[int, ...], dtype: Any) -> np.ndarray[Any, Any]:  # noqa: ANN401
    count = int(np.prod(shape)) * np.dtype(dtype).itemsize
    block = (ctypes.c_uint8 * count).from_address(address)
    return np.frombuffer(memoryview(block), dtype).reshape(shape)


CLASSES: tuple[type[Strict], ...] = (IRuntimeConfig, IExecutionContext, ICudaEngine, Runtime)
