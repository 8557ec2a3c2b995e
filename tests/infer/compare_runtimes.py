"""Whether an old onnxruntime or OpenVINO reads a model file and answers as today's does.

python tests/infer/compare_runtimes.py write MODEL.onnx cases.npz   # with this package
old/bin/python tests/infer/compare_runtimes.py read MODEL.onnx cases.npz   # numpy and runtimes
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

Answer = Callable[[Any], dict[str, Any]]


def write_cases(model: str, cases: str) -> None:
    """Write synthetic tiles and what the installed onnxruntime answers."""
    from magtiles_seg.export.parity import frozen_pictures

    (_, answer), *_ = runtimes(model)
    content = {}
    for index, picture in enumerate(frozen_pictures()):
        content[f"image_{index}"] = picture
        for name, array in answer(picture[None]).items():
            content[f"{name}_{index}"] = array
    np.savez(cases, **content)  # type: ignore[arg-type]


def runtimes(model: str) -> Iterator[tuple[str, Answer]]:
    """Yield name and call of every runtime that is installed and loads the model."""
    for load in (_onnxruntime, _openvino):
        try:
            yield load(model)
        except ImportError as error:
            print(error)  # noqa: T201
        except Exception as error:
            print(f"{load.__name__[1:]} cannot load it: {str(error).strip().splitlines()[-1]}")  # noqa: T201


def _onnxruntime(model: str) -> tuple[str, Answer]:
    ort = importlib.import_module("onnxruntime")
    session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    names = [entry.name for entry in session.get_outputs()]

    def run(images: Any) -> dict[str, Any]:  # noqa: ANN401
        return dict(zip(names, session.run(names, {"image": images}), strict=True))

    return f"onnxruntime {ort.__version__}", run


def _openvino(model: str) -> tuple[str, Answer]:
    vino = importlib.import_module("openvino")
    compiled = vino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})

    def run(images: Any) -> dict[str, Any]:  # noqa: ANN401
        return {key.any_name: value for key, value in compiled(images).items()}

    return f"OpenVINO {vino.__version__}", run


def read_cases(model: str, cases: str) -> None:
    """Print, for each output of each runtime, the greatest difference from the cases."""
    known = np.load(cases)
    count = sum(name.startswith("image_") for name in known.files)
    for runtime, answer in runtimes(model):
        answers = [answer(known[f"image_{index}"][None]) for index in range(count)]
        print(runtime)  # noqa: T201
        for name in answers[0]:
            pairs = [(one[name], known[f"{name}_{index}"]) for index, one in enumerate(answers)]
            greatest = max(np.abs(a.astype(float) - b.astype(float)).max() for a, b in pairs)
            differ = sum(int((a != b).sum()) for a, b in pairs)
            total = sum(b.size for _, b in pairs)
            print(f"  {name}: greatest difference {greatest:.3g}, {differ} of {total} differ")  # noqa: T201


if __name__ == "__main__":
    verb, *words = sys.argv[1:]
    {"write": write_cases, "read": read_cases}[verb](*words)
