"""Screens as sealed ONNX files."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from magtiles_seg.errors import ParityError
from magtiles_seg.export.graph import trace
from magtiles_seg.export.sealed import sealed
from magtiles_seg.files import staged
from magtiles_seg.infer.screen import Screen
from magtiles_seg.model.card import ModelCard
from magtiles_seg.model.screen import ScreenGraph, ScreenNetwork

_MOST_DIFFERENCE = 1e-3
"""In probability; fp32 in another runtime stays far below."""


def write_screen(
    network: ScreenNetwork,
    path: str | os.PathLike[str],
    card: ModelCard,
    pictures: Sequence[NDArray[np.uint8]],
) -> None:
    """Write a screen, if it answers as the network does.

    Args:
        network: In evaluation mode.
        path: Where to write; an older file is replaced, and only by a whole and proved one.
        card: What the file is to say about itself.
        pictures: (H, W) uint8 each, on which both are compared.

    Raises:
        ParityError: The file answers differently; nothing is written.
        OSError: It cannot be written.
    """
    graph = ScreenGraph(network)
    image = torch.zeros(2, 48, 80, dtype=torch.uint8)
    model = trace(graph, image, ["cells"], least_px=16, step_px=16)
    with staged(Path(path), durable=True) as part:
        part.write_bytes(sealed(model, card))
        screen = Screen(part)
        for picture in pictures:
            difference = float(np.abs(screen.cells(picture) - graph.cells(picture)).max())
            if not difference <= _MOST_DIFFERENCE:
                raise ParityError(
                    f"the exported screen differs by {difference:.3g} in probability from the "
                    f"network, expected at most {_MOST_DIFFERENCE}: check the versions of torch, "
                    "onnx and onnxruntime"
                )
        screen.close()
