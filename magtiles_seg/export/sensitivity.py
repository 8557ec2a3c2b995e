"""Which convolutions can be int8: what each costs alone, measured, against the work it saves."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime

from magtiles_seg.errors import ParityError
from magtiles_seg.infer.backends.base import available_cores

MOST_ERROR = 0.04
"""Root mean square of what int8 may move the logit of a pixel near the threshold."""

_MOST_PICTURES = 12
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

    Each is quantized alone. Their squared errors add up, as those of independent roundings do: the
    convolutions that err most for the work that they would save stay fp32, as few as bring the sum
    of the others to `MOST_ERROR` squared.

    Args:
        model: The fp32 graph.
        work: Multiplications of each convolution that may be int8, by its output's name.
        quantized: Returns the model with some of them in int8.
        pictures: (H, W) uint8 each, to measure on; of many only some, evenly spread.
        threshold: The probability from which a pixel is a defect's.
        progress: Called with (convolutions measured, convolutions).

    Raises:
        ParityError: Each of them alone moves the answers further.
    """
    meter = _Meter(model, pictures[:: -(-len(pictures) // _MOST_PICTURES)], threshold)
    errors = {}
    for done, name in enumerate(work, start=1):
        errors[name] = meter.error(quantized([name]))
        if progress is not None:
            progress(done, len(work))
    ranked = sorted(work, key=lambda name: errors[name] / work[name])
    sums = np.cumsum([errors[name] for name in ranked])
    chosen = ranked[: np.searchsorted(sums, MOST_ERROR**2, side="right")]
    if not chosen:
        raise ParityError(
            "int8 suits none of the model's convolutions: expected one that moves the logits near "
            f"the threshold by at most {MOST_ERROR:g}; export as fp16 or fp32"
        )
    return chosen


class _Meter:
    """Measures how far a model's logits are from the fp32 model's, near the threshold."""

    def __init__(
        self, model: onnx.ModelProto, pictures: Sequence[npt.NDArray[np.uint8]], threshold: float
    ) -> None:
        self._pictures = pictures
        self._logits = self._run(model)
        # Far from the threshold nothing that int8 does changes a mask.
        distance = self._logits - _logit(np.array(threshold))
        self._weights = np.exp(-np.square(distance) / 2)

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
    """Return a session on all cores, which takes no time from other work while it waits."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = available_cores()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(model.SerializeToString(), options)
