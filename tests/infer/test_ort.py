from __future__ import annotations

import hashlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from magtiles_seg.errors import BackendUnavailableError, InferenceError, ModelError
from magtiles_seg.infer.backends.ort import OrtBackend
from magtiles_seg.model.card import SEAL_KEY, seal_onnx

PICTURE = np.random.default_rng(0).integers(0, 256, (1, 40, 50), np.uint8)


def test_spec_tells_what_runs(model: Path) -> None:
    spec = OrtBackend(model, threads=1).spec
    assert (spec.name, spec.device, spec.threads) == ("onnxruntime", "cpu", 1)
    assert spec.provider == "CPUExecutionProvider"
    assert spec.sha256 == hashlib.sha256(model.read_bytes()).hexdigest()
    assert spec.card.architecture == "nano"
    assert spec.card.training == {"seed": 0, "epoch": 3}


def test_infer_returns_fresh_arrays_of_stated_types(model: Path) -> None:
    backend = OrtBackend(model, threads=1)
    first, classes = backend.infer(PICTURE)
    kept = first.copy()
    second, _ = backend.infer(255 - PICTURE)
    assert first.shape == classes.shape == (1, 40, 50)
    assert (first.dtype.name, classes.dtype.name) == ("float32", "uint8")
    assert not np.shares_memory(first, second)
    assert (first == kept).all()
    assert classes.min() >= 1
    assert classes.max() <= 5


def test_infer_of_slice_equals_infer_of_its_copy(model: Path) -> None:
    backend = OrtBackend(model, threads=1)
    sliced = np.repeat(PICTURE, 2, axis=2)[:, :, ::2]
    assert (backend.infer(sliced)[0] == backend.infer(PICTURE)[0]).all()


def damage(kind: str, data: bytes) -> bytes:
    middle = len(data) // 2
    return {
        "empty": b"",
        "noise": bytes(range(256)) * 40,
        "truncated": data[:middle],
        "one bit": data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :],
        "longer": data + b"\0",
    }[kind]


@pytest.mark.parametrize("kind", ["empty", "noise", "truncated", "one bit", "longer"])
def test_damaged_file_is_model_error(kind: str, model: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(damage(kind, model.read_bytes()))
    with pytest.raises(ModelError, match=r"model\.onnx is (damaged|not a magtiles-seg model)"):
        OrtBackend(path)


def identity(*, seal: bool) -> bytes:
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("x", "y")]
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])], "g", value[:1], value[1:]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    if seal:
        model.metadata_props.add(key=SEAL_KEY, value="0" * 64)
    data: bytes = model.SerializeToString()
    return seal_onnx(data) if seal else data


@pytest.mark.parametrize("seal", [False, True])
def test_foreign_onnx_is_model_error(seal: bool, tmp_path: Path) -> None:
    path = tmp_path / "foreign.onnx"
    path.write_bytes(identity(seal=seal))
    onnx.checker.check_model(onnx.load(path))
    with pytest.raises(ModelError, match=r"foreign\.onnx is not a magtiles-seg model"):
        OrtBackend(path)


def test_graph_that_runtime_refuses_is_model_error(tmp_path: Path) -> None:
    path = tmp_path / "broken.onnx"
    mark = SEAL_KEY.encode() + b"\x12\x40"
    path.write_bytes(seal_onnx(b"\xff" + mark + b"0" * 64))
    with pytest.raises(ModelError, match="no readable ONNX file"):
        OrtBackend(path)


def test_onnxruntime_missing_names_the_install(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(BackendUnavailableError, match="pip install onnxruntime"):
        OrtBackend(model)


def test_cuda_without_provider_names_the_install(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(BackendUnavailableError, match="pip install onnxruntime-gpu"):
        OrtBackend(model, device="cuda")


class FallenBack:
    """What onnxruntime hands out when CUDA does not start: a session on the CPU, no error."""

    def __init__(self, *_: Any, **options: Any) -> None:  # noqa: ANN401
        assert options["providers"][0] == ("CUDAExecutionProvider", {"device_id": 1})

    def get_providers(self) -> list[str]:
        return ["CPUExecutionProvider"]


def test_cuda_that_falls_back_to_cpu_is_refused(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr(onnxruntime, "InferenceSession", FallenBack)
    with pytest.raises(BackendUnavailableError, match=r"did not start on cuda:1 .* on CPU"):
        OrtBackend(model, device="cuda:1")


class GpuBinding:
    """What a session with a GPU hands out; it notes what was bound where."""

    def __init__(self, session: GpuSession) -> None:
        self.session = session
        self.input: Any = None
        self.outputs: list[tuple[str, str, int]] = []

    def bind_ortvalue_input(self, name: str, value: Any) -> None:  # noqa: ANN401
        assert name == "image"
        self.input = value

    def bind_output(self, name: str, device_type: str, device_id: int) -> None:
        self.outputs.append((name, device_type, device_id))

    def copy_outputs_to_cpu(self) -> list[Any]:
        assert self.session.ran is self
        return list(self.session.cpu.run(None, {"image": self.input[0]}))


class GpuSession:
    """A session as onnxruntime-gpu has it, that computes on the CPU."""

    def __init__(self, data: bytes, *_: Any, **options: Any) -> None:  # noqa: ANN401
        self.names = [name if isinstance(name, str) else name[0] for name in options["providers"]]
        self.numbers = [name[1]["device_id"] for name in options["providers"][:-1]]
        self.cpu = REAL_SESSION(data, providers=["CPUExecutionProvider"])
        self.ran: GpuBinding | None = None

    def get_providers(self) -> list[str]:
        return self.names

    def io_binding(self) -> GpuBinding:
        return GpuBinding(self)

    def run_with_iobinding(self, binding: GpuBinding) -> None:
        names = [output[0] for output in binding.outputs]
        assert names == ["probability", "classes"]
        assert {output[1:] for output in binding.outputs} == {("cuda", 2)}
        assert binding.input[1:] == ("cuda", 2)
        self.ran = binding

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401
        assert name in ("get_modelmeta", "get_inputs", "get_outputs")
        return getattr(self.cpu, name)


REAL_SESSION = onnxruntime.InferenceSession


@pytest.mark.parametrize(
    ("device", "providers"),
    [
        ("cuda:2", ["CUDA", "CPU"]),
        ("tensorrt:2", ["Tensorrt", "CUDA", "CPU"]),
    ],
)
def test_gpu_runs_with_bound_input_and_outputs(
    device: str, providers: list[str], model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for part in ("bind_ortvalue_input", "bind_output", "copy_outputs_to_cpu"):
        assert hasattr(onnxruntime.IOBinding, part)
    assert hasattr(REAL_SESSION, "io_binding")
    assert hasattr(REAL_SESSION, "run_with_iobinding")
    names = [f"{name}ExecutionProvider" for name in providers]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: names)
    monkeypatch.setattr(onnxruntime, "InferenceSession", GpuSession)
    monkeypatch.setattr(onnxruntime.OrtValue, "ortvalue_from_numpy", lambda *words: words)
    backend = OrtBackend(model, device=device)
    assert backend.spec.device == device
    assert backend.spec.provider == names[0]
    session: Any = backend._session.get()
    assert session.get_providers() == names
    assert session.numbers == [2] * (len(names) - 1)
    monkeypatch.setattr(onnxruntime, "InferenceSession", REAL_SESSION)
    expected, _ = OrtBackend(model).infer(PICTURE)
    probability, classes = backend.infer(PICTURE)
    assert np.abs(probability - expected).max() < 1e-5
    assert classes.dtype == np.uint8


def test_tensorrt_without_provider_names_the_install(model: Path) -> None:
    with pytest.raises(BackendUnavailableError, match=r"Tensorrt.*pip install onnxruntime-gpu"):
        OrtBackend(model, device="tensorrt")


def test_closed_backend_refuses_to_run(model: Path) -> None:
    backend = OrtBackend(model)
    backend.close()
    backend.close()
    with pytest.raises(InferenceError, match="is closed"):
        backend.infer(PICTURE)


def test_runtime_failure_is_inference_error(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("bad allocation\nat node 7")

    backend = OrtBackend(model)
    monkeypatch.setattr(onnxruntime.InferenceSession, "run", fail)
    with pytest.raises(InferenceError, match=r"failed on pictures \(1, 40, 50\): bad allocation;"):
        backend.infer(PICTURE)
