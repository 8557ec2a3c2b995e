"""int8: convolutions between quantize and dequantize nodes, calibrated on pictures."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

from magtiles_seg.export.core import EXACT_CONVOLUTIONS, before_convolutions
from magtiles_seg.export.equalise import equalise

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
        pictures: (H, W) uint8 each, to calibrate on.
        progress: Called with (pictures calibrated on, pictures).
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
    """Hands the calibration pictures over, one at a time."""

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
