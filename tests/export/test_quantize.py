from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from magtiles_seg.export.quantize import _Seen, _settled, equalise

WIDTH = 3
RANDOM = np.random.default_rng(0)


def weight(name: str, *shape: int) -> onnx.TensorProto:
    values = RANDOM.normal(size=shape) * 10.0 ** RANDOM.uniform(-2, 1, (shape[0], 1, 1, 1))
    return numpy_helper.from_array(values.reshape(shape).astype(np.float32), name)


def bottleneck(*, clipped: bool = False, nested: bool = False) -> onnx.ModelProto:
    """Two projections joined by an addition, read by a convolution and, doubled, by a decoder.

    Nested, what the decoder reads was joined before with what it reads besides.
    """
    joined = helper.make_node("Concat", ["sum", "d"], ["skip"], axis=1)
    nodes = [
        helper.make_node("Unsqueeze", ["image", "one"], ["channel"]),
        helper.make_node("Cast", ["channel"], ["grey"], to=onnx.TensorProto.FLOAT),
        helper.make_node("Conv", ["grey", "w0", "b0"], ["a"]),
        helper.make_node(
            "Clip" if clipped else "Conv", ["a"] if clipped else ["a", "w1", "b1"], ["b"]
        ),
        helper.make_node("Add", ["a", "b"], ["sum"]),
        helper.make_node("Conv", ["sum", "w2", "b2"], ["c"]),
        helper.make_node("Clip", ["c", "zero", "six"], ["d"]),
        *([joined] if nested else []),
        helper.make_node("Concat", ["d", "skip" if nested else "sum"], ["both"], axis=1),
        helper.make_node("Conv", ["both", "w3", "b3"], ["e"]),
        helper.make_node("Sigmoid", ["e"], ["probability"]),
    ]
    values = [
        numpy_helper.from_array(np.array([1]), "one"),
        numpy_helper.from_array(np.array(0, np.float32), "zero"),
        numpy_helper.from_array(np.array(6, np.float32), "six"),
        weight("w0", WIDTH, 1, 1, 1),
        *(weight(f"w{index}", WIDTH, WIDTH, 1, 1) for index in (1, 2)),
        weight("w3", 1, (3 if nested else 2) * WIDTH, 1, 1),
        *(
            numpy_helper.from_array(RANDOM.normal(size=WIDTH).astype(np.float32), f"b{i}")
            for i in range(3)
        ),
        numpy_helper.from_array(np.zeros(1, np.float32), "b3"),
    ]
    image = helper.make_tensor_value_info("image", onnx.TensorProto.UINT8, ["n", "h", "w"])
    answer = helper.make_tensor_value_info("probability", onnx.TensorProto.FLOAT, None)
    graph = helper.make_graph(nodes, "g", [image], [answer], values)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def run(model: onnx.ModelProto, output: str) -> NDArray[np.float32]:
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    if output != "probability":
        probe.graph.output.append(
            helper.make_tensor_value_info(output, onnx.TensorProto.FLOAT, None)
        )
    session = onnxruntime.InferenceSession(probe.SerializeToString())
    answer: NDArray[np.float32] = session.run([output], {"image": PICTURE[None]})[0]
    return answer


PICTURE = RANDOM.integers(0, 256, (32, 32), np.uint8)


@pytest.mark.parametrize("nested", [False, True])
def test_equalise_brings_channels_to_one_range_and_keeps_the_answers(nested: bool) -> None:
    model = bottleneck(nested=nested)
    before, spread = run(model, "probability"), np.abs(run(model, "sum")).max(axis=(0, 2, 3))
    assert equalise(model, [PICTURE]) == 1
    tensors = [np.abs(run(model, name)).max(axis=(0, 2, 3)) for name in ("a", "b", "sum")]
    assert np.allclose(np.max(tensors, axis=0), 6)
    assert spread.max() > 2 * spread.min()
    assert np.abs(run(model, "probability") - before).max() <= 1e-5


@pytest.mark.parametrize("bare", [(0,), (1,), (1, 2)])
def test_equalise_keeps_the_answers_of_shared_weights_and_of_a_bias_left_out(
    bare: tuple[int, ...],
) -> None:
    model = bottleneck()
    convolutions = [node for node in model.graph.node if node.op_type == "Conv"]
    convolutions[2].input[1] = convolutions[1].input[1]
    for index in bare:
        del convolutions[index].input[2]
    before = run(model, "probability")
    assert equalise(model, [PICTURE]) == 1
    assert np.abs(run(model, "probability") - before).max() <= 1e-5


def test_equalise_leaves_alone_what_a_clip_writes() -> None:
    model = bottleneck(clipped=True)
    before = model.SerializeToString()
    assert equalise(model, [PICTURE]) == 0
    assert model.SerializeToString() == before


def test_equalise_leaves_alone_what_is_joined_along_another_axis() -> None:
    model = bottleneck()
    next(node for node in model.graph.node if node.op_type == "Concat").attribute[0].i = 2
    last = next(tensor for tensor in model.graph.initializer if tensor.name == "w3")
    last.CopyFrom(weight("w3", 1, WIDTH, 1, 1))
    before = run(model, "probability")
    assert equalise(model, [PICTURE]) == 0
    assert np.array_equal(run(model, "probability"), before)


def test_range_of_least_error_gives_up_a_lone_greatest_value() -> None:
    values = np.append(RANDOM.uniform(0, 1, 50000), 2).astype(np.float32)
    seen = _Seen(values, (0.0, 2.0), np.zeros(1), 1)
    low, high = seen.range_of(unsigned=True)
    assert low == 0
    assert 1 <= high < 2
    assert seen._error(0.0, float(high)) < seen._error(0.0, 2.0)
    low, high = seen.range_of(unsigned=False)
    assert low == -high


def test_settled_bias_takes_out_what_the_rounding_of_weights_moves() -> None:
    for groups, shape in ((1, (8, 6, 3, 3)), (6, (6, 1, 3, 3)), (2, (4, 3, 1, 1))):
        before = RANDOM.normal(size=shape).astype(np.float32)
        means = RANDOM.uniform(0, 6, groups * shape[1])
        node = helper.make_node("Conv", ["x", "w"], ["y"], group=groups)
        clipped, bias = _settled(node, {"w": before}, means)
        step = np.abs(clipped).max(axis=(1, 2, 3), keepdims=True) / 127
        rounded = np.rint(clipped / step) * step
        inputs = means.reshape(groups, 1, shape[1])
        moved = (rounded - before).reshape(groups, -1, shape[1], shape[2] * shape[3]).sum(axis=3)
        assert np.abs((moved * inputs).sum(axis=2).ravel()).max() > 1e-3
        assert np.allclose((moved * inputs).sum(axis=2).ravel() + bias, 0, atol=1e-4)
