"""TensorRT without a GPU: the builder and runtime as far as the package uses them.

`make_tensorrt` returns a module with the names of one real version, no more: they were listed by
`dir()` of the classes in the wheels tensorrt-cu12-bindings 10.16.1.11, tensorrt-cu13-bindings
11.4.0.106 and tensorrt-rtx 1.7.1.116. An engine holds its ONNX file, and is computed by onnxruntime
when the stream of `fake_cuda` is waited for.
"""

from __future__ import annotations

from enum import IntEnum
from types import ModuleType
from typing import Any

import fake_builder
import fake_runtime
from fake_cuda import FakeCuda
from strict import NAMES

VERSIONS = tuple(NAMES)
"""As `"tensorrt 10.16.1.11"`: module and version."""

_ENUMS = (
    "BuilderFlag", "ComputeCapability", "DataType", "DynamicShapesKernelSpecializationStrategy",
    "ExecutionContextAllocationStrategy", "HardwareCompatibilityLevel", "MemoryPoolType",
    "NetworkDefinitionCreationFlag",
)  # fmt: skip


def make_tensorrt(version: str, cuda: FakeCuda) -> Any:  # noqa: ANN401
    """Return a stand-in for one of `VERSIONS`, on the GPU of `cuda`.

    Its `calls` are not a name of the library: the builds and the shapes computed, for tests.
    """
    name, number = version.split()
    module: Any = ModuleType(name)
    module.__version__, module.calls = number, []
    names = {kind: words.split() for kind, words in NAMES[version].items()}
    for enum in _ENUMS:
        if enum in names:
            members = {word: index for index, word in enumerate(names[enum])}
            setattr(module, enum, IntEnum(enum, members))
    for kind in (*fake_builder.CLASSES, *fake_runtime.CLASSES):
        bound = {
            "allowed": frozenset(names[kind.__name__]) | {"allowed"},
            "_module": module,
            "_cuda": cuda,
        }
        setattr(module, kind.__name__, type(kind.__name__, (kind,), bound))
    return module
