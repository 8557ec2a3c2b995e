"""A model that takes for defect whatever is bright, a web under it, and a sink that keeps all."""

from __future__ import annotations

import errno
import threading
from types import SimpleNamespace
from typing import cast

import numpy as np
from numpy.typing import NDArray

from magtiles_seg.errors import InferenceError
from magtiles_seg.infer.segmenter import Segmenter
from magtiles_seg.linescan.segmenter import LineScanSegmenter, Uninspected, WebDefect
from magtiles_seg.linescan.sources import LineBlock
from magtiles_seg.model.card import ModelCard
from magtiles_seg.result import Decision

Picture = NDArray[np.uint8]


class BrightBackend:
    """Whatever is bright is a defect; can wait for a signal, or fail at some call."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.go.set()
        self.calls, self.fails_at = 0, -1

    def infer(self, images: Picture) -> tuple[NDArray[np.float32], Picture]:
        assert self.go.wait(20)
        self.calls += 1
        if self.calls == self.fails_at:
            raise InferenceError("out of memory")
        return (images / 255).astype(np.float32), np.ones_like(images)


def bright_segmenter(backend: BrightBackend | None = None) -> Segmenter:
    """Return what a web asks of a `Segmenter`."""
    card = ModelCard(
        name="bright",
        architecture="stub",
        labels=("background", "bright"),
        stride=4,
        receptive_field_px=9,
    )
    fake = SimpleNamespace(
        backend=backend or BrightBackend(),
        spec=SimpleNamespace(card=card),
        decision=Decision(),
    )
    return cast("Segmenter", fake)


def make_web(backend: BrightBackend | None = None) -> LineScanSegmenter:
    return LineScanSegmenter(40, bright_segmenter(backend), strip_rows=16, mm_per_px=0.1)


class Kept:
    """A sink that keeps everything, and fails at one write if told to."""

    def __init__(self, fails_at: int = -1) -> None:
        self.found: list[WebDefect | Uninspected] = []
        self.rows, self.closed, self._fails_at = 0, 0, fails_at

    def lines(self, block: LineBlock) -> None:
        self.rows += len(block.rows)

    def write(self, found: WebDefect | Uninspected) -> None:
        if len(self.found) + 1 == self._fails_at:
            raise OSError(errno.ENOSPC, "No space left on device")
        self.found.append(found)

    def close(self) -> None:
        self.closed += 1

    @property
    def defect_lines(self) -> list[int]:
        return [one.first_line for one in self.found if isinstance(one, WebDefect)]

    @property
    def gaps(self) -> list[tuple[int, int | None, str]]:
        return [
            (one.first_line, one.end_line, one.reason)
            for one in self.found
            if isinstance(one, Uninspected)
        ]


def specks(lines: int = 640) -> Picture:
    """Return a web with a speck at lines 10, 74, 138 and so on."""
    picture = np.zeros((lines, 40), np.uint8)
    picture[10::64, 7:9] = 255
    return picture
