"""The building half of the stand-in for TensorRT: an engine is its shapes and its ONNX file."""

from __future__ import annotations

import json
from typing import Any

from fake_session import open_session
from strict import Strict

_PHASES = (("Building", None, 2), ("Tactics", "Building", 3))


class ILogger(Strict):
    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)

    def log(self, severity: int, msg: str) -> None:
        raise NotImplementedError


class IProgressMonitor(Strict):
    pass


class ParserError(Strict):
    def __init__(self, desc: str, node_name: str, node_operator: str) -> None:
        self._words = (desc, node_name, node_operator)

    def desc(self) -> str:
        return self._words[0]

    def node_name(self) -> str:
        return self._words[1]

    def node_operator(self) -> str:
        return self._words[2]


class IOptimizationProfile(Strict):
    def set_shape(self, input: str, min: Any, opt: Any, max: Any) -> None:  # noqa: A002, ANN401
        assert input == "image"
        self._shapes = [list(min), list(opt), list(max)]


class ITimingCache(Strict):
    def __init__(self, content: bytes) -> None:
        self._content = content

    def serialize(self) -> bytes:
        return self._content


class IBuilderConfig(Strict):
    progress_monitor: Any = None
    hardware_compatibility_level: Any = None
    num_compute_capabilities = 0

    def __init__(self) -> None:
        self._flags = {self._module.BuilderFlag.TF32}
        self._profile: Any = None
        self._cache: Any = None

    def set_memory_pool_limit(self, pool: int, size: int) -> None:
        assert pool == self._module.MemoryPoolType.WORKSPACE
        self._workspace = size

    def add_optimization_profile(self, profile: Any) -> int:  # noqa: ANN401
        self._profile = profile
        return 0

    def set_flag(self, flag: int) -> None:
        self._flags.add(flag)

    def clear_flag(self, flag: int) -> None:
        self._flags.discard(flag)

    def create_timing_cache(self, content: bytes) -> Any:  # noqa: ANN401
        return self._module.ITimingCache(content or f"measured on {self._cuda.name}".encode())

    def set_timing_cache(self, cache: ITimingCache, ignore_mismatch: bool) -> bool:
        fits = ignore_mismatch or self._cuda.name.encode() in cache.serialize()
        self._cache = cache if fits else self._cache
        return fits

    def set_compute_capability(self, capability: int, index: int) -> bool:
        return bool(capability) and index < self.num_compute_capabilities


class INetworkDefinition(Strict):
    def __init__(self, typed: bool) -> None:
        self._typed = typed
        self._onnx = b""


class OnnxParser(Strict):
    def __init__(self, network: INetworkDefinition, logger: ILogger) -> None:
        self._network = network
        self._errors: list[ParserError] = []
        del logger

    @property
    def num_errors(self) -> int:
        return len(self._errors)

    def get_error(self, index: int) -> ParserError:
        return self._errors[index]

    def parse(self, model: bytes) -> bool:
        try:
            open_session(model)
        except Exception as error:
            self._errors.append(self._module.ParserError(str(error), "node_of_test", "Bogus"))
            return False
        self._network._onnx = model
        return True


class IHostMemory(Strict):
    def __init__(self, content: bytes) -> None:
        self._content = content

    def __bytes__(self) -> bytes:
        return self._content


class Builder(Strict):
    def __init__(self, logger: ILogger) -> None:
        self._logger = logger

    def create_network(self, flags: int = 0) -> Any:  # noqa: ANN401
        bit = 1 << int(self._module.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
        return self._module.INetworkDefinition(
            bool(flags & bit) or not self._module.__version__.startswith("10.")
        )

    def create_builder_config(self) -> Any:  # noqa: ANN401
        return self._module.IBuilderConfig()

    def create_optimization_profile(self) -> Any:  # noqa: ANN401
        return self._module.IOptimizationProfile()

    def build_serialized_network(self, network: INetworkDefinition, config: IBuilderConfig) -> Any:  # noqa: ANN401
        self._module.calls.append((network, config))
        if config._workspace < 8 << 20:
            self._logger.log(
                self._module.ILogger.ERROR, "OutOfMemory (Requested size was 9 bytes.)"
            )
            return None
        if config.progress_monitor is not None and not _show(config.progress_monitor):
            return None
        assert network._typed, "a network that is not strongly typed ignores the graph's types"
        head = {
            "version": self._module.__version__,
            "gpu": self._cuda.name,
            "shapes": config._profile._shapes,
            "user_memory": self._module.__name__ == "tensorrt"
            or self._module.BuilderFlag.REQUIRE_USER_ALLOCATION in config._flags,
            "portable": self._module.BuilderFlag.VERSION_COMPATIBLE in config._flags,
        }
        return self._module.IHostMemory(json.dumps(head).encode() + b"\n" + network._onnx)


def _show(monitor: Any) -> bool:  # noqa: ANN401
    """Report two phases, one within the other; return False if the monitor stops the build."""
    for name, parent, steps in _PHASES:
        monitor.phase_start(name, parent, steps)
        for step in range(steps):
            if not monitor.step_complete(name, step):
                return False
    for name, _, _ in reversed(_PHASES):
        monitor.phase_finish(name)
    return True


CLASSES: tuple[type[Strict], ...] = (
    ILogger, IProgressMonitor, ParserError, IOptimizationProfile, ITimingCache, IBuilderConfig,
    INetworkDefinition, OnnxParser, IHostMemory, Builder,
)  # fmt: skip
