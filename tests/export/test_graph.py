from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from magtiles_seg.errors import ConfigError, ModelError, ParityError
from magtiles_seg.export import graph
from magtiles_seg.export.parity import Tolerance
from magtiles_seg.infer.backends.eager import EagerBackend
from magtiles_seg.infer.backends.ort import OrtBackend
from magtiles_seg.model.bundled import BUNDLED_MODEL
from magtiles_seg.model.card import CARD_KEY, ModelCard
from magtiles_seg.model.checkpoint import load_checkpoint
from magtiles_seg.model.stored import compact
from magtiles_seg.result import Decision

SIZES = [(1, 32, 32), (2, 33, 47), (1, 48, 32), (3, 101, 64), (1, 220, 288), (1, 32, 500)]


def pictures(count: int, height: int, width: int) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (count, height, width), np.uint8)


@pytest.fixture(scope="module")
def eager(checkpoint: Path) -> EagerBackend:
    return EagerBackend(checkpoint)


@pytest.fixture(scope="module")
def whole(checkpoint: Path) -> Path:
    """The model with its weights stored in fp32."""
    path = checkpoint.with_name("whole.onnx")
    graph.export_onnx(checkpoint, path, precision="fp32", tolerance=Tolerance(max_abs_diff=1e-5))
    return path


@pytest.fixture(scope="module")
def exported(whole: Path) -> OrtBackend:
    return OrtBackend(whole, threads=1)


@settings(max_examples=25)
@given(count=st.integers(1, 3), height=st.integers(32, 140), width=st.integers(32, 140))
@example(count=1, height=32, width=32)
@example(count=2, height=33, width=129)
def test_onnx_answers_as_eager_torch_at_any_size(
    count: int, height: int, width: int, exported: OrtBackend, eager: EagerBackend
) -> None:
    images = pictures(count, height, width)
    probability, classes = exported.infer(images)
    expected, expected_classes = eager.infer(images)
    assert probability.shape == images.shape
    assert np.abs(probability - expected).max() <= 1e-5
    assert (
        classes != expected_classes
    ).mean() <= 1e-3  # where two classes are as likely, rounding decides


@pytest.mark.parametrize("size", SIZES)
def test_onnx_with_halved_weights_stays_near_eager(
    size: tuple[int, int, int], model: Path, eager: EagerBackend
) -> None:
    images = pictures(*size)
    probability, _ = OrtBackend(model, threads=1).infer(images)
    assert 0 < np.abs(probability - eager.infer(images)[0]).max() <= 0.01


@pytest.mark.parametrize("size", SIZES)
def test_onnx_answers_alike_on_openvino(size: tuple[int, int, int], model: Path) -> None:
    openvino = pytest.importorskip("openvino")
    compiled = openvino.compile_model(str(model), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    images = pictures(*size)
    answer = compiled(images)
    probability, classes = OrtBackend(model, threads=1).infer(images)
    assert np.abs(answer["probability"] - probability).max() <= 1e-5
    assert (answer["classes"] == classes).mean() > 0.999


def test_onnx_extreme_pictures_give_finite_probabilities(model: Path) -> None:
    backend = OrtBackend(model, threads=1)
    for level in (0, 255):
        probability, _ = backend.infer(np.full((1, 40, 40), level, np.uint8))
        assert np.isfinite(probability).all()
        assert probability.min() >= 0
        assert probability.max() <= 1


def test_file_is_standard_onnx_with_named_dynamic_axes(model: Path) -> None:
    content = onnx.load(model)
    onnx.checker.check_model(content, full_check=True)
    assert [(entry.domain, entry.version) for entry in content.opset_import] == [("", graph.OPSET)]
    for value in (*content.graph.input, *content.graph.output):
        axes = [axis.dim_param for axis in value.type.tensor_type.shape.dim]
        assert axes == ["batch", "height", "width"]


@pytest.mark.parametrize("name", ["exported", "bundled"])
def test_file_is_one_that_the_oldest_runtimes_of_the_docs_read(name: str, model: Path) -> None:
    content = onnx.load(BUNDLED_MODEL if name == "bundled" else model)
    assert content.ir_version <= 10  # onnxruntime 1.18 reads no newer one
    assert max(entry.version for entry in content.opset_import) <= 18


def test_file_tells_nothing_of_the_machine_that_made_it(model: Path) -> None:
    data = model.read_bytes()
    for trace in (b".py", b"site-packages", str(Path.cwd()).encode(), b"stack_trace"):
        assert trace not in data


def test_fp16_storage_halves_the_file(model: Path, whole: Path) -> None:
    assert model.stat().st_size <= 0.55 * whole.stat().st_size


def test_compact_keeps_what_fp16_cannot_hold() -> None:
    values = np.random.default_rng(0).random((20, 15), np.float32)
    large = onnx.numpy_helper.from_array(values * np.float32(1e6), "large")
    small = onnx.numpy_helper.from_array(values, "small")
    few = onnx.numpy_helper.from_array(np.ones(3, np.float32), "few")
    model = onnx.ModelProto(graph=onnx.GraphProto(initializer=[large, small, few]))
    compact(model)
    assert [tensor.name for tensor in model.graph.initializer] == ["large", "small_fp16", "few"]
    assert [list(node.output) for node in model.graph.node] == [["small"]]


def test_card_in_file_has_the_facts_of_the_checkpoint(model: Path, checkpoint: Path) -> None:
    props = {entry.key: entry.value for entry in onnx.load(model).metadata_props}
    card = ModelCard.from_json(props[CARD_KEY])
    assert card == EagerBackend(checkpoint).spec.card
    assert (card.stride, card.labels[0]) == (16, "background")


def test_export_that_fails_parity_leaves_the_old_file(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: Path
) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"old")
    monkeypatch.setattr(graph, "build_onnx", lambda *_, **__: model.read_bytes())
    with pytest.raises(
        ParityError, match=r"max \|difference of probability\| .*, expected <= 1e-09"
    ):
        graph.export_onnx(checkpoint, path, tolerance=Tolerance(max_abs_diff=1e-9))
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_copy_that_is_traced_leaves_the_network_as_it_was(checkpoint: Path) -> None:
    network, _ = load_checkpoint(checkpoint)
    before = [type(module) for module in network.modules()]
    graph._light(network)
    assert [type(module) for module in network.modules()] == before


def test_export_of_missing_checkpoint_is_file_not_found(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"gone\.safetensors"):
        graph.export_onnx(tmp_path / "gone.safetensors", tmp_path / "model.onnx")


def test_build_of_unknown_precision_is_config_error(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unknown precision 'int4'"):
        graph.export_onnx(checkpoint, tmp_path / "model.onnx", precision="int4")


def test_rewrite_card_changes_the_card_alone(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(model.read_bytes())
    before = OrtBackend(path)
    card = before.spec.card
    graph.rewrite_card(path, replace(card, decision=Decision(threshold=0.3), architecture="lite2"))
    after = OrtBackend(path)
    assert after.spec.card == replace(card, decision=Decision(threshold=0.3))
    images = pictures(1, 50, 60)
    assert (after.infer(images)[0] == before.infer(images)[0]).all()


def test_rewrite_card_of_foreign_file_is_model_error(tmp_path: Path) -> None:
    path = tmp_path / "x.onnx"
    path.write_bytes(b"foreign")
    card = ModelCard(name="x", architecture="nano", labels=("background", "crack"), stride=16)
    with pytest.raises(ModelError, match="not a magtiles-seg model"):
        graph.rewrite_card(path, card)
    assert path.read_bytes() == b"foreign"


@pytest.mark.slow
def test_lite0_exports_within_the_size_of_the_wheel(tmp_path: Path) -> None:
    from magtiles_seg.model.checkpoint import save_checkpoint
    from magtiles_seg.model.network import build_network

    save_checkpoint(tmp_path / "a.safetensors", build_network("lite0"), {})
    report = graph.export_onnx(tmp_path / "a.safetensors", tmp_path / "a.onnx")
    assert report.max_abs_diff <= 0.001
    assert (tmp_path / "a.onnx").stat().st_size <= 9_000_000
