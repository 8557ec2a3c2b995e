"""Which convolutions can be int8: what each costs alone, measured, against the work it saves."""

from __future__ import annotations

import bisect
from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime

from magtiles_seg.errors import ModelError
from magtiles_seg.infer.backends.base import available_cores

MOST_ERROR = 0.04
"""Root mean square of what int8 may move the logit of a pixel near the threshold."""

_MOST_PICTURES = 24
_LEAST_PROBABILITY = 1e-7


def choose_layers(
    model: onnx.ModelProto,
    work: Mapping[str, float],
    quantized: Callable[[Collection[str]], onnx.ModelProto],
    pictures: Sequence[npt.NDArray[np.uint8]],
    threshold: float,
    progress: Callable[[int, int], None] | None = None,
) -> list[str]:
    """Return the convolutions that can be int8 together.

    Each is quantized alone and its squared error divided by the work that it saves; the worst stay
    fp32, as few as bring the error of all the others together below `MOST_ERROR`.

    Args:
        model: The fp32 graph.
        work: Multiplications of each convolution that may be int8, by its output's name.
        quantized: Returns the model with some of them in int8.
        pictures: (H, W) uint8 each, to measure on; of many only some, evenly spread.
        threshold: The probability from which a pixel is a defect's.
        progress: Called with (convolutions measured, convolutions).

    Raises:
        ModelError: Each of them alone moves the answers further.
    """
    meter = _Meter(model, pictures[:: -(-len(pictures) // _MOST_PICTURES)], threshold)
    costs = {}
    for done, (name, saved) in enumerate(work.items(), start=1):
        costs[name] = meter.error(quantized([name])) / saved
        if progress is not None:
            progress(done, len(work))
    ranked = sorted(work, key=lambda name: -costs[name])
    kept = bisect.bisect_left(
        range(len(ranked)),
        True,
        key=lambda first: meter.error(quantized(ranked[first:])) <= MOST_ERROR**2,
    )
    if kept == len(ranked):
        raise ModelError(
            "int8 suits none of the model's convolutions: expected one that moves the logits near "
            f"the threshold by at most {MOST_ERROR:g}; export as fp16 or fp32"
        )
    return ranked[kept:]


class _Meter:
    """Measures how far a model's logits are from the fp32 model's, near the threshold."""

    def __init__(
        self, model: onnx.ModelProto, pictures: Sequence[npt.NDArray[np.uint8]], threshold: float
    ) -> None:
        self._pictures = pictures
        self._logits = self._run(model)
        distance = self._logits - _logit(np.array(threshold))
        self._weights = np.exp(-np.square(distance) / 2)
        """Of each pixel; far from the threshold nothing that int8 does changes a mask."""

    def error(self, model: onnx.ModelProto) -> float:
        """Return the mean squared difference of the logits."""
        return float(np.average(np.square(self._run(model) - self._logits), weights=self._weights))

    def _run(self, model: onnx.ModelProto) -> npt.NDArray[np.float64]:
        session = open_session(model)
        answers = [
            session.run(["probability"], {"image": picture[None]})[0].ravel()
            for picture in self._pictures
        ]
        return _logit(np.concatenate(answers))


def _logit(probability: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    inside = np.clip(probability.astype(np.float64), _LEAST_PROBABILITY, 1 - _LEAST_PROBABILITY)
    return np.log(inside / (1 - inside))


def open_session(model: onnx.ModelProto) -> onnxruntime.InferenceSession:
    """Return a session on all cores."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = available_cores()
    return onnxruntime.InferenceSession(model.SerializeToString(), options)
