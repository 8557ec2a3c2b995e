"""Screens that nobody trained: real files, whose answers differ from cell to cell."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from magtiles_seg.export.graph import rewrite_card
from magtiles_seg.export.screen import write_screen
from magtiles_seg.infer.screen import Screen
from magtiles_seg.labels import LABELS
from magtiles_seg.model.card import ModelCard
from magtiles_seg.model.cells import CELL_PX
from magtiles_seg.model.screen import ScreenNetwork
from magtiles_seg.result import Decision


def make_screen(path: Path, picture: NDArray[np.uint8]) -> Path:
    """Write a screen that finds something in 3 % of a picture's cells, and return its path."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        network = ScreenNetwork().eval()
    card = ModelCard(
        name="test-screen",
        architecture="screen",
        labels=LABELS,
        stride=CELL_PX,
        receptive_field_px=network.receptive_field_px,
    )
    write_screen(network, path, card, [picture])
    threshold = float(np.quantile(Screen(path).cells(picture), 0.97))
    rewrite_card(path, replace(card, decision=Decision(threshold=threshold)))
    return path
