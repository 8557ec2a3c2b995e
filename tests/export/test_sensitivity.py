from __future__ import annotations

from collections.abc import Callable, Collection

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from magtiles_seg.errors import ParityError
from magtiles_seg.export.sensitivity import MOST_ERROR, choose_layers

GREY = np.arange(256, dtype=np.uint8).reshape(16, 16)
"""Each grey once; in `graph` their logits are -8 to 8."""


def graph(*, shift: float = 0.0, stretch: float = 0.0) -> onnx.ModelProto:
    """A model whose logit is grey / 16 - 8, with an error that is the same everywhere, or grows."""
    values = {"sixteen": 16.0 / (1 + stretch), "eight": 8.0 * (1 + stretch) - shift}
    nodes = [
        helper.make_node("Cast", ["image"], ["grey"], to=onnx.TensorProto.FLOAT),
        helper.make_node("Div", ["grey", "sixteen"], ["positive"]),
        helper.make_node("Sub", ["positive", "eight"], ["logit"]),
        helper.make_node("Sigmoid", ["logit"], ["probability"]),
    ]
    constants = [numpy_helper.from_array(np.array(v, np.float32), k) for k, v in values.items()]
    ends = [
        helper.make_tensor_value_info("image", onnx.TensorProto.UINT8, ["n", "h", "w"]),
        helper.make_tensor_value_info("probability", onnx.TensorProto.FLOAT, ["n", "h", "w"]),
    ]
    made = helper.make_graph(nodes, "g", ends[:1], ends[1:], constants)
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def shifted(errors: dict[str, float]) -> Callable[[Collection[str]], onnx.ModelProto]:
    """Return what gives a model whose logits are off by the sum of its int8 layers' errors."""
    return lambda names: graph(shift=sum(errors[name] for name in names))


def test_choose_layers_keeps_in_float_what_costs_most_for_its_work() -> None:
    small, large = 0.6 * MOST_ERROR, 0.9 * MOST_ERROR
    errors = {"first": large, "cheap": small, "busy": large}
    chosen = choose_layers(
        graph(), {"first": 1, "cheap": 1, "busy": 100}, shifted(errors), [GREY], 0.5
    )
    assert chosen == ["busy"]
    chosen = choose_layers(
        graph(), {"first": 1, "cheap": 1, "busy": 1}, shifted(errors | {"busy": 0.0}), [GREY], 0.5
    )
    assert sorted(chosen) == ["busy", "cheap"]


def test_choose_layers_takes_all_that_err_little_together() -> None:
    errors = dict.fromkeys("abc", 0.55 * MOST_ERROR)
    seen: list[tuple[int, int]] = []
    chosen = choose_layers(
        graph(),
        dict.fromkeys("abc", 1),
        shifted(errors),
        [GREY] * 50,
        0.5,
        lambda *step: seen.append(step),
    )
    assert sorted(chosen) == ["a", "b", "c"]
    assert seen == [(1, 3), (2, 3), (3, 3)]


@pytest.mark.parametrize(("threshold", "fits"), [(0.5, True), (0.99, False)])
def test_choose_layers_counts_errors_by_how_near_the_threshold_they_are(
    threshold: float, *, fits: bool
) -> None:
    def quantized(names: Collection[str]) -> onnx.ModelProto:
        return graph(stretch=0.7 * MOST_ERROR * len(names))

    if fits:
        assert choose_layers(graph(), {"a": 1}, quantized, [GREY], threshold) == ["a"]
    else:
        with pytest.raises(ParityError, match="suits none of the model's convolutions"):
            choose_layers(graph(), {"a": 1}, quantized, [GREY], threshold)
