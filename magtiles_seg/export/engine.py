"""Engines: an ONNX model compiled by TensorRT or TensorRT-RTX for the shapes of a device recipe.

One path serves TensorRT 10.12 and newer, TensorRT 11 and TensorRT-RTX: the network is strongly
typed, so that the graph alone decides where arithmetic is fp16 or int8, and no flag can change it.

TensorRT-RTX builds without a GPU, for several compute capabilities at once; that path is tested as
it is. TensorRT itself builds on the GPU that will run the engine: that path was never run on one,
only against a stand-in with the names of TensorRT 10.16 and 11.4.
"""

from __future__ import annotations

import hashlib
import platform
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from magtiles_seg.errors import ConfigError, ModelError
from magtiles_seg.export.recipe import Recipe
from magtiles_seg.infer.backends.cuda import Cuda
from magtiles_seg.infer.backends.vendor import import_tensorrt, make_logger, runtime_name

Progress = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True, eq=False)
class BuiltEngine:
    """What a build gives.

    Attributes:
        plan: The engine.
        timing_cache: What the builder measured, for the next build on the same GPU; TensorRT-RTX
            measures nothing.
        facts: How it was built, by the names of a manifest: `environment`, `profile`, `precision`,
            `recipe`, `onnx_sha256`; besides `timing_cache` (`"none"`, `"fresh"` or `"reused"`) and
            `build_seconds`.
    """

    plan: bytes
    timing_cache: bytes | None
    facts: dict[str, Any]


def build_engine(
    onnx_bytes: bytes,
    recipe: Recipe,
    *,
    flavour: str,
    compute_capabilities: tuple[str, ...] = (),
    timing_cache: bytes | None = None,
    progress: Progress | None = None,
    device: int = 0,
) -> BuiltEngine:
    """Compile a model.

    Args:
        onnx_bytes: A model file of this package, already in the precision that is wanted.
        recipe: Shapes, memory and options.
        flavour: `"tensorrt"` or `"rtx"`.
        compute_capabilities: Targets of `"rtx"`, as `("SM86", "SM120")`; empty: the recipe's.
        timing_cache: Of an earlier build on the same GPU; `"rtx"` takes none.
        progress: Called with (steps done, steps known so far); what it raises stops the build.
        device: Number of the GPU that `"tensorrt"` builds on and for.

    Raises:
        BackendUnavailableError: The library is not installed, or there is no GPU where one is
            needed.
        ConfigError: The recipe asks for what the flavour or the GPU does not have.
        ModelError: The library cannot read or compile the model.
    """
    library = import_tensorrt(flavour)
    started = time.monotonic()
    if flavour == "rtx":
        targets = _rtx_targets(library, recipe, compute_capabilities)
        if timing_cache is not None:
            raise ConfigError("flavour 'rtx' builds without a GPU, which takes no timing cache")
        environment: dict[str, str | list[str]] = {"compute_capability": targets}
    else:
        targets = []
        environment = _own_gpu(recipe, compute_capabilities, device)
    job = _Job(library, onnx_bytes, recipe, progress)
    cache_state = job.aim(targets) if targets else job.attach_cache(timing_cache)
    plan = job.build()
    facts = {
        "environment": {
            "runtime": runtime_name(flavour),
            "runtime_version": str(library.__version__),
            "os": platform.system().lower(),
            "arch": platform.machine().lower(),
            **environment,
        },
        "profile": {
            name: list(shape)
            for name, shape in zip(("min", "opt", "max"), recipe.shapes, strict=True)
        },
        "precision": recipe.precision,
        "recipe": recipe.to_dict(),
        "onnx_sha256": hashlib.sha256(onnx_bytes).hexdigest(),
        "timing_cache": cache_state,
        "build_seconds": round(time.monotonic() - started, 1),
    }
    return BuiltEngine(plan=plan, timing_cache=job.timing_cache(), facts=facts)


def _rtx_targets(library: Any, recipe: Recipe, wanted: tuple[str, ...]) -> list[str]:  # noqa: ANN401
    """Return the compute capabilities to build for."""
    known = [name for name in library.ComputeCapability.__members__ if name.startswith("SM")]
    targets = list(wanted) or ([recipe.compute_capability] if recipe.compute_capability else [])
    if not targets:
        raise ConfigError(f"recipe {recipe.name!r} names no GPU: {_choose(known)}")
    for target in targets:
        if target not in known:
            raise ConfigError(
                f"TensorRT-RTX does not build for {target!r}: {_choose(known)}, or build on the "
                "device with flavour 'tensorrt'"
            )
    for option in ("version_compatible", "hardware_compatible"):
        if getattr(recipe, option) not in (False, "none"):
            raise ConfigError(
                f"recipe {recipe.name!r} asks for {option}, which TensorRT-RTX does not have: "
                "leave it out and name every target by compute capability"
            )
    return targets


def _choose(known: list[str]) -> str:
    return f"choose compute capabilities from {', '.join(known)}"


def _own_gpu(recipe: Recipe, wanted: tuple[str, ...], device: int) -> dict[str, str | list[str]]:
    """Return the facts of the GPU that the engine is built on, and check that it is meant."""
    gpu = Cuda(device).gpu()
    targets = wanted or (recipe.compute_capability or gpu.compute_capability,)
    if targets != (gpu.compute_capability,):
        raise ConfigError(
            f"TensorRT builds for the GPU it runs on, {gpu.name} ({gpu.compute_capability}), and "
            f"{', '.join(targets)} is wanted: build on that device, choose another "
            "recipe, or use flavour 'rtx'"
        )
    return {
        "gpu": gpu.name,
        "compute_capability": gpu.compute_capability,
        "driver": gpu.driver,
        "cuda": gpu.cuda,
    }


class _Job:
    """One build: owns the library's objects, which must outlive each other in this order."""

    def __init__(
        self,
        library: Any,  # noqa: ANN401
        onnx_bytes: bytes,
        recipe: Recipe,
        progress: Progress | None,
    ) -> None:
        self._library = library
        self._recipe = recipe
        self._logger = make_logger(library)
        self._builder = library.Builder(self._logger)
        # Version 11 knows no other network and ignores the flag; version 10 needs it.
        typed = 1 << int(library.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
        self._network = self._builder.create_network(typed)
        self._parser = library.OnnxParser(self._network, self._logger)
        if not self._parser.parse(onnx_bytes):
            raise ModelError(_parser_errors(self._parser, library))
        self._config = _configure(library, self._builder, recipe)
        self._cache: Any = None
        self._monitor = None if progress is None else _make_monitor(library, progress)
        if self._monitor is not None:
            self._config.progress_monitor = self._monitor

    def aim(self, targets: list[str]) -> str:
        """Build for these compute capabilities, whatever GPU is here or none."""
        self._config.num_compute_capabilities = len(targets)
        for index, name in enumerate(targets):
            capability = self._library.ComputeCapability.__members__[name]
            self._config.set_compute_capability(capability, index)
        # A CUDA graph can be captured only where the library allocates nothing of its own.
        self._config.set_flag(self._library.BuilderFlag.REQUIRE_USER_ALLOCATION)
        return "none"

    def attach_cache(self, content: bytes | None) -> str:
        """Use what an earlier build measured; one of another GPU or version is left aside."""
        self._cache = self._config.create_timing_cache(content or b"")
        if self._config.set_timing_cache(self._cache, False):
            return "reused" if content else "fresh"
        self._cache = self._config.create_timing_cache(b"")
        self._config.set_timing_cache(self._cache, False)
        return "fresh"

    def timing_cache(self) -> bytes | None:
        """Return what the build measured."""
        return None if self._cache is None else bytes(self._cache.serialize())

    def build(self) -> bytes:
        """Return the engine."""
        plan = self._builder.build_serialized_network(self._network, self._config)
        if self._monitor is not None and self._monitor.error is not None:
            raise self._monitor.error
        if plan is None:
            raise ModelError(_refusal(self._logger.last(), self._recipe))
        return bytes(plan)


def _configure(library: Any, builder: Any, recipe: Recipe) -> Any:  # noqa: ANN401
    """Return the builder's settings as the recipe has them."""
    config = builder.create_builder_config()
    config.set_memory_pool_limit(library.MemoryPoolType.WORKSPACE, recipe.workspace_mib << 20)
    profile = builder.create_optimization_profile()
    profile.set_shape("image", *recipe.shapes)
    config.add_optimization_profile(profile)
    if not recipe.tf32:  # The library's own default rounds fp32 to 10 bits without a word.
        config.clear_flag(library.BuilderFlag.TF32)
    if recipe.version_compatible:
        config.set_flag(library.BuilderFlag.VERSION_COMPATIBLE)
    if recipe.hardware_compatible != "none":
        levels = library.HardwareCompatibilityLevel.__members__
        config.hardware_compatibility_level = levels[recipe.hardware_compatible.upper()]
    return config


def _make_monitor(library: Any, progress: Progress) -> Any:  # noqa: ANN401
    """Return a monitor that adds up the steps of all phases."""

    class Monitor(library.IProgressMonitor):  # type: ignore[misc]  # the library has no types
        def __init__(self) -> None:
            library.IProgressMonitor.__init__(self)
            self.error: BaseException | None = None
            self._steps: dict[str, tuple[int, int]] = {}  # Of the open phases: done, all.
            self._finished = 0

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            del parent_phase
            self._steps[phase_name] = (0, num_steps)
            self._report()

        def step_complete(self, phase_name: str, step: int) -> bool:
            _, total = self._steps.get(phase_name, (0, step + 1))
            self._steps[phase_name] = (min(step + 1, total), total)
            self._report()
            return self.error is None

        def phase_finish(self, phase_name: str) -> None:
            self._finished += self._steps.pop(phase_name, (0, 0))[1]
            self._report()

        def _report(self) -> None:
            done = self._finished + sum(done for done, _ in self._steps.values())
            known = self._finished + sum(total for _, total in self._steps.values())
            try:
                if self.error is None:
                    progress(done, known)
            except BaseException as error:  # It must not cross the library: raised after the build.
                self.error = error

    return Monitor()


def _parser_errors(parser: Any, library: Any) -> str:  # noqa: ANN401
    """Return what the parser found, the first error in full."""
    errors = [parser.get_error(index) for index in range(parser.num_errors)]
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    where, what = "the model", "no reason given"
    if errors:
        first = errors[0]
        what = " ".join(first.desc().split())
        if first.node_name() or first.node_operator():
            where = f"node {first.node_name()!r} ({first.node_operator() or 'unknown operator'})"
    return (
        f"{library.__name__} {library.__version__} cannot read {where}: {what}{more}; expected a "
        "model file of standard operators, as `magtiles-seg export --to onnx` writes it"
    )


def _refusal(reason: str, recipe: Recipe) -> str:
    """Return why there is no engine, and what to change."""
    if re.search(r"memory|workspace", reason, re.IGNORECASE):
        batch, height, width = recipe.shapes[2]
        fix = (
            f"raise workspace_mib ({recipe.workspace_mib}) in recipe {recipe.name!r}, or lower its "
            f"greatest shape ({batch}x{height}x{width})"
        )
    else:
        fix = "if it names a shape, mend the recipe; else use the .onnx file itself"
    return f"TensorRT could not build the engine: {reason}; {fix}"
