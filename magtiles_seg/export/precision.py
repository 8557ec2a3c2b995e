"""Reduced precision: the one model file with its core in fp16, or quantized to int8.

The core (`export.core`) is nearly all that lies between the first and the last convolution. Before
it, bytes are scaled and padded, after it stand sigmoid, argmax and crop: both stay fp32 in every
precision, so that no probability is rounded. Files stay standard ONNX of the same inputs and
outputs: onnxruntime, OpenVINO and strongly typed TensorRT take them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from magtiles_seg.errors import ConfigError, ModelError
from magtiles_seg.export.core import core_of
from magtiles_seg.export.quantize import drop_unused, quantize
from magtiles_seg.export.sealed import parse_sealed, sealed
from magtiles_seg.model.card import ModelCard
from magtiles_seg.model.stored import is_reduced, widen

PRECISIONS = ("fp32", "fp16", "int8")
"""Of the arithmetic in the core."""

_HALF_MAX = float(np.finfo(np.float16).max)


def convert(
    data: bytes,
    precision: str,
    *,
    pictures: Sequence[npt.NDArray[np.uint8]] = (),
    unsigned: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> bytes:
    """Return a model file in another precision, with the same card.

    Args:
        data: An fp32 ONNX file of this package; its weights may be stored as fp16.
        precision: One of `PRECISIONS`.
        pictures: (H, W) uint8 each, from which int8 takes its ranges: all classes alike, sound
            tiles among them. The other precisions need none.
        unsigned: Whether int8 activations are uint8 with a zero point, as CPUs multiply them,
            instead of symmetric int8, which TensorRT asks for.
        progress: Called with (pictures done, pictures).

    Raises:
        ConfigError: The precision is unknown, or int8 was given no pictures.
        ModelError: The file is damaged, is no fp32 model of this package, or holds weights that
            fp16 cannot.
        ParityError: int8 suits none of its convolutions.
    """
    if precision not in PRECISIONS:
        raise ConfigError(f"unknown precision {precision!r}: expected one of {PRECISIONS}")
    if precision == "int8" and not pictures:
        raise ConfigError("int8 needs pictures to take its ranges from, got none")
    model, card = _fp32_model(data)
    if precision == "fp16":
        _halve(model)
    elif precision == "int8":
        model = quantize(model, pictures, card.decision.threshold, progress, unsigned=unsigned)
    onnx.checker.check_model(model, full_check=True)
    return sealed(model, card)


def rehearse_fp16(data: bytes) -> bytes:
    """Return an fp32 model file that rounds where `convert(data, "fp16")` does, on any runtime.

    A CPU runs fp16 graphs in fp32 and keeps what lies between two layers unrounded: it would pass a
    model that overflows on a GPU. Here weights, and whatever a layer of the core hands on, are cast
    to fp16 and back.

    Args:
        data: As for `convert`.

    Raises:
        ModelError: As for `convert`.
    """
    model, card = _fp32_model(data)
    graph = model.graph
    core = core_of(graph)
    weights = {tensor.name: tensor for tensor in graph.initializer}
    inside = {name for index in core for name in graph.node[index].output}
    rounded: dict[str, str] = {}
    nodes: list[onnx.NodeProto] = []
    for index, node in enumerate(graph.node):
        for place, name in enumerate(node.input):
            if name in rounded:
                node.input[place] = rounded[name]
            elif index in core and name in weights and not _is_scale(node, place):
                half = numpy_helper.to_array(_as_half(weights[name], name))
                weights[name].CopyFrom(numpy_helper.from_array(half.astype(np.float32), name))
            elif index in core and name and name not in weights and name not in inside:
                node.input[place] = _round(name, nodes)
        nodes.append(node)
        if index in core:
            rounded[node.output[0]] = _round(node.output[0], nodes)
    _replace_nodes(model, nodes)
    return sealed(model, card)


def _fp32_model(data: bytes) -> tuple[onnx.ModelProto, ModelCard]:
    """Return graph, its weights in fp32, and card."""
    model, card = parse_sealed(data, "the model to convert")
    widen(model)
    if is_reduced(model):
        raise ModelError(
            "the model to convert is of reduced precision itself: "
            "expected the fp32 model file or the checkpoint that it was made from"
        )
    return model, card


def _round(name: str, nodes: list[onnx.NodeProto]) -> str:
    """Add casts of a tensor to fp16 and back, and return the result's name."""
    half, back = f"{name}_half_{len(nodes)}", f"{name}_rounded_{len(nodes)}"
    nodes.append(helper.make_node("Cast", [name], [half], to=onnx.TensorProto.FLOAT16))
    nodes.append(helper.make_node("Cast", [half], [back], to=onnx.TensorProto.FLOAT))
    return back


def _is_scale(node: onnx.NodeProto, place: int) -> bool:
    """Return whether an input is the factor of a resize, which is fp32 in any graph."""
    return node.op_type == "Resize" and place > 0


def _halve(model: onnx.ModelProto) -> None:
    """Make the core compute in fp16."""
    graph = model.graph
    core = core_of(graph)
    weights = {tensor.name: tensor for tensor in graph.initializer}
    inside = {name for index in core for name in graph.node[index].output}
    renamed: dict[str, str] = {}
    nodes: list[onnx.NodeProto] = []
    for index, node in enumerate(graph.node):
        if index not in core:
            for place, name in enumerate(node.input):
                if name in inside:
                    node.input[place] = _cast(name, onnx.TensorProto.FLOAT, renamed, nodes)
            nodes.append(node)
            continue
        for place, name in enumerate(node.input):
            if name in inside or not name or _is_scale(node, place):
                continue
            if name not in weights:
                node.input[place] = _cast(name, onnx.TensorProto.FLOAT16, renamed, nodes)
            elif name not in renamed:
                renamed[name] = f"{name}_half"
                graph.initializer.append(_as_half(weights[name], renamed[name]))
            node.input[place] = renamed.get(name, node.input[place])
        nodes.append(node)
    _replace_nodes(model, nodes)
    drop_unused(graph)


def _cast(name: str, to: int, renamed: dict[str, str], nodes: list[onnx.NodeProto]) -> str:
    """Return a tensor's name in another type; the first time a cast node is added."""
    if name not in renamed:
        renamed[name] = f"{name}_cast"
        nodes.append(helper.make_node("Cast", [name], [renamed[name]], to=to))
    return renamed[name]


def _as_half(tensor: onnx.TensorProto, name: str) -> onnx.TensorProto:
    values = numpy_helper.to_array(tensor)
    if values.dtype != np.float32 or not np.abs(values).max(initial=0) <= _HALF_MAX:
        raise ModelError(
            f"{tensor.name} cannot be fp16: expected float32 within +-{_HALF_MAX:g}, "
            f"got {values.dtype} up to {np.abs(values).max(initial=0):g}; export as fp32"
        )
    return numpy_helper.from_array(values.astype(np.float16), name)


def _replace_nodes(model: onnx.ModelProto, nodes: Sequence[onnx.NodeProto]) -> None:
    kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    model.graph.ClearField("node")
    model.graph.node.extend(kept)
