"""Engines: an ONNX model compiled by TensorRT or TensorRT-RTX for a device recipe."""

from __future__ import annotations

import os
import re
import reprlib
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import yaml

from magtiles_seg.config import check_fields, one_of, raise_if_any, within
from magtiles_seg.errors import ConfigError, ModelError
from magtiles_seg.files import read_text, sha256_of
from magtiles_seg.image import MIN_SIDE_PX
from magtiles_seg.infer.backends.vendor import Cuda, import_tensorrt, make_logger, runtime_name
from magtiles_seg.infer.manifest import local_environment

Shape = tuple[int, int, int]
"""(N, H, W): pictures, rows, columns."""

_BYTE_LIMIT_PX = 2**31 - 1
_MOST_BYTES = 1 << 16
_MOST_WORKSPACE_MIB = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What an engine is built for; making one checks types, choices and ranges.

    The engine is tuned for frames of `rows_per_frame` rows of `line_width_px` pixels, and takes
    every shape between the smallest and the greatest that the recipe names.

    Attributes:
        name: What people call it.
        line_width_px: Pixels per row, of the camera.
        rows_per_frame: Rows in a frame.
        batch_min: Least pictures in one run.
        batch_opt: Pictures in one run that the engine is tuned for.
        batch_max: Most pictures in one run; a greater batch is run in parts.
        height_min_px: Least height.
        height_max_px: Greatest height.
        width_min_px: Least width.
        width_max_px: Greatest width.
        precision: Of the arithmetic. The ONNX graph decides it; the recipe says which to make.
        workspace_mib: Most device memory for intermediate results, in MiB.
        compute_capability: Of the device, as `"SM89"`; None: whichever builds.
        version_compatible: Whether a newer TensorRT may run the engine. TensorRT-RTX has no such.
        hardware_compatible: Which other GPUs may run it. TensorRT-RTX takes targets instead.
        tf32: Whether fp32 arithmetic may round to TF32, which is faster and differs in the 4th
            digit.
    """

    name: str
    line_width_px: int = within(2048, MIN_SIDE_PX)
    rows_per_frame: int = within(256, MIN_SIDE_PX)
    batch_min: int = within(1, 1)
    batch_opt: int = within(1, 1)
    batch_max: int = within(1, 1)
    height_min_px: int = within(MIN_SIDE_PX, MIN_SIDE_PX)
    height_max_px: int = within(512, MIN_SIDE_PX)
    width_min_px: int = within(MIN_SIDE_PX, MIN_SIDE_PX)
    width_max_px: int = within(2048, MIN_SIDE_PX)
    precision: str = one_of("fp16", "fp16", "fp32", "int8")
    workspace_mib: int = within(1024, 1, _MOST_WORKSPACE_MIB)
    compute_capability: str | None = None
    version_compatible: bool = False
    hardware_compatible: str = one_of("none", "none", "same_compute_capability", "ampere_plus")
    tf32: bool = False

    def __post_init__(self) -> None:
        """Check every value, then how they stand to each other.

        Raises:
            ConfigError: Wrong types, values out of range or order: all at once.
        """
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        found, _ = check_fields(type(self), "recipe", values)
        raise_if_any(found or _check_order(self), "recipe")

    @property
    def shapes(self) -> tuple[Shape, Shape, Shape]:
        """Least, tuned and greatest (N, H, W) of the input."""
        return (
            (self.batch_min, self.height_min_px, self.width_min_px),
            (self.batch_opt, self.rows_per_frame, self.line_width_px),
            (self.batch_max, self.height_max_px, self.width_max_px),
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the recipe as plain values, as `Recipe(**values)` takes them."""
        return asdict(self)


def load_recipe(path: str | os.PathLike[str]) -> Recipe:
    """Read a recipe; what it leaves out keeps its default, its name is the file's.

    Args:
        path: A YAML file of one mapping.

    Raises:
        FileNotFoundError: There is no such file.
        ConfigError: Unknown keys, wrong types, values out of range: all at once.
    """
    path = Path(path)
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise ConfigError(f"{path} is no recipe: more than {_MOST_BYTES} bytes")
        values = yaml.safe_load(read_text(path))
    except FileNotFoundError:
        raise FileNotFoundError(f"no recipe at {path}") from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
    except RecursionError as error:
        raise ConfigError(f"{path} is no recipe: it is nested too deeply") from error
    except (yaml.YAMLError, ValueError, TypeError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected a mapping of keys, got {type(values).__name__}")
    nested = [reprlib.repr(key) for key, value in values.items() if isinstance(value, dict | list)]
    if nested or not all(isinstance(key, str) for key in values):
        raise ConfigError(
            f"{path}: expected plain names, each with a number or a word, got {nested or 'others'}"
        )
    values = {"name": path.stem, **values}
    found, checked = check_fields(Recipe, "recipe", values)
    raise_if_any(found, str(path))
    try:
        return Recipe(**checked)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def _check_order(recipe: Recipe) -> list[str]:
    """Return what is wrong between values that are each of sense."""
    found = [
        f"{name}: expected least <= tuned <= greatest, got {least} <= {tuned} <= {greatest}"
        for name, least, tuned, greatest in zip(
            (
                "batch_min, batch_opt, batch_max",
                "height_min_px, rows_per_frame, height_max_px",
                "width_min_px, line_width_px, width_max_px",
            ),
            *recipe.shapes,
            strict=True,
        )
        if not least <= tuned <= greatest
    ]
    batch, height, width = recipe.shapes[2]
    if batch * height * width > _BYTE_LIMIT_PX:
        found.append(
            f"the greatest input is {batch}x{height}x{width} px: expected at most {_BYTE_LIMIT_PX}"
        )
    target = recipe.compute_capability
    if target is not None and not re.fullmatch(r"SM\d{2,3}", target):
        found.append(f"recipe.compute_capability: expected such as 'SM89', got {target!r}")
    return found


BuildProgress = Callable[[int, int], None]
"""Told how many steps of a build are done, and of how many."""


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
    progress: BuildProgress | None = None,
    device: int = 0,
) -> BuiltEngine:
    """Compile a model.

    Args:
        onnx_bytes: A model file of this package, already in the precision that is wanted; weights
            that are stored in 8 bits are to be widened, see `magtiles_seg.model.stored`.
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
        environment: Mapping[str, str | list[str]] = {"compute_capability": targets}
    else:
        targets = []
        environment = _own_gpu(recipe, compute_capabilities, device)
    job = _Job(library, onnx_bytes, recipe, progress)
    cache_state = job.aim(targets) if targets else job.attach_cache(timing_cache)
    plan = job.build()
    facts = {
        "environment": {
            **local_environment(runtime_name(flavour), str(library.__version__)),
            **environment,
        },
        "profile": {
            name: list(shape)
            for name, shape in zip(("min", "opt", "max"), recipe.shapes, strict=True)
        },
        "precision": recipe.precision,
        "recipe": recipe.to_dict(),
        "onnx_sha256": sha256_of(onnx_bytes),
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


def _own_gpu(recipe: Recipe, wanted: tuple[str, ...], device: int) -> dict[str, str]:
    """Return the facts of the GPU that the engine is built on, and check that it is meant."""
    gpu = Cuda(device).gpu()
    here = gpu["compute_capability"]
    targets = wanted or (recipe.compute_capability or here,)
    if targets != (here,):
        raise ConfigError(
            f"TensorRT builds for the GPU it runs on, {gpu['gpu']} ({here}), and "
            f"{', '.join(targets)} is wanted: build on that device, choose another "
            "recipe, or use flavour 'rtx'"
        )
    return gpu


class _Job:
    """One build: owns the library's objects, which must outlive each other in this order."""

    def __init__(
        self,
        library: Any,  # noqa: ANN401
        onnx_bytes: bytes,
        recipe: Recipe,
        progress: BuildProgress | None,
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


def _make_monitor(library: Any, progress: BuildProgress) -> Any:  # noqa: ANN401
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
