"""How a model file stores its weights: large ones in fewer bits, from which fp32 is computed.

Runtimes compute them once, when they load the file.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from magtiles_seg.model.rounding import EXACT_FRACTION, as_codes

_FLOAT, _FP16, _INT8 = onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.INT8
_FP16_MAX = float(np.finfo(np.float16).max)

_NEAR = 1e-3  # of a step: what folding batch norm in fp32 leaves of a weight of 8 bits


def compact(model: onnx.ModelProto) -> None:
    """Store large fp32 weights in fewer bits: those that were rounded to 8 bits so, others as fp16.

    What was rounded (`magtiles_seg.model.rounding`) loses nothing.
    """
    graph = model.graph
    weights = [entry for entry in graph.initializer if entry.data_type == _FLOAT]
    weights.sort(key=lambda entry: math.prod(entry.dims))
    seen = np.cumsum([math.prod(entry.dims) for entry in weights])
    widening = []
    for tensor, up_to in zip(weights, seen, strict=True):
        values, name = numpy_helper.to_array(tensor), tensor.name
        if up_to <= EXACT_FRACTION * seen[-1] or values.ndim < 2:
            continue
        codes, steps = as_codes(values)
        if (np.abs(codes * steps - values) <= _NEAR * steps).all():
            stored, wide = f"{name}_int8", f"{name}_codes"
            tensor.CopyFrom(numpy_helper.from_array(codes.astype(np.int8), stored))
            graph.initializer.append(numpy_helper.from_array(steps, f"{name}_steps"))
            widening += [
                helper.make_node("Cast", [stored], [wide], to=_FLOAT),
                helper.make_node("Mul", [wide, f"{name}_steps"], [name]),
            ]
        elif np.abs(values).max() <= _FP16_MAX:
            stored = f"{name}_fp16"
            tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float16), stored))
            widening.append(helper.make_node("Cast", [stored], [name], to=_FLOAT))
    nodes = [*widening, *graph.node]
    graph.ClearField("node")
    graph.node.extend(nodes)


def widen(model: onnx.ModelProto) -> None:
    """Put fp32 weights in place of those that `compact` stored in fewer bits."""
    graph = model.graph
    stored = {tensor.name: tensor for tensor in graph.initializer}
    codes: dict[str, npt.NDArray[np.float32]] = {}
    steps, nodes = set[str](), []
    for node in graph.node:
        tensor = stored.get(node.input[0]) if node.op_type == "Cast" else None
        if tensor is not None and tensor.data_type in (_FP16, _INT8):
            values = numpy_helper.to_array(tensor).astype(np.float32)
            if tensor.data_type == _INT8:
                codes[node.output[0]] = values
            tensor.CopyFrom(numpy_helper.from_array(values, node.output[0]))
        elif node.op_type == "Mul" and node.input[0] in codes and node.input[1] in stored:
            scale = stored[node.input[1]]
            values = codes[node.input[0]] * numpy_helper.to_array(scale)
            (tensor,) = (one for one in graph.initializer if one.name == node.input[0])
            tensor.CopyFrom(numpy_helper.from_array(values, node.output[0]))
            steps.add(scale.name)
        else:
            nodes.append(onnx.NodeProto.FromString(node.SerializeToString()))
    kept = [tensor for tensor in graph.initializer if tensor.name not in steps]
    kept = [onnx.TensorProto.FromString(tensor.SerializeToString()) for tensor in kept]
    graph.ClearField("node")
    graph.node.extend(nodes)
    graph.ClearField("initializer")
    graph.initializer.extend(kept)


def is_reduced(model: onnx.ModelProto) -> bool:
    """Return whether a graph, after `widen`, computes in less than fp32."""
    return any(tensor.data_type in (_FP16, _INT8) for tensor in model.graph.initializer)
