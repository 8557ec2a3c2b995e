"""The decision inside a model file: mask, score and verdict as outputs, for other runtimes.

A program that runs the ONNX file without this library gets what `magtiles_seg.decision` makes of
the probabilities, except for what looks at whole regions: see `left_out`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from magtiles_seg.decision import Decision
from magtiles_seg.errors import BackendUnavailableError, ParityError
from magtiles_seg.export.sealed import VERDICTS, has_decision, parse_sealed, sealed
from magtiles_seg.infer.backends.onnxfile import DECISION_OUTPUTS

try:
    import onnx
    from onnx import TensorProto, helper, numpy_helper
except ImportError as error:
    raise BackendUnavailableError(
        "a decision in the graph needs onnx: pip install 'magtiles-seg[export]'"
    ) from error

SCORE_ROUNDING = 1e-5
"""How far the graph's float32 score may be from the library's float64 one."""

_PREFIX = "decision/"
_AXES_HW = np.array([1, 2], np.int64)


def with_decision(data: bytes) -> bytes:
    """Return a model file whose graph decides as well, by the thresholds of its card.

    Args:
        data: A model file of this package; a decision that its graph has already is replaced.

    Raises:
        ModelError: The file is damaged, or not a model of this package.
    """
    model, card = parse_sealed(data, "the model that is to decide")
    remove_decision(model)
    add_decision(model, card.decision)
    onnx.checker.check_model(model, full_check=True)
    return sealed(model, card)


def without_decision(data: bytes) -> bytes:
    """Return a model file with the outputs `probability` and `classes` alone.

    Raises:
        ModelError: The file is damaged, or not a model of this package.
    """
    model, card = parse_sealed(data, "the model")
    if not has_decision(model):
        return data
    remove_decision(model)
    return sealed(model, card)


def remove_decision(model: onnx.ModelProto) -> None:
    """Take the decision out of a graph, if it has one."""
    graph = model.graph
    for kept, entries in (
        ([node for node in graph.node if not node.name.startswith(_PREFIX)], graph.node),
        ([one for one in graph.initializer if not one.name.startswith(_PREFIX)], graph.initializer),
        ([one for one in graph.output if one.name not in DECISION_OUTPUTS], graph.output),
    ):
        copies = [type(entry).FromString(entry.SerializeToString()) for entry in kept]
        del entries[:]
        entries.extend(copies)


def add_decision(model: onnx.ModelProto, decision: Decision) -> None:
    """Append the decision to a graph that answers `probability` (N, H, W) float32."""
    tail = _Tail(model.graph)
    reached = tail.add("GreaterOrEqual", "probability", np.float32(decision.threshold))
    tail.bytes_of(reached, "mask")
    largest = _largest(tail, decision)
    mean = _mean(tail, largest)
    _score(tail, mean, largest, decision)
    _verdict(tail, mean, decision)
    for name in DECISION_OUTPUTS:
        axes = ("batch", "height", "width") if name == "mask" else ("batch",)
        kind = TensorProto.FLOAT if name == "score" else TensorProto.UINT8
        model.graph.output.append(helper.make_tensor_value_info(name, kind, axes))


class _Tail:
    """Nodes at the end of a graph."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self._graph = graph
        self._count = 0

    def constant(self, value: npt.ArrayLike) -> str:
        """Add a constant and return its name."""
        self._count += 1
        name = f"{_PREFIX}constant_{self._count}"
        self._graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def add(self, operator: str, *inputs: Any, output: str = "", **attributes: Any) -> str:  # noqa: ANN401
        """Add a node, with constants for what is not a name, and return its output's name."""
        names = [one if isinstance(one, str) else self.constant(one) for one in inputs]
        self._count += 1
        name = f"{_PREFIX}{operator}_{self._count}"
        outputs = [output or name] if operator != "TopK" else [name, f"{name}_places"]
        self._graph.node.append(helper.make_node(operator, names, outputs, name=name, **attributes))
        return outputs[0]

    def bytes_of(self, truth: str, output: str) -> None:
        """Give truths as bytes 0 and 1, by way of floats: TensorRT has no other way."""
        number = self.add("Cast", truth, to=TensorProto.FLOAT)
        self.add("Cast", number, output=output, to=TensorProto.UINT8)


def _largest(tail: _Tail, decision: Decision) -> str:
    """Add what `decision.score_of` averages, and return it, (N, k) float32."""
    inner = "probability"
    if decision.score_margin_px:
        size = tail.add("Shape", "probability", start=1)
        quarter = tail.add("Div", size, np.array([4], np.int64))
        start = tail.add("Min", quarter, np.array([decision.score_margin_px], np.int64))
        inner = tail.add("Slice", inner, start, tail.add("Sub", size, start), _AXES_HW)
    flat = tail.add("Reshape", inner, np.array([0, -1], np.int64))
    pixels = tail.add("Shape", flat, start=1)
    count = tail.add("Min", pixels, np.array([decision.score_top_k_px], np.int64))
    return tail.add("TopK", flat, count, axis=1, sorted=0)


def _mean(tail: _Tail, values: str) -> str:
    """Add the mean, (N,) float32 in 0..1."""
    mean = tail.add("ReduceMean", values, np.array([1], np.int64), keepdims=0)
    return tail.add("Clip", mean, np.float32(0), np.float32(1))


def _score(tail: _Tail, mean: str, largest: str, decision: Decision) -> None:
    """Add `decision.score` of the mean."""
    if (decision.score_scale, decision.score_bias) == (1.0, 0.0):
        tail.add("Identity", mean, output="score")
        return
    rest = _mean(tail, tail.add("Sub", np.float32(1), largest))  # near 1, 1 - mean loses digits
    logit = tail.add("Sub", tail.add("Log", mean), tail.add("Log", rest))
    scaled = tail.add("Mul", logit, np.float32(decision.score_scale))
    shifted = tail.add("Add", scaled, np.float32(decision.score_bias))
    tail.add("Sigmoid", shifted, output="score")


def _verdict(tail: _Tail, mean: str, decision: Decision) -> None:
    """Add the verdict: 2, and one less for each limit that the score is below.

    The mean is compared, which rises with the score and is rounded once less. What is no number is
    below no limit, and so a reject.
    """
    verdict: Any = np.float32(2)
    review = decision.reject_score if decision.review_score is None else decision.review_score
    for limit in (decision.reject_score, review):
        below = tail.add("Less", mean, _limit_of_mean(decision, limit))
        verdict = tail.add("Sub", verdict, tail.add("Cast", below, to=TensorProto.FLOAT))
    tail.add("Cast", verdict, output="verdict", to=TensorProto.UINT8)


def _limit_of_mean(decision: Decision, limit: float) -> np.float32:
    """Return the least float32 mean whose score reaches a limit."""
    plain = (decision.score_scale, decision.score_bias) == (1.0, 0.0)
    if not plain and 0 < limit < 1:
        logit = math.log(limit) - math.log1p(-limit)
        logit = (logit - decision.score_bias) / decision.score_scale
        small = math.exp(-abs(logit))
        limit = (1.0 if logit >= 0 else small) / (1 + small)
    nearest = np.float32(limit)
    return nearest if float(nearest) >= limit else np.nextafter(nearest, np.float32(2))


def check_decision(data: bytes, pictures: Iterable[npt.NDArray[np.uint8]]) -> None:
    """Check on onnxruntime that a graph decides as the library does.

    Args:
        data: A model file with the decision in its graph.
        pictures: (H, W) uint8 each, sides of at least 32 px.

    Raises:
        ParityError: A mask differs, a score by more than `SCORE_ROUNDING`, or a verdict where the
            score is further than that from every limit.
    """
    from magtiles_seg.infer.backends.vendor import import_onnxruntime

    _, card = parse_sealed(data, "the model that decides")
    session = import_onnxruntime().InferenceSession(data, providers=["CPUExecutionProvider"])
    names = ["probability", *DECISION_OUTPUTS]
    for index, picture in enumerate(pictures):
        answers = session.run(names, {"image": picture[None]})
        wrong = _differences(card.decision, [answer[0] for answer in answers])
        if wrong:
            raise ParityError(
                f"the decision in the graph differs from the library's on picture {index}: {wrong}"
            )


def _differences(decision: Decision, answers: Sequence[Any]) -> str:
    probability, mask, score, verdict = answers
    expected = decision.score_of(probability)
    limits = (decision.reject_score, decision.review_score)
    near = any(one is not None and abs(expected - one) <= SCORE_ROUNDING for one in limits)
    wrong = []
    if not np.array_equal(mask, probability >= np.float32(decision.threshold)):
        wrong.append("the mask")
    if not abs(float(score) - expected) <= SCORE_ROUNDING:
        wrong.append(f"score {float(score):.7g}, expected {expected:.7g}")
    if VERDICTS[int(verdict)] != decision.verdict(expected) and not near:
        wrong.append(f"verdict {VERDICTS[int(verdict)]}, expected {decision.verdict(expected)}")
    return "; ".join(wrong)
