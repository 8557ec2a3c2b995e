"""Who takes part in a benchmark: ways to run a model on this machine, and what to compare with."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from magtiles_seg.errors import BackendUnavailableError, ConfigError, ModelError
from magtiles_seg.infer.backends import BACKENDS, choose_backend, default_device, open_backend
from magtiles_seg.infer.backends.base import Answer, check_threads
from magtiles_seg.infer.backends.onnxfile import precision_of, read_onnx
from magtiles_seg.infer.backends.vendor import import_onnxruntime
from magtiles_seg.infer.segmenter import Segmenter
from magtiles_seg.model.card import JOINT

if TYPE_CHECKING:
    from magtiles_seg.infer.backends import Backend, BackendSpec

_GEMM_SIDE = 1024
_GPU_PROVIDERS = {"CUDAExecutionProvider": "cuda", "TensorrtExecutionProvider": "tensorrt"}


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One way to run a model; a `Segmenter` takes the same words."""

    path: Path
    backend: str
    device: str = "cpu"
    threads: int | None = None
    precision: str | None = None

    def open(self) -> Segmenter:
        """Return a Segmenter that runs so."""
        return Segmenter(
            self.path,
            backend=self.backend,
            device=self.device,
            threads=self.threads,
            precision=self.precision,
        )


@dataclass(frozen=True, kw_only=True)
class Case:
    """What is segmented in one call: `batch` pictures of one size."""

    height_px: int
    width_px: int
    batch: int = 1

    @property
    def pixels(self) -> int:
        """Of all pictures of a call."""
        return self.height_px * self.width_px * self.batch

    def pictures(self) -> npt.NDArray[np.uint8]:
        """Return (batch, H, W) uint8, one synthetic tile with a defect."""
        from magtiles_seg.dataset.synthetic import synthetic_tile

        size_hw = (self.height_px, self.width_px)
        tile = synthetic_tile(1, defect="blowhole", size_hw=size_hw).image
        return np.ascontiguousarray(np.broadcast_to(tile, (self.batch, *size_hw)))


@dataclass(kw_only=True)
class Entry:
    """What takes its turns in a benchmark.

    Attributes:
        name: How the table calls it.
        kind: `"candidate"`, or what candidates are compared with: `"eager"`, `"reference"`,
            `"sgemm"`.
        call: One counted call.
        gflop: Multiplications and additions of a call, in 10^9; None: unknown.
        candidate: What it runs; None for those that are only compared with.
        spec: Of the candidate's backend.
        inside_s: Seconds that candidates have spent within the runtime; whoever times them resets
            it.
    """

    name: str
    kind: str
    call: Callable[[], Any]
    gflop: float | None = None
    candidate: Candidate | None = None
    spec: BackendSpec | None = None
    inside_s: float = 0.0


def find_candidates(
    model: Path,
    *,
    also: Sequence[Path] = (),
    backends: Sequence[str] = (),
    threads: Sequence[int] = (),
) -> list[Candidate]:
    """Return every way to run a model that this machine has.

    Args:
        model: An ONNX file.
        also: Other files of the same model, such as its int8 version; an engine runs on the GPU.
        backends: Only these, and an error where one is not there; none: all that are installed.
        threads: Of one inference on a CPU; none: all cores.

    Raises:
        ConfigError: A backend is invalid here.
        BackendUnavailableError: A backend that was named is not installed.
        FileNotFoundError, ModelError: A file is no model.
    """
    for name in backends:
        if BACKENDS.get(name) != ".onnx":
            known = [name for name, suffix in BACKENDS.items() if suffix == ".onnx"]
            raise ConfigError(f"backend {name!r} runs no ONNX files: expected some of {known}")
    found = []
    for backend in backends or ("onnxruntime", "openvino"):
        ways: list[dict[str, Any]] = []
        with suppress(*(() if backends else (BackendUnavailableError,))):
            ways = _ways(backend)
        for path in (model, *also):
            for way in ways if path.suffix.lower() == ".onnx" else ():
                if not _runs(path, way):
                    continue
                counts = (threads or (None,)) if way["device"] == "cpu" else (None,)
                found += [
                    Candidate(path=path, backend=backend, threads=check_threads(count), **way)
                    for count in counts
                ]
    return found + [_only_way(path) for path in (model, *also) if path.suffix.lower() != ".onnx"]


def _runs(path: Path, way: dict[str, Any]) -> bool:
    """Return whether OpenVINO has bf16 for what an int8 file leaves: of some convolutions not.

    Raises:
        FileNotFoundError, ModelError: It is no model file.
    """
    if way.get("precision") != "bf16" or precision_of(read_onnx(path)) != "int8":
        return True
    try:
        open_backend(path, backend="openvino", precision="bf16").close()
    except ModelError:
        return False
    return True


def _only_way(path: Path) -> Candidate:
    """Return how an engine or a checkpoint runs.

    Raises:
        ModelError: It is no model file.
    """
    backend, device = choose_backend(path), default_device(path)
    return Candidate(path=path, backend=backend, device=device, threads=check_threads(None))


def _ways(backend: str) -> list[dict[str, Any]]:
    """Return devices and precisions of an installed backend."""
    if backend == "openvino":
        from magtiles_seg.infer.backends.openvino import has_bf16

        precisions = ("fp32", "bf16") if has_bf16() else ("fp32",)
        return [{"device": "cpu", "precision": precision} for precision in precisions]
    available = import_onnxruntime().get_available_providers()
    gpus = [device for provider, device in _GPU_PROVIDERS.items() if provider in available]
    return [{"device": device} for device in ("cpu", *gpus)]


def enter(candidate: Candidate, case: Case) -> Entry:
    """Return a candidate that is ready to segment, end to end, and times its runtime apart."""
    segmenter = candidate.open()
    pictures = case.pictures()
    spec = segmenter.spec
    entry = Entry(
        name=f"{candidate.path.stem}, {spec.name} {spec.device} {spec.precision}",
        kind="candidate",
        call=lambda: segmenter.batch(pictures),
        gflop=network_gflop(spec.card.architecture, spec.card.labels, case),
        candidate=candidate,
        spec=spec,
    )
    segmenter._backend = _Timed(segmenter.backend, entry)
    if case.batch == 1:
        entry.call = lambda: segmenter(pictures[0])
    return entry


class _Timed:
    """A backend that notes in its entry how long each call takes."""

    def __init__(self, backend: Backend, entry: Entry) -> None:
        self._backend, self._entry = backend, entry

    @property
    def spec(self) -> BackendSpec:
        return self._backend.spec

    def infer(self, images: npt.NDArray[np.uint8]) -> Answer:
        start = time.perf_counter()
        answer = self._backend.infer(images)
        self._entry.inside_s += time.perf_counter() - start
        return answer

    def close(self) -> None:
        self._backend.close()


def enter_eager(architecture: str, labels: tuple[str, ...], case: Case) -> Entry:
    """Return the network in eager torch fp32, with fresh weights: its speed is the same.

    Raises:
        BackendUnavailableError: torch is not installed, or this version has no such network.
    """
    torch, fresh_graph = _torch_parts()
    graph = fresh_graph(architecture, labels)
    pictures = torch.full(_shape(case), 127, dtype=torch.uint8)

    @torch.inference_mode()  # type: ignore[untyped-decorator]
    def call() -> None:
        graph(pictures)

    gflop = network_gflop(architecture, labels, case)
    return Entry(name="eager torch fp32", kind="eager", call=call, gflop=gflop)


def enter_reference() -> Entry:
    """Return the reference network in eager torch fp32, on the one picture size that it takes.

    Raises:
        BackendUnavailableError: torch is not installed.
    """
    torch, _ = _torch_parts()
    from magtiles_seg.bench.reference import SIDE_PX, ReferenceNetwork

    network = ReferenceNetwork().eval()
    picture = torch.full((1, 3, SIDE_PX, SIDE_PX), 0.5)

    @torch.inference_mode()  # type: ignore[untyped-decorator]
    def call() -> None:
        network(picture)

    name = f"reference at {SIDE_PX}x{SIDE_PX}, eager"
    return Entry(name=name, kind="reference", call=call)


def enter_gemm() -> Entry:
    """Return a large matrix product: what this machine's arithmetic can reach.

    Raises:
        BackendUnavailableError: torch is not installed.
    """
    torch, _ = _torch_parts()
    left, right = (torch.full((_GEMM_SIDE, _GEMM_SIDE), 0.5) for _ in range(2))
    gflop = 2 * _GEMM_SIDE**3 / 1e9
    return Entry(
        name=f"sgemm {_GEMM_SIDE}",
        kind="sgemm",
        call=lambda: torch.mm(left, right),
        gflop=gflop,
    )


_TRUNKS = {"patches": "lite0"}
"""Whose frozen layers a network has, where it is not named for them."""


def network_gflop(architecture: str, labels: tuple[str, ...], case: Case) -> float | None:
    """Return the 10^9 operations of a network's convolutions.

    None if it cannot be built here, or joins two of a kind: a file computes layers that they share
    once, and how many these are its card does not tell.
    """
    names = architecture.split(JOINT)
    if len({_TRUNKS.get(name, name) for name in names}) < len(names):
        return None
    try:
        torch, fresh_graph = _torch_parts()
        with torch.device("meta"):
            graph = fresh_graph(architecture, labels)
    except BackendUnavailableError:
        return None
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"), FlopCounterMode(display=False) as counter, torch.inference_mode():
        graph(torch.zeros(_shape(case), dtype=torch.uint8))
    return float(counter.get_total_flops()) / 1e9


def _shape(case: Case) -> tuple[int, int, int]:
    return case.batch, case.height_px, case.width_px


def _torch_parts() -> tuple[Any, Any]:
    try:
        import torch

        from magtiles_seg.infer.backends.eager import InferenceGraph
        from magtiles_seg.model.checkpoint import network_of
    except ImportError as error:
        raise BackendUnavailableError(
            "comparing with eager torch needs torch: pip install 'magtiles-seg[train]'"
        ) from error

    def fresh_graph(architecture: str, labels: tuple[str, ...]) -> InferenceGraph:
        try:
            return InferenceGraph(network_of(architecture, labels)).eval()
        except ConfigError as error:
            raise BackendUnavailableError(f"no comparison with eager torch: {error}") from error

    return torch, fresh_graph
