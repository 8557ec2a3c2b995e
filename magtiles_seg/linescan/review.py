"""Crops of a web, kept for review: what the model is unsure of, drift, and a random share."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from magtiles_seg.drift import features_of_pixels
from magtiles_seg.linescan.messages import SinkState
from magtiles_seg.review.queue import Candidate, ReviewQueue, Selector
from magtiles_seg.review.settings import ReviewSettings

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from magtiles_seg.decision import Decision
    from magtiles_seg.infer.segmenter import Segmenter

_CROP_PX = 512
_FEATURES = ("gray_level", "sharpness")  # of a strip; scores and rates are of whole pictures


class WebReview:
    """Looks at every strip once its answer is there, and queues a crop of those that deserve it.

    A strip's crop lies around its largest probability, that of the random share anywhere in it.
    The crop's score is judged as a picture's. All crops of a run are one group: one web.
    """

    def __init__(
        self,
        settings: ReviewSettings,
        segmenter: Segmenter,
        *,
        source: str,
        run: str,
        note: Callable[[str], None],
    ) -> None:
        """Make the folder.

        Args:
            settings: What is kept, and where.
            segmenter: Whose answers they are.
            source: What the web comes from.
            run: Of the inspection.
            note: Told in a line when the disk fails, and what is never kept.

        Raises:
            ConfigError: The folder cannot be made or written to.
        """
        self._decision: Decision = segmenter.decision
        spec = segmenter.spec
        self._facts = {
            "source": source,
            "group": run,
            "decision": self._decision.to_dict(),
            "labels": list(spec.card.labels),
            "model": segmenter.lineage,
        }
        usual = spec.card.input_statistics
        self._selector = Selector(settings.reasons, settings.share, usual, names=_FEATURES)
        self._random = random.Random()
        self._queue = ReviewQueue(replace(settings, run=run), on_alarm=note)
        if self._decision.review_score is None and "review" in settings.reasons:
            note(f"--review-dir: no crop is kept as unsure: {NO_REVIEW_SCORE}")

    @property
    def state(self) -> SinkState:
        """How the folder stands, as a sink does."""
        counts = self._queue.counts
        return SinkState(
            name=str(self._queue.settings.directory),
            delivered=counts["kept"],
            waiting=self._queue.waiting,
            dropped=counts["dropped"] + counts["failed"],
            error=self._queue.error,
        )

    def look(
        self,
        first_line: int,
        pixels: NDArray[np.uint8],
        probability: NDArray[np.float32],
        classes: NDArray[np.uint8],
    ) -> None:
        """Look at a strip's core; whatever goes wrong here, the inspection goes on.

        Args:
            first_line: Web line of the first row.
            pixels: (H, W) uint8.
            probability: (H, W) float32.
            classes: (H, W) uint8, the likeliest class of defect of each pixel.
        """
        try:
            self._look(first_line, pixels, probability, classes)
        except Exception as error:
            self._queue.fail(error)

    def _look(
        self,
        first_line: int,
        pixels: NDArray[np.uint8],
        probability: NDArray[np.float32],
        classes: NDArray[np.uint8],
    ) -> None:
        peak_y, peak_x = np.unravel_index(int(probability.argmax()), probability.shape)
        crop = _around(int(peak_y), int(peak_x), probability.shape)
        score = min(1.0, self._decision.score_of(probability[crop]))
        values = features_of_pixels(pixels) if self._selector.watches_drift else {}
        chosen = self._selector.choose(score, self._decision, values)
        if chosen is None:
            return
        if chosen[0] == "random":
            height, width = probability.shape
            y, x = self._random.randrange(height), self._random.randrange(width)
            crop = _around(y, x, probability.shape)
            score = min(1.0, self._decision.score_of(probability[crop]))
        mask = probability[crop] >= self._decision.threshold
        where = {"first_line": first_line + crop[0].start, "x0_px": crop[1].start}
        verdict = self._decision.verdict(score)
        self._queue.offer(
            Candidate(
                image=pixels[crop].copy(),
                draft=(mask * classes[crop]).astype(np.uint8),
                reason=chosen[0],
                interest=chosen[1],
                facts={**self._facts, "position": where, "score": score, "verdict": verdict},
            )
        )

    def close(self) -> None:
        """Write what waits, for a few seconds at most."""
        self._queue.close()


NO_REVIEW_SCORE = "no review_score is set, so that no verdict is 'review'; set --review-score"


def _around(y: int, x: int, shape: tuple[int, ...]) -> tuple[slice, slice]:
    """Return the square around a pixel, moved and cut so that it lies in the picture."""
    top, left = (
        max(0, min(middle - _CROP_PX // 2, side - _CROP_PX))
        for middle, side in zip((y, x), shape, strict=True)
    )
    return slice(top, min(top + _CROP_PX, shape[0])), slice(left, min(left + _CROP_PX, shape[1]))
