"""int8: channels equalised, then convolutions between quantize and dequantize nodes."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper
from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

from magtiles_seg.export.graph import EXACT_CONVOLUTIONS, before_convolutions

_RANGE = 6.0
_LEAST = 1e-3
"""A channel that stays below this is left nearly as it is: its factor would know no bound."""


@dataclass(frozen=True)
class _Stream:
    """Tensors whose channels must share their factors, because additions join them.

    Attributes:
        tensors: Their names.
        makers: The convolutions that write them.
        readers: The convolutions that read them, each with whether theirs are the last of its input
            channels, behind those of another tensor.
    """

    tensors: list[str]
    makers: list[onnx.NodeProto]
    readers: list[tuple[onnx.NodeProto, bool]]


def equalise(model: onnx.ModelProto, pictures: Sequence[npt.NDArray[np.uint8]]) -> int:
    """Scale channels that no activation clips to one range, and undo it where they are read.

    Args:
        model: An fp32 graph of this package; its weights are changed, its answers are not.
        pictures: (H, W) uint8 each, on which the ranges are measured.

    Returns:
        How many groups of tensors were scaled; a network without such has none.
    """
    streams = _Graph(model.graph).streams()
    if not streams:
        return 0
    ranges = _measure(model, [name for stream in streams for name in stream.tensors], pictures)
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    for stream in streams:
        top = np.max([ranges[name] for name in stream.tensors], axis=0)
        _scale(stream, _RANGE / np.maximum(top, _LEAST), weights)
    return len(streams)


class _Graph:
    """Who writes and who reads each tensor."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self._makers = {name: node for node in graph.node for name in node.output}
        self._readers: dict[str, list[onnx.NodeProto]] = {}
        for node in graph.node:
            for name in node.input:
                self._readers.setdefault(name, []).append(node)

    def streams(self) -> list[_Stream]:
        """Return the groups that can be scaled without a change of the answers."""
        seen: set[str] = set()
        found = []
        for name, node in self._makers.items():
            if node.op_type != "Conv" or name in seen:
                continue
            tensors = self._joined(name)
            seen.update(tensors)
            makers = [self._makers[tensor] for tensor in tensors if tensor in self._makers]
            readers = self._reading(tensors)
            if (
                readers
                and len(makers) == len(tensors)
                and all(maker.op_type in ("Conv", "Add") for maker in makers)
            ):
                convolutions = [maker for maker in makers if maker.op_type == "Conv"]
                found.append(_Stream(tensors, convolutions, readers))
        return found

    def _joined(self, start: str) -> list[str]:
        """Return a tensor and all that additions join with it."""
        found: list[str] = []
        open_ = [start]
        while open_:
            name = open_.pop()
            if name in found:
                continue
            found.append(name)
            additions = [n for n in self._readers.get(name, []) if n.op_type == "Add"]
            if name in self._makers and self._makers[name].op_type == "Add":
                additions.append(self._makers[name])
            for node in additions:
                open_ += [*node.input, *node.output]
        return found

    def _reading(self, tensors: list[str]) -> list[tuple[onnx.NodeProto, bool]]:
        """Return the readers of a stream; none if anything but convolutions reads it in the end."""
        found = []
        open_ = [(name, False) for name in tensors]
        while open_:
            name, last = open_.pop()
            for node in self._readers.get(name, []):
                if node.op_type == "Conv" and _attribute(node, "group", 1) == 1:
                    found.append((node, last))
                elif node.op_type == "Resize":
                    open_.append((node.output[0], last))
                elif node.op_type == "Concat" and len(node.input) == 2 and not last:
                    open_.append((node.output[0], node.input[1] == name))
                elif node.op_type != "Add":
                    return []
        return found


def _attribute(node: onnx.NodeProto, name: str, default: int) -> int:
    return next((int(entry.i) for entry in node.attribute if entry.name == name), default)


def _measure(
    model: onnx.ModelProto, names: Sequence[str], pictures: Sequence[npt.NDArray[np.uint8]]
) -> dict[str, npt.NDArray[np.float32]]:
    """Return the greatest absolute value of each channel of each tensor over the pictures."""
    import onnxruntime

    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    probe.graph.ClearField("output")
    probe.graph.initializer.append(numpy_helper.from_array(np.array([0, 2, 3]), "all_but_channels"))
    for name in names:
        size, most = f"{name}_size", f"{name}_most"
        probe.graph.node.append(helper.make_node("Abs", [name], [size]))
        probe.graph.node.append(
            helper.make_node("ReduceMax", [size, "all_but_channels"], [most], keepdims=0)
        )
        probe.graph.output.append(helper.make_tensor_value_info(most, onnx.TensorProto.FLOAT, None))
    session = onnxruntime.InferenceSession(probe.SerializeToString())
    answers = [session.run(None, {"image": picture[None]}) for picture in pictures]
    tops = [np.max(values, axis=0) for values in zip(*answers, strict=True)]
    return dict(zip(names, tops, strict=True))


def _scale(
    stream: _Stream, factors: npt.NDArray[np.float32], weights: dict[str, onnx.TensorProto]
) -> None:
    for node in stream.makers:
        for name, shape in ((node.input[1], (-1, 1, 1, 1)), (node.input[2], (-1,))):
            _set(weights[name], numpy_helper.to_array(weights[name]) * factors.reshape(shape))
    for node, last in stream.readers:
        values = numpy_helper.to_array(weights[node.input[1]]).copy()
        part = slice(-len(factors), None) if last else slice(0, len(factors))
        values[:, part] /= factors.reshape(1, -1, 1, 1)
        _set(weights[node.input[1]], values)


def _set(tensor: onnx.TensorProto, values: npt.NDArray[np.float32]) -> None:
    tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float32), tensor.name))


_PREPARED = ("onnx.quant.pre_process", "onnxruntime.quant")
"""Metadata by which onnxruntime knows a graph that needs no tidying, and does not ask for it."""


def quantize(
    model: onnx.ModelProto,
    pictures: Sequence[npt.NDArray[np.uint8]],
    progress: Callable[[int, int], None] | None,
    *,
    unsigned: bool = False,
) -> onnx.ModelProto:
    """Return the model with int8 convolutions: QDQ, symmetric, weights per channel.

    Only what a convolution reads is quantized: its output runs through clip or addition in fp32
    first, which a runtime fuses with the convolution. The bias stays fp32; TensorRT takes no other.

    Args:
        model: An fp32 graph of this package; it is changed on the way.
        pictures: (H, W) uint8 each, from which the ranges are taken.
        progress: Called with (pictures done, pictures).
        unsigned: Whether activations are uint8 with a zero point instead of symmetric int8. It is
            what OpenVINO's CPU kernels take; 2026.4 rounds joined int8 activations of this network
            to whole numbers.
    """
    equalise(model, pictures)
    model.metadata_props.add(key=_PREPARED[0], value=_PREPARED[1])
    kept = _float_layers(model)
    for index, node in enumerate(model.graph.node):
        node.name = f"{node.op_type}_{index}"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "int8.onnx"
        quantize_static(
            model,
            path,
            _Reader(pictures, progress),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=["Conv"],
            per_channel=True,
            activation_type=QuantType.QUInt8 if unsigned else QuantType.QInt8,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=[node.name for node in model.graph.node if node.output[0] in kept],
            extra_options={
                "ActivationSymmetric": not unsigned,
                "WeightSymmetric": True,
                "QuantizeBias": False,
                "OpTypesToExcludeOutputQuantization": ["Conv"],
            },
        )
        return onnx.load(path)


def _float_layers(model: onnx.ModelProto) -> set[str]:
    """Return the outputs of the first convolutions and of the heads, which stay fp32."""
    convolutions = [node for node in model.graph.node if node.op_type == "Conv"]
    read = before_convolutions(model.graph)
    heads = {node.output[0] for node in convolutions if node.output[0] not in read}
    first = {node.output[0] for node in convolutions[:EXACT_CONVOLUTIONS]}
    return first | heads


class _Reader:
    """Hands over the pictures that the ranges are taken from, one at a time."""

    def __init__(
        self,
        pictures: Sequence[npt.NDArray[np.uint8]],
        progress: Callable[[int, int], None] | None,
    ) -> None:
        self._pictures = enumerate(pictures)
        self._count = len(pictures)
        self._progress = progress

    def get_next(self) -> dict[str, npt.NDArray[np.uint8]] | None:
        """Return the next picture as the model's input, or None after the last."""
        done, picture = next(self._pictures, (self._count, None))
        if self._progress is not None:
            self._progress(done, self._count)
        return None if picture is None else {"image": picture[None]}
