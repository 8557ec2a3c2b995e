"""ONNX models on OpenVINO, on the CPU."""

from __future__ import annotations

import io
import os
from collections import deque
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from magtiles_seg.errors import (
    BackendUnavailableError,
    ConfigError,
    InferenceError,
    ModelError,
)
from magtiles_seg.files import sha256_of
from magtiles_seg.infer.backends.base import (
    Answer,
    BackendSpec,
    check_answer,
    check_images,
    check_threads,
    parse_device,
)
from magtiles_seg.infer.backends.held import Held
from magtiles_seg.infer.backends.onnxfile import DECISION_OUTPUTS, precision_of, read_onnx
from magtiles_seg.infer.backends.vendor import import_vendor
from magtiles_seg.model.card import CARD_KEY, ModelCard

if TYPE_CHECKING:
    import openvino

_INPUTS = [("image", "u8", 3)]
_OUTPUTS = ["probability", "classes"]
_PRECISIONS = {"fp32": "f32", "bf16": "bf16"}
_INSTALL = "pip install 'magtiles-seg[openvino]'"

_used_by: int | None = None
"""The process that compiled a model first: its threads, but for forks the whole of it."""


@dataclass(frozen=True, eq=False)
class _Loaded:
    """A compiled model, its card, and the requests that wait for the next call."""

    compiled: openvino.CompiledModel
    card: ModelCard
    idle: deque[openvino.InferRequest] = field(default_factory=deque)


class OpenVinoBackend:
    """One compiled model, shared by all threads; each call in progress has its own request."""

    def __init__(
        self,
        path: Path,
        *,
        device: str = "cpu",
        threads: int | None = None,
        precision: str | None = None,
    ) -> None:
        """Compile an ONNX model for this CPU.

        OpenVINO left to itself computes in bf16 wherever the CPU can, which moves the answers. Here
        the arithmetic is what was asked for, and fp32 when nothing was.

        Args:
            path: A file that `magtiles_seg.export` wrote.
            device: `"cpu"`.
            threads: Of one inference; None: all physical cores that the process may use.
            precision: `"fp32"` or, where the CPU has it, `"bf16"`; None: `"fp32"`.

        Raises:
            FileNotFoundError: There is no such file.
            ModelError: The file is damaged, or not a model of this package.
            ConfigError: The device, the precision or the number of threads is invalid.
            BackendUnavailableError: OpenVINO is not installed, or the CPU has no bf16.
        """
        parse_device(device, accelerators=())
        threads = check_threads(threads)
        precision = precision or "fp32"
        if precision not in _PRECISIONS:
            raise ConfigError(
                f"unknown precision {precision!r}: OpenVINO computes in {', '.join(_PRECISIONS)}"
            )
        data = read_onnx(path)
        compiling = partial(_compile, data, path, threads=threads, precision=precision)
        self._loaded = Held(compiling, str(path), again=_refuse_fork)
        loaded = self._loaded.get()
        self.spec = BackendSpec(
            name="openvino",
            device="cpu",
            provider=_provider(),
            threads=int(loaded.compiled.get_property("INFERENCE_NUM_THREADS")),
            path=path,
            sha256=sha256_of(data),
            card=loaded.card,
            precision=_arithmetic(precision_of(data), precision),
        )

    def infer(self, images: npt.NDArray[np.uint8]) -> Answer:
        """Answer as every `Backend`."""
        check_images(images)
        loaded = self._loaded.get()
        try:
            try:
                request = loaded.idle.pop()
            except IndexError:
                request = loaded.compiled.create_infer_request()
            request.infer([np.ascontiguousarray(images)], share_inputs=True)
            # Copies: the next call of this request overwrites its own tensors.
            probability, classes = (request.get_tensor(name).data.copy() for name in _OUTPUTS)
        except RuntimeError as error:
            raise InferenceError(
                f"OpenVINO failed on pictures {images.shape}: {_reason(error)}; "
                "if memory ran out, use smaller pictures"
            ) from error
        loaded.idle.append(request)
        check_answer(probability, classes, images.shape)
        return probability, classes

    def close(self) -> None:
        """Free the model once the calls in progress have ended."""
        self._loaded.close()


def has_bf16() -> bool:
    """Return whether OpenVINO would compute in bf16 on this CPU.

    Raises:
        BackendUnavailableError: OpenVINO is not installed.
    """
    capabilities: list[str] = _core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return "BF16" in capabilities


def _core() -> openvino.Core:
    _refuse_fork()
    library = import_vendor("openvino", _INSTALL)
    try:
        core: openvino.Core = library.Core()
    except Exception as error:
        raise BackendUnavailableError(
            f"OpenVINO {library.__version__} does not start ({_reason(error)}): {_INSTALL}"
        ) from error
    return core


def _refuse_fork() -> Any:  # noqa: ANN401 - a forked child has nothing to return
    """Raise if OpenVINO was used before this process was forked.

    Its scheduler (oneTBB) then counts on threads that do not exist: now and then a child hangs.

    Raises:
        BackendUnavailableError: It was.
    """
    if _used_by not in (None, os.getpid()):
        raise BackendUnavailableError(
            "OpenVINO was used before this process was forked, and does not survive that: start "
            "the workers by multiprocessing's 'spawn' or 'forkserver', use OpenVINO in the workers "
            "only, or take backend='onnxruntime'"
        )


def _compile(data: bytes, path: Path, *, threads: int, precision: str) -> _Loaded:
    global _used_by
    core = _core()
    _used_by = os.getpid()
    if precision == "bf16" and not has_bf16():
        raise BackendUnavailableError(
            "this CPU has no bf16 (AVX512_BF16 or AMX), and OpenVINO would compute in fp32: "
            "use precision='fp32'"
        )
    options = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": _PRECISIONS[precision],
    }
    try:
        model = core.read_model(io.BytesIO(data))
        card = _read_card(model, path)
        return _Loaded(core.compile_model(model, "CPU", options), card)
    except RuntimeError as error:
        fix = "use precision='fp32'" if precision == "bf16" else "export the model again"
        raise ModelError(f"OpenVINO cannot load {path}: {_reason(error)}; {fix}") from error


def _read_card(model: openvino.Model, path: Path) -> ModelCard:
    inputs = [
        (entry.any_name, entry.element_type.get_type_name(), len(entry.partial_shape))
        for entry in model.inputs
    ]
    outputs = [entry.any_name for entry in model.outputs]
    where: list[Any] = ["framework", CARD_KEY]
    fixed = any(side.is_static for entry in model.inputs for side in entry.partial_shape)
    known = outputs in (_OUTPUTS, [*_OUTPUTS, *DECISION_OUTPUTS])
    ours = inputs == _INPUTS and known and model.has_rt_info(where)
    if fixed or not ours:
        raise ModelError(
            f"{path} is not a magtiles-seg model: expected one input 'image' u8 (N, H, W), "
            f"any size, outputs {_OUTPUTS} and the metadata {CARD_KEY!r}, got inputs {inputs}, "
            f"outputs {outputs}; make the file with `magtiles-seg export`"
        )
    return ModelCard.from_json(str(model.get_rt_info(where).value))


def _arithmetic(stored: str, asked: str) -> str:
    """Return in what a file is computed where the runtime is asked for fp32 or bf16.

    OpenVINO multiplies in int8 what the file quantizes, and all the rest as it is asked.
    """
    if stored == "int8":
        return stored if asked == "fp32" else f"{stored} and {asked}"
    return asked


def _provider() -> str:
    from importlib.metadata import version

    return f"OpenVINO {version('openvino')} CPU"


def _reason(error: Exception) -> str:
    """Return the last line of OpenVINO's message; those before it name its source files."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
