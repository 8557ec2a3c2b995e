"""Artefacts: a model in a precision, for a runtime, with its manifest, if it passes parity."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from magtiles_seg.errors import (
    BackendUnavailableError,
    ConfigError,
    ModelError,
    ParityError,
    StaleEngineError,
)
from magtiles_seg.export.decision_graph import check_decision, with_decision, without_decision
from magtiles_seg.export.engine import Recipe
from magtiles_seg.export.parity import ParityReport, TileSet, Tolerance, check, compare
from magtiles_seg.export.precision import convert, rehearse_fp16
from magtiles_seg.export.repositories import (
    check_repository,
    repository_path,
    write_ovms_config,
    write_triton_config,
)
from magtiles_seg.export.sealed import parse_sealed
from magtiles_seg.files import sha256_of, write
from magtiles_seg.infer.backends import open_backend
from magtiles_seg.infer.backends.base import Backend, parse_device, read_model
from magtiles_seg.infer.manifest import Manifest, local_environment
from magtiles_seg.model.card import ModelCard, check_seal

if TYPE_CHECKING:
    from magtiles_seg.export.engine import BuiltEngine

TARGETS = {
    "onnx": "onnxruntime",
    "openvino": "openvino",
    "tensorrt": "tensorrt",
    "rtx": "tensorrt-rtx",
    "triton": "onnxruntime",
    "ovms": "openvino",
}
"""What an artefact can be made for, and the package that runs it."""

ENGINES = ("tensorrt", "rtx")

SERVERS = {"triton": write_triton_config, "ovms": write_ovms_config}
"""Targets that are a folder which an inference server loads, and what describes a model to it."""

_TURNS, _CALLS = 12, 3
"""Of the timing of an int8 file beside fp32."""

StageProgress = Callable[[str, int, int], None]
"""Called with what goes on (`"quantize"`, `"build"` or `"compare"`), how much is done, and of how
much."""


@dataclass(frozen=True, kw_only=True)
class Order:
    """What is to be made.

    Attributes:
        target: One of `TARGETS`.
        precision: `"fp32"`, `"fp16"` or `"int8"`, of the arithmetic.
        recipe: Shapes and options of an engine; the other targets take none.
        with_decision: Whether the graph gives mask, score and verdict as well; not of an engine.
        compute_capabilities: Of an engine of `"rtx"`, as `("SM86", "SM120")`; empty: the recipe's.
        tolerance: How far the artefact may stray from the fp32 model.
        min_speedup: Least speed of a file for a CPU, as a multiple of fp32's in the same runtime on
            this machine; 0: it is not measured.
        device: The GPU that an engine is built and compared on, `"cuda"` or `"cuda:N"`.

    Raises:
        ConfigError: The target is unknown, or the parts do not fit it.
    """

    target: str
    precision: str
    recipe: Recipe | None = None
    with_decision: bool = False
    compute_capabilities: tuple[str, ...] = ()
    tolerance: Tolerance = field(default_factory=Tolerance)
    min_speedup: float = 0.0
    device: str = "cuda"

    def __post_init__(self) -> None:
        """Check that the parts fit the target."""
        if self.target not in TARGETS:
            raise ConfigError(
                f"unknown target {self.target!r}: expected one of {', '.join(TARGETS)}"
            )
        if self.target not in ENGINES and (self.recipe or self.compute_capabilities):
            raise ConfigError(
                f"a recipe and compute capabilities are for an engine, got target {self.target!r}: "
                "leave them out, or export to tensorrt or rtx"
            )
        if parse_device(self.device)[0] != "cuda":
            raise ConfigError(
                f"an engine is built and compared on a GPU, got device {self.device!r}: expected "
                "'cuda' or 'cuda:N'"
            )
        if self.target in ENGINES and self.with_decision:
            raise ConfigError(
                "an engine is run by this library, which decides itself: leave the decision out of "
                "it, or export to onnx, which TensorRT reads as well"
            )


def export_artefact(
    model: Path,
    folder: Path,
    order: Order,
    *,
    proof: TileSet,
    int8_tiles: TileSet | None = None,
    card: ModelCard | None = None,
    progress: StageProgress | None = None,
) -> tuple[Path, Manifest]:
    """Write a model as an artefact and its manifest, if it answers as the model does.

    Args:
        model: An fp32 `.onnx` file of this package, or a `.safetensors` checkpoint.
        folder: Where to write; made when missing. Older files of the same name are replaced, and
            only by whole and proved ones.
        order: What to make.
        proof: On which the artefact is compared with the model.
        int8_tiles: From which int8 takes its ranges; the other precisions need none.
        card: Of a checkpoint, what the artefact is to say about itself; None: what it tells.
        progress: See `StageProgress`.

    Returns:
        The path of the engine or the ONNX file, and its manifest. Beside an engine stands the ONNX
        file it was built from. An engine for a GPU that is not here cannot run: its manifest then
        says that the ONNX graph was compared in its place.

    Raises:
        FileNotFoundError: There is no such model.
        ModelError: It is damaged, no fp32 model, or the runtime cannot compile it.
        ParityError: The artefact answers differently, or is not worth it; nothing is written.
        ConfigError: The order is invalid, int8 lacks its tiles, or a server takes no such name.
        DataError: The folder has a `config.json` that is no list of models for the server.
        BackendUnavailableError: The runtime is not installed.
    """
    progress = progress or (lambda _stage, _done, _total: None)
    stem = f"{model.stem}-{order.precision}"
    if order.target in SERVERS:
        check_repository(folder, stem, order.target)
    source = _fp32_onnx(model, card)
    pictures = int8_tiles.pictures if int8_tiles else ()
    data = convert(
        source,
        order.precision,
        pictures=pictures,
        unsigned=order.target not in ENGINES,
        progress=partial(progress, "quantize"),
    )
    if order.with_decision:
        data = with_decision(data)
        check_decision(data, proof.pictures)
    with tempfile.TemporaryDirectory() as scratch, _reference(model, source, scratch) as reference:
        gate = _Gate(reference, order.tolerance, proof, Path(scratch), partial(progress, "compare"))
        write(gate.plain, source)
        manifest = _draft(data, order)
        if order.precision == "fp16":
            gate.pass_bytes("rehearsal", rehearse_fp16(source))
        if order.target in ENGINES:
            gate.pass_bytes("onnx", data)
            built = _build(data, order, folder / f"{stem}.timing", partial(progress, "build"))
            path, content = _engine_path(folder, stem, order), built.plan
            known = {entry.name for entry in fields(Manifest)}
            facts = {key: value for key, value in built.facts.items() if key in known}
            manifest = replace(manifest, **{**facts, "precision": order.precision})
            gate.fit(manifest.profile)
        else:
            path, content = _onnx_path(folder, stem, order), data
        manifest = replace(manifest, sha256=sha256_of(content))
        written = _write(path, content, manifest, gate, order)
    if order.target in ENGINES:  # a stale engine is built again from it
        write(folder / f"{stem}.onnx", data, durable=True)
    if order.target in SERVERS:
        SERVERS[order.target](folder, stem)
    return path, written


def _draft(data: bytes, order: Order) -> Manifest:
    """Return what can be said of an artefact before it is built."""
    _, card = parse_sealed(data, "the converted model")
    return Manifest(
        sha256="",
        onnx_sha256=sha256_of(data),
        precision=order.precision,
        environment=local_environment(TARGETS[order.target]),
        card=card,
    )


def _onnx_path(folder: Path, stem: str, order: Order) -> Path:
    return repository_path(folder, stem) if order.target in SERVERS else folder / f"{stem}.onnx"


def _engine_path(folder: Path, stem: str, order: Order) -> Path:
    suffix = f"-{order.recipe.name}" if order.recipe else ""
    return folder / f"{stem}{suffix}.engine"


def _build(
    data: bytes, order: Order, cache: Path, progress: Callable[[int, int], None]
) -> BuiltEngine:
    """Return an engine; what the builder measured is kept for the next build on the same GPU."""
    from magtiles_seg.export.engine import build_engine

    recipe = order.recipe or Recipe(name="default")
    measured = cache.read_bytes() if order.target == "tensorrt" and cache.exists() else None
    built = build_engine(
        data,
        replace(recipe, precision=order.precision),
        flavour=order.target,
        compute_capabilities=order.compute_capabilities,
        timing_cache=measured,
        progress=progress,
        device=parse_device(order.device)[1],
    )
    if built.timing_cache is not None:
        write(cache, built.timing_cache)
    return built


def _write(path: Path, content: bytes, manifest: Manifest, gate: _Gate, order: Order) -> Manifest:
    """Put artefact and manifest in place if the artefact itself passes, wherever it can run.

    It is proved elsewhere: of a killed export nothing stays that a server, which may take any
    `.onnx` file in its folder, could load.
    """
    candidate = gate.scratch / "artefact" / path.name  # a name that nothing else there has
    write(candidate, content)
    manifest.write(candidate)  # an engine is loaded by its manifest
    try:
        with closing(_open(candidate, order)) as backend:
            gate.pass_backend("artefact", backend)
        if order.min_speedup and order.target not in ENGINES:
            gate.pass_speed(candidate, TARGETS[order.target], order.min_speedup)
    except (BackendUnavailableError, StaleEngineError):  # no GPU here, or none it is built for
        if order.target != "rtx":
            raise
    manifest = replace(manifest, parity=gate.parity)
    write(path, content, durable=True)
    manifest.write(path)
    return manifest


def _open(path: Path, order: Order) -> Backend:
    if order.target in ENGINES:
        return open_backend(path, device=order.device)
    return open_backend(path, device="cpu", backend=TARGETS[order.target])


def _fp32_onnx(model: Path, card: ModelCard | None) -> bytes:
    """Return a model as an fp32 ONNX file that does not decide."""
    if model.suffix.lower() == ".engine":
        raise ModelError(
            f"{model} is an engine, from which nothing is exported: name the .onnx file beside it, "
            "or the checkpoint"
        )
    if model.suffix.lower() == ".safetensors":
        from magtiles_seg.export.graph import checkpoint_onnx

        return checkpoint_onnx(model, card)
    data = read_model(model)
    check_seal(data, str(model))
    return without_decision(data)


@contextmanager
def _reference(model: Path, source: bytes, scratch: str) -> Iterator[Backend]:
    """Give the fp32 model: eager torch of a checkpoint, otherwise the ONNX file."""
    eager = model.suffix.lower() == ".safetensors"
    path = model if eager else Path(scratch) / model.name
    if not eager:
        write(path, source)
    with closing(open_backend(path, device="cpu")) as backend:
        yield backend


class _Gate:
    """Compares whatever is about to be written with the reference, and remembers the figures."""

    def __init__(
        self,
        reference: Backend,
        tolerance: Tolerance,
        proof: TileSet,
        scratch: Path,
        progress: Callable[[int, int], None],
    ) -> None:
        self.parity: dict[str, Any] = {"tiles": str(proof), "tolerance": asdict(tolerance)}
        self._reference = reference
        self._tolerance = tolerance
        self._proof = proof
        self.scratch = scratch
        self._progress = progress
        self.plain = scratch / "fp32.onnx"

    def fit(self, profile: Mapping[str, list[int]]) -> None:
        """Bring the tiles to the shapes (N, H, W) that an engine takes."""
        self._proof = self._proof.within(profile["min"][1:], profile["max"][1:])

    def pass_bytes(self, subject: str, data: bytes) -> None:
        """Compare an ONNX file on onnxruntime.

        Raises:
            ParityError: It answers differently.
        """
        path = self.scratch / f"{subject}.onnx"
        write(path, data)
        with closing(open_backend(path, device="cpu", backend="onnxruntime")) as candidate:
            self.pass_backend(subject, candidate)

    def pass_backend(self, subject: str, candidate: Backend) -> None:
        """Compare a loaded model.

        Raises:
            ParityError: It answers differently.
        """
        report: ParityReport = compare(
            self._reference,
            candidate,
            self._proof.pictures,
            classes=self._proof.classes,
            decision=candidate.spec.card.decision,
            progress=self._progress,
        )
        check(report, self._tolerance)
        self.parity[subject] = {"ran_on": candidate.spec.provider, **report.to_dict()}

    def pass_speed(self, path: Path, backend: str, least: float) -> None:
        """Time an artefact beside the fp32 file `plain`, by turns, on one core.

        Raises:
            ParityError: It is too slow.
        """
        picture = self._proof.pictures[0][None]
        with ExitStack() as stack:
            plain, candidate = (
                stack.enter_context(closing(open_backend(one, backend=backend, threads=1)))
                for one in (self.plain, path)
            )
            ratios = [_cpu_s(plain, picture) / _cpu_s(candidate, picture) for _ in range(_TURNS)]
        gained = float(np.median(ratios[1:]))
        if gained < least:
            raise ParityError(
                f"the file answers as its reference, but runs at {gained:.2f} times the speed of "
                f"fp32 on {backend} here, expected at least {least:g}: use fp32, or export for "
                "openvino; --set export.int8_min_speedup=0 writes it for another machine"
            )
        self.parity["times_fp32"] = round(gained, 3)


def _cpu_s(model: Backend, picture: npt.NDArray[np.uint8]) -> float:
    """Return the CPU time of a few inferences, which other work on the machine leaves alone."""
    model.infer(picture)
    start = time.process_time()
    for _ in range(_CALLS):
        model.infer(picture)
    return time.process_time() - start
