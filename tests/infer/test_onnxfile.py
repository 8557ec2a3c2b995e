from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from magtiles_seg.errors import ModelError
from magtiles_seg.export.sealed import parse_sealed, sealed
from magtiles_seg.infer.backends import open_backend
from magtiles_seg.infer.backends.onnxfile import refuse_external_data


def moved_out(tensor: TensorProto, location: str) -> None:
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("location", ["/etc/passwd", "../secret", "weights.bin"])
def test_model_with_external_data_is_refused_before_anything_is_opened(
    location: str, backend: str, model: Path, tmp_path: Path
) -> None:
    graph, card = parse_sealed(model.read_bytes(), "model")
    moved_out(graph.graph.initializer[0], location)
    path = tmp_path / "model.onnx"
    path.write_bytes(sealed(graph, card))
    (tmp_path / "weights.bin").symlink_to("/etc/passwd")
    with pytest.raises(ModelError, match="keeps a tensor in another file"):
        open_backend(path, backend=backend)


def test_external_data_in_a_subgraph_is_found() -> None:
    tensor = numpy_helper.from_array(np.zeros(3, np.float32), "w")
    moved_out(tensor, "/etc/passwd")
    inner = helper.make_graph([helper.make_node("Constant", [], ["w"], value=tensor)], "i", [], [])
    node = helper.make_node("If", ["c"], ["y"], then_branch=inner, else_branch=inner)
    outer = helper.make_model(helper.make_graph([node], "o", [], []))
    with pytest.raises(ModelError, match="another file"):
        refuse_external_data(outer.SerializeToString(), "x")


def test_external_data_behind_a_tag_of_more_than_32_bits_is_refused() -> None:
    tensor = TensorProto(data_location=TensorProto.EXTERNAL)
    shown, hidden = b"\x70\x01", b"\xf0\x80\x80\x80\x20\x01"  # onnxruntime reads both as field 14
    message = tensor.SerializeToString().replace(shown, hidden)
    graph = b"\x2a" + bytes([len(message)]) + message
    with pytest.raises(ModelError, match="32 bits"):
        refuse_external_data(b"\x3a" + bytes([len(graph)]) + graph, "x")


def test_whole_model_passes(model: Path) -> None:
    refuse_external_data(model.read_bytes(), "model")


@settings(max_examples=200)
@given(data=st.binary(max_size=200))
def test_bytes_of_any_kind_pass_or_are_model_error(data: bytes) -> None:
    with contextlib.suppress(ModelError):
        refuse_external_data(data, "x")


def test_model_for_one_size_only_is_refused(model: Path, tmp_path: Path) -> None:
    graph, card = parse_sealed(model.read_bytes(), "model")
    graph.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 64
    path = tmp_path / "fixed.onnx"
    path.write_bytes(sealed(graph, card))
    onnx.checker.check_model(onnx.load(path))
    with pytest.raises(ModelError, match="one size only"):
        open_backend(path)


def test_model_path_that_is_no_ordinary_file_is_model_error(tmp_path: Path) -> None:
    path = tmp_path / "zero.onnx"
    path.symlink_to("/dev/zero")
    with pytest.raises(ModelError, match="no ordinary file"):
        open_backend(path)
