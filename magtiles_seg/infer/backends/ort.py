"""ONNX models on onnxruntime: on the CPU, or on an NVIDIA GPU by CUDA or TensorRT."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from magtiles_seg.errors import BackendUnavailableError, InferenceError, ModelError
from magtiles_seg.files import sha256_of
from magtiles_seg.infer.backends.base import (
    Answer,
    BackendSpec,
    check_answer,
    check_images,
    check_shape,
    check_threads,
    parse_device,
)
from magtiles_seg.infer.backends.held import Held, gpu_after_fork
from magtiles_seg.infer.backends.onnxfile import (
    DECISION_OUTPUTS,
    precision_of,
    read_again,
    read_onnx,
)
from magtiles_seg.infer.backends.ortgpu import (
    GPU_FIX,
    PROVIDERS,
    Profile,
    check_profile,
    preload,
    providers,
    quiet,
    why_not,
)
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


class OrtBackend:
    """One onnxruntime session, shared by all threads."""

    def __init__(
        self,
        path: Path,
        *,
        device: str = "cpu",
        threads: int | None = None,
        profile: Profile | None = None,
    ) -> None:
        """Load an ONNX model.

        Args:
            path: A file that `magtiles_seg.export` wrote.
            device: `"cpu"`, `"cuda"`, `"cuda:N"`, `"tensorrt"` or `"tensorrt:N"`: the last two are
                onnxruntime's TensorRT execution provider, with CUDA for what TensorRT cannot run.
            threads: Of one inference on a CPU; None: all physical cores that the process may use.
            profile: Of `"tensorrt"`: least, tuned and greatest (N, H, W), for which it builds once;
                None: it builds for what it meets, again at each size beyond.

        Raises:
            FileNotFoundError: There is no such file.
            ModelError: The file is damaged, or not a model of this package.
            ConfigError: The device, the number of threads or the profile is invalid.
            BackendUnavailableError: onnxruntime, or its support for the device, is not installed.
        """
        kind, number = parse_device(device, accelerators=("cuda", "tensorrt"))
        threads = check_threads(threads)
        self._profile = check_profile(profile, kind)
        data = read_onnx(path)
        sha256 = sha256_of(data)
        where = path.absolute()
        open_session = (
            partial(open_on_cpu, path=path, threads=threads)
            if kind == "cpu"
            else partial(
                _open_on_gpu, kind=kind, number=number, sha256=sha256, profile=self._profile
            )
        )
        self._session: Held[onnxruntime.InferenceSession] = Held(
            lambda: open_session(data),
            str(path),
            again=gpu_after_fork
            if kind != "cpu"
            else lambda: open_session(read_again(where, sha256)),
        )
        session = self._session.get()
        self._gpu = None if kind == "cpu" else number
        self.spec = BackendSpec(
            name="onnxruntime",
            device="cpu" if kind == "cpu" else f"{kind}:{number}",
            provider=session.get_providers()[0],
            threads=threads,
            path=path,
            sha256=sha256,
            card=_read_card(session, path),
            precision=precision_of(data),
        )

    def infer(self, images: npt.NDArray[np.uint8]) -> Answer:
        """Answer as every `Backend`."""
        check_images(images)
        if self._profile is not None:
            check_shape(images.shape, self._profile[0], self._profile[2])
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


def open_on_cpu(data: bytes, *, path: Path, threads: int) -> onnxruntime.InferenceSession:
    """Return a session of a model file's bytes.

    Raises:
        ModelError: onnxruntime cannot load them.
    """
    onnxruntime = import_onnxruntime()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = _FATAL_ONLY
    try:
        return onnxruntime.InferenceSession(
            data, options, providers=["CPUExecutionProvider"], enable_fallback=0
        )
    except Exception as error:
        raise ModelError(
            f"onnxruntime cannot load {path}: {first_line(error)}; export the model again"
        ) from error


def _open_on_gpu(
    data: bytes, *, kind: str, number: int, sha256: str, profile: Profile | None
) -> onnxruntime.InferenceSession:
    """Return a session that runs on a GPU: onnxruntime itself would settle for the CPU.

    Raises:
        BackendUnavailableError: It does not, and why not.
    """
    onnxruntime = import_onnxruntime()
    available = onnxruntime.get_available_providers()
    if PROVIDERS[kind] not in available:
        raise BackendUnavailableError(
            f"device {kind!r} needs the GPU build of onnxruntime with {PROVIDERS[kind]}, "
            f"got {available}: {GPU_FIX}"
        )
    preload(onnxruntime, kind)
    options = onnxruntime.SessionOptions()
    options.inter_op_num_threads = 1
    options.log_severity_level = _FATAL_ONLY
    order = providers(kind, number, model_sha256=sha256, profile=profile)
    try:
        with quiet(onnxruntime):
            session = onnxruntime.InferenceSession(
                data, options, providers=order, enable_fallback=0
            )
    except Exception as error:
        raise BackendUnavailableError(
            f"onnxruntime cannot use {kind}:{number}: {why_not(onnxruntime, kind, error)}"
        ) from error
    used = session.get_providers()[0]
    if used != PROVIDERS[kind]:
        raise BackendUnavailableError(
            f"onnxruntime did not start on {kind}:{number} and would run on {used}: "
            f"{why_not(onnxruntime, kind)}"
        )
    return session


def _run_bound(
    session: onnxruntime.InferenceSession, images: npt.NDArray[np.uint8], number: int
) -> Answer:
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
