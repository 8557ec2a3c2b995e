from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper

from magtiles_seg.errors import ConfigError, ModelError
from magtiles_seg.export import precision
from magtiles_seg.export.parity import synthetic_tiles
from magtiles_seg.export.sealed import parse_sealed, sealed
from magtiles_seg.infer.backends.ort import OrtBackend
from magtiles_seg.model.stored import widen

HALF, FLOAT, INT8 = onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT, onnx.TensorProto.INT8


def picture() -> NDArray[np.uint8]:
    return synthetic_tiles(1).pictures[1][:96, :111]


@pytest.fixture(scope="module")
def files(model: Path) -> dict[str, Path]:
    """The test model in each precision."""
    made = {}
    for name in precision.PRECISIONS:
        data = precision.convert(model.read_bytes(), name, pictures=[picture()])
        made[name] = model.with_name(f"precise-{name}.onnx")
        made[name].write_bytes(data)
    return made


def probability(path: Path) -> NDArray[np.float32]:
    return OrtBackend(path, threads=1).infer(picture()[None])[0]


@pytest.mark.parametrize(("name", "slack"), [("fp32", 1e-6), ("fp16", 0.01), ("int8", 0.25)])
def test_convert_keeps_inputs_outputs_card_and_answers(
    name: str, slack: float, files: dict[str, Path], model: Path
) -> None:
    content = onnx.load(files[name])
    ends = (*content.graph.input, *content.graph.output)
    types = [entry.type.tensor_type.elem_type for entry in ends]
    assert types == [onnx.TensorProto.UINT8, FLOAT, onnx.TensorProto.UINT8]
    assert OrtBackend(files[name]).spec.card == OrtBackend(model).spec.card
    difference = np.abs(probability(files[name]) - probability(model)).max()
    assert difference <= slack
    assert (difference > 0) == (name != "fp32")


def test_fp16_computes_its_core_in_half_and_the_ends_in_fp32(files: dict[str, Path]) -> None:
    content = onnx.shape_inference.infer_shapes(onnx.load(files["fp16"]))
    told = (*content.graph.value_info, *content.graph.output)
    kinds = {entry.name: entry.type.tensor_type.elem_type for entry in told}
    by_type: dict[str, list[int]] = {}
    for node in content.graph.node:
        by_type.setdefault(node.op_type, []).append(kinds.get(node.output[0], -1))
    convolutions = by_type["Conv"]
    assert convolutions == [FLOAT] * 3 + [HALF] * (len(convolutions) - 3)
    assert set(by_type["Pad"] + by_type["Sigmoid"]) == {FLOAT}
    assert by_type["Clip"][-1] == HALF


def test_int8_is_symmetric_with_weights_per_channel_and_float_heads(files: dict[str, Path]) -> None:
    graph = onnx.load(files["int8"]).graph
    values = {entry.name: numpy_helper.to_array(entry) for entry in graph.initializer}
    makers = {node.output[0]: node for node in graph.node}
    quantized = [node for node in graph.node if node.op_type.endswith("quantizeLinear")]
    quantized += [node for node in graph.node if node.op_type == "QuantizeLinear"]
    assert quantized
    for node in quantized:
        if len(node.input) == 3:
            assert values[node.input[2]].dtype == np.int8
            assert not values[node.input[2]].any()
    convolutions = [node for node in graph.node if node.op_type == "Conv"]
    kinds = [getattr(makers.get(node.input[1]), "op_type", "float") for node in convolutions]
    assert kinds[-1] == kinds[-2] == "float"
    assert kinds.count("DequantizeLinear") >= len(kinds) - 7
    for node in convolutions:
        maker = makers.get(node.input[1])
        if maker is not None:
            weight, scale = values[maker.input[0]], values[maker.input[1]]
            assert weight.dtype == np.int8
            assert scale.shape == (weight.shape[0],)
            assert values[node.input[2]].dtype == np.float32


def test_unsigned_int8_answers_alike_on_openvino_and_onnxruntime(
    model: Path, tmp_path: Path
) -> None:
    pytest.importorskip("openvino")
    from magtiles_seg.infer.backends.openvino import OpenVinoBackend

    path = tmp_path / "unsigned.onnx"
    path.write_bytes(
        precision.convert(model.read_bytes(), "int8", pictures=[picture()], unsigned=True)
    )
    graph = onnx.load(path).graph
    values = {entry.name: numpy_helper.to_array(entry) for entry in graph.initializer}
    points = [values[node.input[2]] for node in graph.node if node.op_type == "QuantizeLinear"]
    assert {point.dtype for point in points} == {np.dtype(np.uint8)}
    assert any(point.any() for point in points)
    answer = OpenVinoBackend(path).infer(picture()[None])[0]
    assert np.abs(answer - probability(path)).mean() <= 0.01
    assert np.abs(answer - probability(model)).max() <= 0.25


def test_rehearsal_rounds_where_a_cpu_does_not(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "rehearsal.onnx"
    path.write_bytes(precision.rehearse_fp16(model.read_bytes()))
    assert 0 < np.abs(probability(path) - probability(model)).max() <= 0.02


def with_large_weights(model: Path) -> bytes:
    """The model with the last layer's weights beyond fp16."""
    content, card = parse_sealed(model.read_bytes(), "model")
    widen(content)
    weights = {entry.name: entry for entry in content.graph.initializer}
    convolution = [node for node in content.graph.node if node.op_type == "Conv"][-1]
    for name in convolution.input[1:]:
        values = numpy_helper.to_array(weights[name])
        weights[name].CopyFrom(numpy_helper.from_array(values * np.float32(1e8), name))
    return sealed(content, card)


def test_convert_of_weights_beyond_fp16_is_model_error(model: Path) -> None:
    with pytest.raises(ModelError, match="cannot be fp16: expected float32 within"):
        precision.convert(with_large_weights(model), "fp16")


@pytest.mark.parametrize("name", ["fp16", "int8"])
def test_convert_of_a_reduced_model_is_model_error(name: str, files: dict[str, Path]) -> None:
    with pytest.raises(ModelError, match="is of reduced precision itself"):
        precision.convert(files[name].read_bytes(), "fp16")


def test_convert_of_a_foreign_file_is_model_error() -> None:
    with pytest.raises(ModelError, match="is not a magtiles-seg model"):
        precision.convert(b"foreign", "fp16")


def test_convert_to_unknown_precision_is_config_error(model: Path) -> None:
    with pytest.raises(ConfigError, match="unknown precision 'int4'"):
        precision.convert(model.read_bytes(), "int4")


def test_int8_without_pictures_is_config_error(model: Path) -> None:
    with pytest.raises(ConfigError, match="int8 needs pictures to take its ranges from"):
        precision.convert(model.read_bytes(), "int8")
