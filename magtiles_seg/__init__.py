"""Finds surface defects of magnetic tiles: pixels in, a checked `Segmentation` out.

>>> import magtiles_seg
>>> from magtiles_seg.dataset.synthetic import synthetic_tile
>>> result = magtiles_seg.segment(synthetic_tile(seed=1, defect="blowhole").image)
>>> result.verdict
'reject'

Importing the package costs numpy at most: each name below is loaded when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from magtiles_seg.errors import (
    BackendError,
    BackendUnavailableError,
    ConfigError,
    DataError,
    DeliveryError,
    ImageError,
    InferenceError,
    MagtilesError,
    ModelError,
    ParityError,
    StaleEngineError,
)
from magtiles_seg.labels import LABELS
from magtiles_seg.moved import find_moved_modules

if TYPE_CHECKING:
    from magtiles_seg.infer.segmenter import Segmenter, segment
    from magtiles_seg.linescan.defects import WebDefect
    from magtiles_seg.linescan.segmenter import LineScanSegmenter
    from magtiles_seg.model.card import ModelCard
    from magtiles_seg.result import Decision, Defect, Segmentation
    from magtiles_seg.tile import TileResult

__version__ = "0.2.0.dev0"

__all__ = [
    "LABELS",
    "BackendError",
    "BackendUnavailableError",
    "ConfigError",
    "DataError",
    "Decision",
    "Defect",
    "DeliveryError",
    "ImageError",
    "InferenceError",
    "LineScanSegmenter",
    "MagtilesError",
    "ModelCard",
    "ModelError",
    "ParityError",
    "Segmentation",
    "Segmenter",
    "StaleEngineError",
    "TileResult",
    "WebDefect",
    "__version__",
    "segment",
]

_HOMES = {
    "Decision": "decision",
    "Defect": "result",
    "LineScanSegmenter": "linescan.segmenter",
    "ModelCard": "model.card",
    "Segmentation": "result",
    "Segmenter": "infer.segmenter",
    "TileResult": "tile",
    "WebDefect": "linescan.defects",
    "segment": "infer.segmenter",
}
_SUBMODULES = frozenset(
    {"batch", "bench", "dataset", "delivery", "demo", "evaluate", "export", "infer", "linescan"}
    | {"model", "pipeline", "serve", "train"}
)

find_moved_modules()


def __getattr__(name: str) -> Any:  # noqa: ANN401  (PEP 562: the type is the name's own)
    if name in _HOMES:
        value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    elif name in _SUBMODULES:
        value = import_module(f"{__name__}.{name}")
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_SUBMODULES})
