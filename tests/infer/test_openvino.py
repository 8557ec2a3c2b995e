from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from magtiles_seg.errors import (
    BackendUnavailableError,
    ConfigError,
    InferenceError,
    ModelError,
)
from magtiles_seg.export.precision import convert
from magtiles_seg.infer.backends import open_backend
from magtiles_seg.infer.backends.openvino import OpenVinoBackend, has_bf16
from magtiles_seg.infer.backends.ort import OrtBackend
from magtiles_seg.infer.segmenter import Segmenter
from magtiles_seg.model.card import SEAL_KEY, seal_onnx

PICTURES = np.random.default_rng(0).integers(0, 256, (6, 2, 40, 50), np.uint8)


@pytest.fixture(scope="module")
def backend(model: Path) -> OpenVinoBackend:
    pytest.importorskip("openvino")
    return OpenVinoBackend(model, threads=1)


def test_openvino_answers_as_onnxruntime_does(backend: OpenVinoBackend, model: Path) -> None:
    probability, classes = backend.infer(PICTURES[0])
    expected, expected_classes = OrtBackend(model, threads=1).infer(PICTURES[0])
    assert np.abs(probability - expected).max() < 1e-4
    assert (classes == expected_classes).mean() > 0.999
    assert (probability.dtype.name, classes.dtype.name) == ("float32", "uint8")


def test_openvino_spec_tells_precision_threads_and_card(backend: OpenVinoBackend) -> None:
    spec = backend.spec
    assert (spec.name, spec.device, spec.precision, spec.threads) == ("openvino", "cpu", "fp32", 1)
    assert spec.provider.startswith("OpenVINO 20")
    assert spec.card.training == {"seed": 0, "epoch": 3}


def test_openvino_spec_of_a_quantized_file_tells_int8(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "int8.onnx"
    path.write_bytes(
        convert(model.read_bytes(), "int8", pictures=tuple(PICTURES[0]), unsigned=True)
    )
    assert OpenVinoBackend(path, threads=1).spec.precision == "int8"


def test_openvino_computes_in_the_precision_that_it_reports(backend: OpenVinoBackend) -> None:
    hint = backend._loaded.get().compiled.get_property("INFERENCE_PRECISION_HINT")
    assert hint.get_type_name() == "f32"


def test_openvino_called_by_several_threads_keeps_their_answers_apart(
    backend: OpenVinoBackend,
) -> None:
    expected = [backend.infer(pictures)[0] for pictures in PICTURES]
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda index: backend.infer(PICTURES[index % 6])[0], range(24)))
    for index, answer in enumerate(answers):
        assert (answer == expected[index % 6]).all()


def test_openvino_takes_slices_and_read_only_pictures(backend: OpenVinoBackend) -> None:
    pictures = np.repeat(PICTURES[0], 2, axis=2)[:, :, ::2]
    pictures.setflags(write=False)
    assert (backend.infer(pictures)[0] == backend.infer(PICTURES[0])[0]).all()


def test_segmenter_with_backend_openvino_runs_it(model: Path) -> None:
    pytest.importorskip("openvino")
    with Segmenter(model, backend="openvino", threads=1) as segmenter:
        assert segmenter(PICTURES[0, 0]).mask.shape == (40, 50)
        assert segmenter.spec.name == "openvino"


def test_openvino_with_bf16_on_a_cpu_without_it_is_refused(model: Path) -> None:
    pytest.importorskip("openvino")
    if has_bf16():
        assert open_backend(model, backend="openvino", precision="bf16").spec.precision == "bf16"
        return
    with pytest.raises(BackendUnavailableError, match="this CPU has no bf16"):
        open_backend(model, backend="openvino", precision="bf16")


def test_openvino_of_unknown_precision_is_config_error(model: Path) -> None:
    with pytest.raises(ConfigError, match="unknown precision 'int4'"):
        OpenVinoBackend(model, precision="int4")


def test_precision_for_another_backend_is_config_error(model: Path) -> None:
    with pytest.raises(ConfigError, match="is for backend 'openvino'"):
        open_backend(model, precision="fp32")


def test_openvino_on_cuda_is_config_error(model: Path) -> None:
    with pytest.raises(ConfigError, match="unknown device 'cuda': expected 'cpu'"):
        OpenVinoBackend(model, device="cuda")


def test_openvino_missing_names_the_install(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(BackendUnavailableError, match=r"pip install 'magtiles-seg\[openvino\]'"):
        OpenVinoBackend(model)


def test_openvino_of_graph_that_it_refuses_is_model_error(tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    path = tmp_path / "broken.onnx"
    mark = SEAL_KEY.encode() + b"\x12\x40"
    path.write_bytes(seal_onnx(b"\xff" + mark + b"0" * 64))
    with pytest.raises(ModelError, match=r"broken\.onnx is no readable ONNX file"):
        OpenVinoBackend(path)


def test_openvino_closed_refuses_to_run(model: Path) -> None:
    pytest.importorskip("openvino")
    backend = OpenVinoBackend(model, threads=1)
    backend.close()
    backend.close()
    with pytest.raises(InferenceError, match="is closed"):
        backend.infer(PICTURES[0])
