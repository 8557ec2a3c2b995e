"""ONNX models on onnxruntime: on the CPU, or on an NVIDIA GPU by CUDA or TensorRT."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from magtiles_seg.errors import BackendUnavailableError, InferenceError, ModelError
from magtiles_seg.files import sha256_of
from magtiles_seg.infer.backends.base import (
    BackendSpec,
    check_answer,
    check_images,
    check_threads,
    parse_device,
)
from magtiles_seg.infer.backends.held import Held, gpu_after_fork
from magtiles_seg.infer.backends.onnxfile import DECISION_OUTPUTS, read_again, read_onnx
from magtiles_seg.infer.backends.vendor import first_line, import_onnxruntime
from magtiles_seg.model.card import CARD_KEY, ModelCard

if TYPE_CHECKING:
    import onnxruntime

_OUTPUTS = ["probability", "classes"]
_TENSORS = [
    ("image", "tensor(uint8)", 3),
    ("probability", "tensor(float)", 3),
    ("classes", "tensor(uint8)", 3),
]
_DECISION_TENSORS = [
    (name, "tensor(float)" if name == "score" else "tensor(uint8)", 3 if name == "mask" else 1)
    for name in DECISION_OUTPUTS
]
_FATAL_ONLY = 4  # What fails is raised as an exception; the runtime need not print it as well.
_GPU_FIX = "pip uninstall -y onnxruntime && pip install onnxruntime-gpu"
_PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
}


class OrtBackend:
    """One onnxruntime session, shared by all threads."""

    def __init__(self, path: Path, *, device: str = "cpu", threads: int | None = None) -> None:
        """Load an ONNX model.

        Args:
            path: A file that `magtiles_seg.export` wrote.
            device: `"cpu"`, `"cuda"`, `"cuda:N"`, `"tensorrt"` or `"tensorrt:N"`: the last two are
                onnxruntime's TensorRT execution provider, with CUDA for what TensorRT cannot run.
            threads: Of one inference on a CPU; None: all physical cores that the process may use.

        Raises:
            FileNotFoundError: There is no such file.
            ModelError: The file is damaged, or not a model of this package.
            ConfigError: The device or the number of threads is invalid.
            BackendUnavailableError: onnxruntime, or its support for the device, is not installed.
        """
        kind, number = parse_device(device, accelerators=("cuda", "tensorrt"))
        threads = check_threads(threads)
        data = read_onnx(path)
        sha256 = sha256_of(data)
        where = path.absolute()
        open_session = partial(_open_session, path=path, kind=kind, number=number, threads=threads)
        self._session: Held[onnxruntime.InferenceSession] = Held(
            lambda: open_session(data),
            str(path),
            again=gpu_after_fork
            if kind != "cpu"
            else lambda: open_session(read_again(where, sha256)),
        )
        session = self._session.get()
        self._gpu = None if kind == "cpu" else number
        self._spec = BackendSpec(
            name="onnxruntime",
            device="cpu" if kind == "cpu" else f"{kind}:{number}",
            provider=session.get_providers()[0],
            threads=threads,
            path=path,
            sha256=sha256,
            card=_read_card(session, path),
        )

    @property
    def spec(self) -> BackendSpec:
        """What runs, and on what."""
        return self._spec

    def infer(
        self, images: npt.NDArray[np.uint8]
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.uint8]]:
        """Return probability (N, H, W) float32 and classes (N, H, W) uint8 of (N, H, W) uint8.

        Raises:
            InferenceError: The pictures do not fit, the backend is closed, or onnxruntime failed.
        """
        check_images(images)
        session = self._session.get()
        try:
            if self._gpu is None:
                probability, classes = session.run(_OUTPUTS, {"image": images})
            else:
                probability, classes = _run_bound(session, images, self._gpu)
        except Exception as error:
            raise InferenceError(
                f"onnxruntime failed on pictures {images.shape}: {first_line(error)}; "
                "if memory ran out, use smaller pictures"
            ) from error
        check_answer(probability, classes, images.shape)
        return probability, classes

    def close(self) -> None:
        """Free the session once the calls in progress have ended."""
        self._session.close()


def _open_session(
    data: bytes, *, path: Path, kind: str, number: int, threads: int
) -> onnxruntime.InferenceSession:
    onnxruntime = import_onnxruntime()
    available = onnxruntime.get_available_providers()
    if _PROVIDERS[kind] not in available:
        raise BackendUnavailableError(
            f"device {kind!r} needs the GPU build of onnxruntime with {_PROVIDERS[kind]}, "
            f"got {available}: {_GPU_FIX}"
        )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = _FATAL_ONLY
    try:
        session = onnxruntime.InferenceSession(
            data, options, providers=_providers(kind, number), enable_fallback=0
        )
    except Exception as error:
        if kind != "cpu":
            raise BackendUnavailableError(
                f"onnxruntime cannot use {kind}:{number}: {first_line(error)}"
            ) from error
        raise ModelError(
            f"onnxruntime cannot load {path}: {first_line(error)}; export the model again"
        ) from error
    _check_provider(session, kind, number)
    return session


def _providers(kind: str, number: int) -> list[Any]:
    """Return the execution providers for a device, and behind it those for what it cannot run."""
    order = ["cpu"] if kind == "cpu" else list(dict.fromkeys((kind, "cuda", "cpu")))
    return [
        _PROVIDERS[name] if name == "cpu" else (_PROVIDERS[name], {"device_id": number})
        for name in order
    ]


def _run_bound(
    session: onnxruntime.InferenceSession, images: npt.NDArray[np.uint8], number: int
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.uint8]]:
    """Run with input and outputs bound to GPU memory: each is copied once, and nothing between."""
    onnxruntime = import_onnxruntime()
    binding = session.io_binding()
    binding.bind_ortvalue_input(
        "image",
        onnxruntime.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(images), "cuda", number),
    )
    for name in _OUTPUTS:
        binding.bind_output(name, "cuda", number)
    session.run_with_iobinding(binding)
    probability, classes = binding.copy_outputs_to_cpu()
    return probability, classes


def _check_provider(session: onnxruntime.InferenceSession, kind: str, number: int) -> None:
    """Raise if onnxruntime settled for another provider, as it does without a word."""
    used = session.get_providers()
    if used[0] != _PROVIDERS[kind]:
        raise BackendUnavailableError(
            f"onnxruntime did not start on {kind}:{number} and would run on {used[0]}: check the "
            "NVIDIA driver and the libraries (CUDA, cuDNN, TensorRT) that onnxruntime-gpu asks "
            "for, or use device='cpu'"
        )


def _read_card(session: onnxruntime.InferenceSession, path: Path) -> ModelCard:
    text = session.get_modelmeta().custom_metadata_map.get(CARD_KEY)
    inputs = [(entry.name, entry.type, entry.shape) for entry in session.get_inputs()]
    outputs = [(entry.name, entry.type, entry.shape) for entry in session.get_outputs()]
    found = [(name, kind, len(shape)) for name, kind, shape in (*inputs, *outputs)]
    if text is None or found not in (_TENSORS, _TENSORS + _DECISION_TENSORS):
        raise ModelError(
            f"{path} is not a magtiles-seg model: expected {_TENSORS} and the metadata "
            f"{CARD_KEY!r}, got {found}; make the file with `magtiles-seg export`"
        )
    if any(isinstance(side, int) for side in inputs[0][2]):
        raise ModelError(
            f"{path} takes pictures of one size only, {inputs[0][2]}; expected a model for any "
            "(N, H, W): make the file with `magtiles-seg export`"
        )
    return ModelCard.from_json(text)
