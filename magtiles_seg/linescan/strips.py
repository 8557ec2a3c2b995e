"""Cuts an endless web into strips with halo, always at the same lines, however it arrives.

A strip is `rows` lines of the web, its core, and up to `halo` lines above and below for the network
to see. Core and halo are multiples of the network's stride and the halo reaches as far as one
output pixel can see, so the network's answer on the core is the one it would give on the whole web.
At the web's first and last line a strip ends as the whole picture does.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from magtiles_seg.errors import ModelError
from magtiles_seg.image import MIN_SIDE_PX
from magtiles_seg.model.card import ModelCard


def round_up(value: int, step: int) -> int:
    """Return the smallest multiple of `step` that is at least `value`."""
    return -(-value // step) * step


def halo_px(card: ModelCard) -> int:
    """Return how many lines above and below a strip its model must see.

    Half the receptive field, rounded up to the stride so that every strip lies on the grid on which
    the network downsamples, and at least a model file's smallest height: a web's last strip is then
    never padded further than the whole web would be.

    Raises:
        ModelError: The card does not tell the receptive field.
    """
    if card.receptive_field_px < 1:
        raise ModelError(
            f"model {card.name!r} does not say how far it sees: its card's receptive_field_px is "
            f"{card.receptive_field_px}, expected at least 1; export the checkpoint again"
        )
    return round_up(max(card.receptive_field_px // 2, MIN_SIDE_PX), card.stride)


@dataclass(frozen=True, eq=False)
class Strip:
    """Lines for one inference.

    Attributes:
        first_line: Web line of the core's first row.
        rows: Height of the core.
        offset: Row of `pixels` at which the core starts.
        pixels: (h, W) uint8, core and halo; owned by the strip.
    """

    first_line: int
    rows: int
    offset: int
    pixels: NDArray[np.uint8]


class StripCutter:
    """Collects lines and hands out strips as soon as their halo is complete."""

    def __init__(self, width_px: int, rows: int, halo: int) -> None:
        self._rows, self._halo = rows, halo
        self._buffer = np.empty((rows + 2 * halo, width_px), dtype=np.uint8)
        self.start(0)

    def start(self, line: int) -> None:
        """Begin a piece of web at a line; what was collected before is forgotten."""
        self._top = self._core = line  # lines of the buffer's first row and of the next core
        self._filled = 0

    @property
    def undecided_line(self) -> int:
        """The first line that no strip has covered yet."""
        return self._core

    @property
    def end_line(self) -> int:
        """The line after the last one that came."""
        return self._top + self._filled

    def push(self, rows: NDArray[np.uint8]) -> Iterator[Strip]:
        """Copy (n, W) uint8 lines and yield the strips that they complete."""
        taken = 0
        while taken < len(rows):
            wanted = self._core - self._top + self._rows + self._halo
            count = min(len(rows) - taken, wanted - self._filled)
            self._buffer[self._filled : self._filled + count] = rows[taken : taken + count]
            self._filled += count
            taken += count
            if self._filled == wanted:
                yield self._cut(self._rows)

    def finish(self) -> Iterator[Strip]:
        """Yield what is left, as the end of the web."""
        while self._core < self.end_line:
            yield self._cut(min(self._rows, self.end_line - self._core))

    def _cut(self, rows: int) -> Strip:
        pixels = self._buffer[: self._filled].copy()
        strip = Strip(self._core, rows, self._core - self._top, pixels)
        self._core += rows
        passed = max(0, self._core - self._halo - self._top)
        self._filled -= passed
        self._top += passed
        self._buffer[: self._filled] = pixels[passed:]
        return strip
