"""Several exposures of one tile: one score, one verdict, one overlay."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean
from typing import TYPE_CHECKING, Any

import numpy as np

from magtiles_seg.decision import fraction
from magtiles_seg.errors import InferenceError
from magtiles_seg.result import Segmentation

if TYPE_CHECKING:
    import os
    from pathlib import Path

    from numpy.typing import NDArray

    from magtiles_seg.decision import Decision, Verdict
    from magtiles_seg.registration import Shift

_SCHEMA_VERSION = 1
_RULE = "mean log odds"
_LEAST_SCORE = 1e-4
_WINDOW_PX = 768
"""Side of what is compared: all of a tile of the public data, a seventh of 4 megapixels."""


def tile_score(scores: Iterable[float]) -> float:
    """Return a tile's score from those of its pictures: the mean of their log odds.

    `sigmoid(mean(logit(score)))`, which is the geometric mean of their odds. A defect that only
    some lights show still counts, and one false alarm among six pictures does not condemn the
    tile, as it would by the maximum.

    Args:
        scores: Probabilities, 0..1. None counts for more than odds of 10,000 to one.

    Raises:
        InferenceError: There is no score.
    """
    known = [float(score) for score in scores]
    if not known:
        raise InferenceError("a tile has no score without any picture; expected at least one")
    if len(known) == 1:
        return known[0]
    odds = math.exp(fmean(map(_log_odds, known)))
    return odds / (1 + odds)


def _log_odds(score: float) -> float:
    inside = min(max(score, _LEAST_SCORE), 1 - _LEAST_SCORE)
    return math.log(inside / (1 - inside))


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class TileResult:
    """One tile's answer: the answers to its exposures, and one verdict. Frozen.

    Attributes:
        exposures: The answer to each picture, in the order given; at least one.
        name: What the tile is called, or None.

    Raises:
        InferenceError: There is no exposure, or two were decided on by different thresholds.

    Example:
        >>> tile = segmenter.tile(["light1.png", "light2.png", "light3.png"])
        >>> tile.verdict, tile.score
    """

    exposures: tuple[Segmentation, ...]
    name: str | None = None

    def __post_init__(self) -> None:
        """Check that one verdict can be given."""
        object.__setattr__(self, "exposures", tuple(self.exposures))
        decisions = {exposure.decision for exposure in self.exposures}
        if len(decisions) != 1:
            raise InferenceError(
                "a tile needs one or more pictures that were decided on alike, got "
                f"{len(self.exposures)} pictures and {len(decisions)} different decisions; "
                "segment all of its pictures with one Segmenter"
            )

    @property
    def decision(self) -> Decision:
        """The thresholds that were used."""
        return self.exposures[0].decision

    @property
    def score(self) -> float:
        """The exposures' scores together, 0..1: the mean of their log odds."""
        return tile_score(exposure.score for exposure in self.exposures)

    @property
    def verdict(self) -> Verdict:
        """What the score means: "accept", "reject", or "review" where `review_score` is set.

        By `decision.tile_reject_score` where the model has one, else by `decision.reject_score`.
        """
        return self.decision.tile_verdict(self.score)

    @cached_property
    def middle(self) -> int:
        """Index of the exposure that stands for the tile: its score is nearest to the tile's."""
        score = self.score
        return min(
            range(len(self.exposures)), key=lambda index: abs(self.exposures[index].score - score)
        )

    @cached_property
    def shifts(self) -> tuple[Shift | None, ...]:
        """How each exposure must move, (x, y) in px, to lie over that at `middle`.

        None where the fine texture of the two does not tell; (0, 0) for `middle` itself. Of large
        pictures a window of 768 px in the middle is compared.
        """
        from magtiles_seg.registration import find_shift, fine_texture

        window = _window([exposure.image.shape for exposure in self.exposures])
        here = fine_texture(self.exposures[self.middle].image[window])
        return tuple(
            (0.0, 0.0)
            if index == self.middle
            else find_shift(here, fine_texture(exposure.image[window]))
            for index, exposure in enumerate(self.exposures)
        )

    def classes(self) -> NDArray[np.uint8]:
        """Return the defects of all exposures on that at `middle`: (H, W) uint8 class indices.

        Where two exposures differ, `middle` comes first, then the earlier one. Exposures that
        cannot be laid over it (None in `shifts`) are left out.
        """
        from magtiles_seg.registration import move

        drawn = self.exposures[self.middle].classes.copy()
        for exposure, shift in zip(self.exposures, self.shifts, strict=True):
            if shift is not None:
                moved = move(exposure.classes, shift, drawn.shape)
                np.copyto(drawn, moved, where=drawn == 0)
        return drawn

    def overlay(self, alpha: float = 0.5) -> NDArray[np.uint8]:
        """Return the picture at `middle` with the defects of all exposures that lie over it.

        Those that cannot be laid over it (None in `shifts`) are left out.

        Args:
            alpha: Share of the colour, 0..1.

        Returns:
            (H, W, 3) uint8 RGB.

        Raises:
            ConfigError: `alpha` is out of range.
        """
        from magtiles_seg.drawing import draw_overlay

        alpha = fraction("alpha", alpha)
        return draw_overlay(self.exposures[self.middle].image, self.classes(), alpha)

    def verdict_dict(self) -> dict[str, Any]:
        """Return what holds for the whole tile, as plain JSON values."""
        return {
            "name": self.name,
            "verdict": self.verdict,
            "score": self.score,
            "rule": _RULE,
            "reject_score": self.decision.tile_threshold,
            "pictures": len(self.exposures),
        }

    def overlay_dict(self) -> dict[str, Any]:
        """Return of which exposures `overlay` is made, by index, as plain JSON values."""
        unsure = [index for index, shift in enumerate(self.shifts) if shift is None]
        return {"onto": self.middle, "left_out": unsure}

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the arrays, as plain JSON values."""
        return {
            "schema_version": _SCHEMA_VERSION,
            **self.verdict_dict(),
            "exposures": [exposure.to_dict() for exposure in self.exposures],
        }

    def to_json(self, *, indent: int | None = None) -> str:
        """Return `to_dict()` as JSON text."""
        return json.dumps(self.to_dict(), indent=indent, allow_nan=False)

    def save(self, directory: str | os.PathLike[str], stem: str | None = None) -> Path:
        """Write tile.png, the overlay of all exposures, and tile.json.

        tile.json says besides `to_dict()` which exposures the overlay leaves out. The pictures'
        own files are written by `Segmentation.save`.

        Args:
            directory: Made when it does not exist.
            stem: Put before each name, as in `<stem>.tile.json`.

        Returns:
            The path of tile.json.

        Raises:
            ConfigError: `stem` is no plain file name, or a file that is none of ours is in the way.
            OSError: The directory or a file cannot be written.
        """
        from magtiles_seg.writing import save_tile

        return save_tile(self, directory, stem)

    def __repr__(self) -> str:
        """Return name, verdict, score and the exposures' scores, on one line."""
        name = "" if self.name is None else f"{self.name!r}, "
        scores = ", ".join(f"{exposure.score:.3f}" for exposure in self.exposures)
        return f"TileResult({name}{self.verdict}, score {self.score:.3f}, {_RULE} of [{scores}])"


def _window(shapes: Iterable[tuple[int, ...]]) -> tuple[slice, ...]:
    """Return the part to compare of pictures of some shapes, the same place in each."""
    starts = (max(0, (min(sides) - _WINDOW_PX) // 2) for sides in zip(*shapes, strict=True))
    return tuple(slice(start, start + _WINDOW_PX) for start in starts)
