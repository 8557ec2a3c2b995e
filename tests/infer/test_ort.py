from __future__ import annotations

import hashlib
import sys
from pathlib import Path

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
