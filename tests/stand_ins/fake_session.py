"""The arithmetic of the stand-in for TensorRT: one onnxruntime session a model."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import onnxruntime


@lru_cache(maxsize=2)
def open_session(onnx: bytes) -> Any:  # noqa: ANN401
    """Return a session on one thread; it raises what onnxruntime raises."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(onnx, options, providers=["CPUExecutionProvider"])
