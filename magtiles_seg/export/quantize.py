"""int8: channels equalised, then convolutions between quantize and dequantize nodes."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper
from onnxruntime.quantization import CalibrationMethod, QuantType
from onnxruntime.quantization.calibrate import TensorsData
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

from magtiles_seg.export.core import before_convolutions
from magtiles_seg.export.sensitivity import choose_layers, open_session

_Parameters: TypeAlias = tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]
"""Weights (O, I, kH, kW) and bias (O,) of a convolution."""

_RANGE = 6.0
_LEAST = 1e-3
"""A channel that stays below this is left nearly as it is: its factor would know no bound."""


_PER_CHANNEL = frozenset({"Add", "AveragePool", "Clip", "Relu", "Resize"})
"""Operators whose output has the channels of their first input."""


@dataclass(frozen=True)
class _Stream:
    """Tensors whose channels must share their factors, because additions join them.

    Attributes:
        tensors: Their names.
        makers: The convolutions that write them.
        readers: The convolutions that read them, each with the number of its input channels before
            theirs, which are those of other tensors.
    """

    tensors: list[str]
    makers: list[onnx.NodeProto]
    readers: list[tuple[onnx.NodeProto, int]]


def equalise(model: onnx.ModelProto, pictures: Sequence[npt.NDArray[np.uint8]]) -> int:
    """Scale channels that no activation clips to one range, and undo it where they are read.

    Args:
        model: An fp32 graph of this package; its weights are changed, its answers are not.
        pictures: (H, W) uint8 each, on which the ranges are measured.

    Returns:
        How many groups of tensors were scaled; a network without such has none.
    """
    _own_parameters(model.graph)
    streams = _Graph(model.graph).streams()
    if not streams:
        return 0
    ranges = _measure(model, [name for stream in streams for name in stream.tensors], pictures)
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    for stream in streams:
        top = np.max([ranges[name] for name in stream.tensors], axis=0)
        _scale(stream, _RANGE / np.maximum(top, _LEAST), weights)
    return len(streams)


def _own_parameters(graph: onnx.GraphProto) -> None:
    """Give every convolution weights and a bias that no other has: each is scaled by itself."""
    weights = {tensor.name: tensor for tensor in graph.initializer}
    taken: set[str] = set()
    for index, node in enumerate(graph.node):
        if node.op_type != "Conv" or node.input[1] not in weights:
            continue
        if len(node.input) < 3:  # the exporter leaves zeros out
            zeros = np.zeros(weights[node.input[1]].dims[0], np.float32)
            node.input.append(f"bias_{index}")
            graph.initializer.append(numpy_helper.from_array(zeros, node.input[2]))
        for place in (1, 2):
            name = node.input[place]
            if name in taken:
                copied = graph.initializer.add()
                copied.CopyFrom(weights[name])
                copied.name = node.input[place] = f"{name}_{index}"
            taken.add(name)


class _Graph:
    """Who writes and who reads each tensor."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self._makers = {name: node for node in graph.node for name in node.output}
        self._shapes = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
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

    def _reading(self, tensors: list[str]) -> list[tuple[onnx.NodeProto, int]]:
        """Return the readers of a stream; none if anything but convolutions reads it in the end."""
        found = []
        open_ = [(name, 0) for name in tensors]
        while open_:
            name, first = open_.pop()
            for node in self._readers.get(name, []):
                if node.op_type == "Conv" and _attribute(node, "group", 1) == 1:
                    found.append((node, first))
                elif node.op_type == "Resize":
                    open_.append((node.output[0], first))
                elif _joins_channels(node):
                    parts = list(node.input)
                    before = self._channels_of(parts[: parts.index(name)])
                    if before is None or parts.count(name) > 1:
                        return []
                    open_.append((node.output[0], first + before))
                elif node.op_type != "Add":
                    return []
        return found

    def _channels(self, name: str) -> int | None:
        """Return how many channels a tensor has, by the convolutions behind it; None: unknown."""
        node = self._makers.get(name)
        if node is None:
            return None
        if node.op_type == "Conv":
            return self._shapes[node.input[1]][0] if node.input[1] in self._shapes else None
        if _joins_channels(node):
            return self._channels_of(node.input)
        return self._channels(node.input[0]) if node.op_type in _PER_CHANNEL else None

    def _channels_of(self, names: Iterable[str]) -> int | None:
        """Return how many channels tensors have together; None: unknown."""
        total = 0
        for name in names:
            count = self._channels(name)
            if count is None:
                return None
            total += count
        return total


def _joins_channels(node: onnx.NodeProto) -> bool:
    return node.op_type == "Concat" and _attribute(node, "axis", 0) == 1


def _attribute(node: onnx.NodeProto, name: str, default: int) -> int:
    return next((int(entry.i) for entry in node.attribute if entry.name == name), default)


def _measure(
    model: onnx.ModelProto, names: Sequence[str], pictures: Sequence[npt.NDArray[np.uint8]]
) -> dict[str, npt.NDArray[np.float32]]:
    """Return the greatest absolute value of each channel of each tensor over the pictures."""
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
    session = open_session(probe)
    answers = [session.run(None, {"image": picture[None]}) for picture in pictures]
    tops = [np.max(values, axis=0) for values in zip(*answers, strict=True)]
    return dict(zip(names, tops, strict=True))


def _scale(
    stream: _Stream, factors: npt.NDArray[np.float32], weights: dict[str, onnx.TensorProto]
) -> None:
    for node in stream.makers:
        for name, shape in ((node.input[1], (-1, 1, 1, 1)), (node.input[2], (-1,))):
            _set(weights[name], numpy_helper.to_array(weights[name]) * factors.reshape(shape))
    for node, first in stream.readers:
        values = numpy_helper.to_array(weights[node.input[1]]).copy()
        values[:, first : first + len(factors)] /= factors.reshape(1, -1, 1, 1)
        _set(weights[node.input[1]], values)


def _set(tensor: onnx.TensorProto, values: npt.NDArray[np.float32]) -> None:
    tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float32), tensor.name))


def quantize(
    model: onnx.ModelProto,
    pictures: Sequence[npt.NDArray[np.uint8]],
    threshold: float,
    progress: Callable[[int, int], None] | None,
    *,
    unsigned: bool = False,
) -> onnx.ModelProto:
    """Return the model with int8 convolutions: QDQ, weights symmetric and per channel.

    Which convolutions stay fp32 is measured (`sensitivity`); the heads do in any case. Only what a
    convolution reads is quantized: its output runs through clip or addition in fp32 first, which a
    runtime fuses with the convolution. The bias stays fp32; TensorRT takes no other.
    Ranges are those of the least squared error, of activations and of each weight channel: up to
    the greatest value that was seen, one bright pixel would cost all others half a bit. What the
    rounding of the weights moves on average is taken out of the bias.

    Args:
        model: An fp32 graph of this package; it is changed on the way.
        pictures: (H, W) uint8 each, from which the ranges are taken.
        threshold: The probability from which a pixel is a defect's.
        progress: Called with (steps done, steps).
        unsigned: Whether activations are uint8 with a zero point instead of symmetric int8. It is
            what the kernels of CPUs take; OpenVINO 2026.4 rounds joined int8 activations of this
            network to whole numbers.

    Raises:
        ParityError: Each convolution alone moves the answers too far.
    """
    equalise(model, pictures)
    prepared = _prepare(model, pictures, progress, unsigned=unsigned)
    chosen = choose_layers(model, prepared.work, prepared.quantized, pictures, threshold, progress)
    return prepared.quantized(chosen)


@dataclass(frozen=True)
class _Prepared:
    """A model of which any convolutions can be quantized.

    Attributes:
        model: In fp32.
        settled: Weights and bias of each convolution that can be int8, by its output's name.
        ranges: Of each activation that they read.
        work: Multiplications of each of them, by its output's name, on an average picture.
        unsigned: See `quantize`.
    """

    model: onnx.ModelProto
    settled: Mapping[str, _Parameters]
    ranges: Mapping[str, tuple[npt.NDArray[Any], npt.NDArray[Any]]]
    work: Mapping[str, float]
    unsigned: bool

    def quantized(self, outputs: Collection[str]) -> onnx.ModelProto:
        """Return the model with the convolutions that write these tensors in int8."""
        model = onnx.ModelProto()
        model.CopyFrom(self.model)
        layers = [node for node in model.graph.node if node.output[0] in outputs]
        for index, node in enumerate(layers):
            node.name = f"int8_{index}"
            # Tensors of its own: those of the exporter may be another layer's, too.
            names = [f"{node.name}_weight", f"{node.name}_bias"]
            own = map(numpy_helper.from_array, self.settled[node.output[0]], names)
            model.graph.initializer.extend(own)
            node.input[1:] = names
        drop_unused(model.graph)
        quantizer = QDQQuantizer(
            model,
            per_channel=True,
            reduce_range=False,
            weight_qType=QuantType.QInt8,
            activation_qType=QuantType.QUInt8 if self.unsigned else QuantType.QInt8,
            tensors_range=TensorsData(CalibrationMethod.MinMax, dict(self.ranges)),
            nodes_to_quantize=[node.name for node in layers],
            nodes_to_exclude=[],
            op_types_to_quantize=["Conv"],
            extra_options={
                "ActivationSymmetric": not self.unsigned,
                "WeightSymmetric": True,
                "QuantizeBias": False,
                "OpTypesToExcludeOutputQuantization": ["Conv"],
            },
        )
        quantizer.quantize_model()
        quantizer.model.topological_sort()
        made: onnx.ModelProto = quantizer.model.model
        return made


def _prepare(
    model: onnx.ModelProto,
    pictures: Sequence[npt.NDArray[np.uint8]],
    progress: Callable[[int, int], None] | None,
    *,
    unsigned: bool,
) -> _Prepared:
    """Measure what all convolutions read, but for the heads, which no other one reads."""
    read = before_convolutions(model.graph)
    layers = [n for n in model.graph.node if n.op_type == "Conv" and n.output[0] in read]
    seen = _watch(model, sorted({node.input[0] for node in layers}), pictures, progress)
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    return _Prepared(
        model=model,
        settled={n.output[0]: _settled(n, weights, seen[n.input[0]].means) for n in layers},
        ranges={name: tensor.range_of(unsigned=unsigned) for name, tensor in seen.items()},
        work={
            n.output[0]: weights[n.input[1]].size * seen[n.input[0]].positions / _stride(n)
            for n in layers
        },
        unsigned=unsigned,
    )


def _stride(node: onnx.NodeProto) -> int:
    """Return how many positions of its input a convolution takes for one of its output."""
    steps = next((entry.ints for entry in node.attribute if entry.name == "strides"), (1, 1))
    return math.prod(steps)


_LEVELS, _WEIGHT_LEVELS = 255, 127
_FACTORS = np.linspace(0.2, 1, 17)
"""Of the range that was seen, tried for the one of the least squared error."""

_SAMPLE = 2000
"""Values of a tensor that are kept of each picture."""


@dataclass(frozen=True)
class _Seen:
    """What the pictures brought to a tensor (N, C, H, W).

    Attributes:
        values: (V,) float32, some of its values.
        extent: The least and the greatest of all, 0 among them.
        means: (C,) float64, of each channel.
        positions: Mean of H times W.
    """

    values: npt.NDArray[np.float32]
    extent: tuple[float, float]
    means: npt.NDArray[np.float64]
    positions: float

    def range_of(self, *, unsigned: bool) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        """Return the least and greatest number that 255 levels span with the least error."""
        low, high = self.extent
        if not unsigned:
            low, high = -max(-low, high), max(-low, high)
        spans = [(low * factor, high * factor) for factor in _FACTORS]
        errors = [self._error(*span) for span in spans]
        low, high = spans[int(np.argmin(errors))]
        return np.array(low, np.float32), np.array(high, np.float32)

    def _error(self, low: float, high: float) -> float:
        step = max(high - low, 1e-9) / _LEVELS
        zero = round(-low / step)
        levels = np.clip(np.rint(self.values / step), -zero, _LEVELS - zero)
        return float(np.square(levels * step - self.values).mean())


def _watch(
    model: onnx.ModelProto,
    names: Sequence[str],
    pictures: Sequence[npt.NDArray[np.uint8]],
    progress: Callable[[int, int], None] | None,
) -> dict[str, _Seen]:
    """Run the pictures through the model and return what came to each tensor."""
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    for name in names:
        probe.graph.output.append(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    session = open_session(probe)
    random = np.random.default_rng(0)
    values: dict[str, list[npt.NDArray[np.float32]]] = {name: [] for name in names}
    extents = dict.fromkeys(names, (0.0, 0.0))
    means: dict[str, npt.NDArray[np.float64]] = {}
    positions = dict.fromkeys(names, 0.0)
    for done, picture in enumerate(pictures, start=1):
        for name, tensor in zip(names, session.run(names, {"image": picture[None]}), strict=True):
            values[name].append(random.choice(tensor.ravel(), _SAMPLE))
            low, high = extents[name]
            extents[name] = min(low, float(tensor.min())), max(high, float(tensor.max()))
            mean = tensor.mean(axis=(0, 2, 3), dtype=np.float64) / len(pictures)
            means[name] = means[name] + mean if name in means else mean
            positions[name] += math.prod(tensor.shape[2:]) / len(pictures)
        if progress is not None:
            progress(done, len(pictures))
    return {
        name: _Seen(np.concatenate(values[name]), extents[name], means[name], positions[name])
        for name in names
    }


def _settled(
    node: onnx.NodeProto,
    weights: dict[str, npt.NDArray[np.float32]],
    means: npt.NDArray[np.float64],
) -> _Parameters:
    """Return a layer's weights clipped to their best range, and a bias good for their rounding.

    Source: https://arxiv.org/abs/1906.04721 (section 4.2, bias correction).
    """
    values = weights[node.input[1]]
    bias = weights[node.input[2]] if len(node.input) > 2 else np.zeros(len(values), np.float32)
    clipped, rounded = _rounded(values.reshape(len(values), -1))
    change = (rounded - values.reshape(rounded.shape)).reshape(*values.shape[:2], -1).sum(axis=2)
    groups = _attribute(node, "group", 1)
    grouped = change.reshape(groups, -1, values.shape[1]), means.reshape(groups, -1)
    shift = np.einsum("goc,gc->go", *grouped).ravel()
    return clipped.reshape(values.shape).astype(np.float32), (bias - shift).astype(np.float32)


def _rounded(
    rows: npt.NDArray[np.float32],
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Return rows (O, V) clipped to the range of the least error each, and those after rounding."""
    greatest = np.maximum(np.abs(rows).max(axis=1, keepdims=True), 1e-12)
    least = np.full((len(rows), 1), np.inf)
    best = rows, rows
    for factor in _FACTORS[::-1]:
        clipped = np.clip(rows, -greatest * factor, greatest * factor)
        step = greatest * factor / _WEIGHT_LEVELS
        rounded = np.rint(clipped / step) * step
        error = np.square(rounded - rows).mean(axis=1, keepdims=True)
        better = error < least
        least = np.where(better, error, least)
        best = np.where(better, clipped, best[0]), np.where(better, rounded, best[1])
    return best


def drop_unused(graph: onnx.GraphProto) -> None:
    """Drop the weights that no node reads."""
    used = {name for node in graph.node for name in node.input}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    graph.ClearField("initializer")
    graph.initializer.extend(kept)
