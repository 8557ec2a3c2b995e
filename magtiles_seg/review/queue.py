"""The review queue: chooses the pictures that deserve a human look, and writes them in a thread.

An inspection is never slowed by it and never ends of it: what does not fit into the queue is
dropped and counted, a full disk is an error that is told and passes, and the writing takes at most
a fifth of one core.
"""

from __future__ import annotations

import math
import random
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from magtiles_seg.decision import Decision
from magtiles_seg.drift import FEATURES, DriftMonitor, features, statistics_of

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from magtiles_seg.result import Segmentation
    from magtiles_seg.review.settings import ReviewSettings

_WAITING, _WAITING_BYTES = 32, 64_000_000
_REST = 4.0  # times as long as the last write took
_LONGEST_REST_S = 5.0
_PSI = 0.2  # by the usual rule a large change
_SURPRISE = math.log(2)  # its like has become at least twice as frequent
_WINDOW, _LOOK_EVERY = 500, 20  # pictures


@dataclass(frozen=True, eq=False, kw_only=True)
class Candidate:
    """A picture that is to be kept.

    Attributes:
        image: (H, W) uint8; nobody writes to it any more.
        draft: (H, W) uint8, class indices: what the model says.
        reason: One of `REASONS`.
        interest: 0..1.
        facts: Its lineage, as JSON values.
    """

    image: NDArray[np.uint8]
    draft: NDArray[np.uint8]
    reason: str
    interest: float
    facts: Mapping[str, Any]

    @property
    def size_bytes(self) -> int:
        """What it takes in memory."""
        return self.image.nbytes + self.draft.nbytes


class Selector:
    """Tells which pictures deserve a look: for `review`, `drift` and `random`.

    Drift is measured against what the model's card says is usual; where it says nothing, against
    the first 500 pictures that are seen.
    """

    def __init__(
        self,
        reasons: Sequence[str],
        share: float,
        usual: Mapping[str, Any],
        *,
        names: Sequence[str] = FEATURES,
        seed: int | None = None,
    ) -> None:
        """Begin with no pictures.

        Args:
            reasons: Those of `REASONS` that count.
            share: Of all pictures, chosen at random.
            usual: A card's `input_statistics`; may be empty.
            names: The features that drift is measured by.
            seed: Of the random share; None: of the system.
        """
        self._reasons, self._share, self._names = frozenset(reasons), share, tuple(names)
        self._random = random.Random(seed)
        self._first: list[Mapping[str, float]] = []
        self._monitor = DriftMonitor(usual, window=_WINDOW, names=names) if usual else None
        self._excess: dict[str, Any] = {}
        self._seen = 0

    @property
    def watches_drift(self) -> bool:
        """Whether `choose` needs the features."""
        return "drift" in self._reasons

    def choose(
        self, score: float, decision: Decision, values: Mapping[str, float]
    ) -> tuple[str, float] | None:
        """Return why a picture deserves a look and how much, 0..1; None: it does not.

        Args:
            score: Of the picture.
            decision: That it is judged by.
            values: Its features, by name; empty where drift is not watched.
        """
        surprise = self._surprise(values) if self.watches_drift else 0.0
        if "review" in self._reasons and decision.verdict(score) == "review":
            low = decision.review_score or 0.0
            return "review", (score - low) / max(decision.reject_score - low, 1e-9)
        if surprise >= _SURPRISE:
            return "drift", surprise / (1 + surprise)
        if "random" in self._reasons and self._random.random() < self._share:
            return "random", self._random.random()
        return None

    def _surprise(self, values: Mapping[str, float]) -> float:
        if self._monitor is None:
            self._first.append({name: values[name] for name in self._names})
            if len(self._first) >= _WINDOW:
                usual = statistics_of(self._first)
                self._monitor = DriftMonitor(usual, window=_WINDOW, names=self._names)
                self._first.clear()
            return 0.0
        self._monitor.add(values)
        self._seen += 1
        if self._seen % _LOOK_EVERY == 0:
            self._excess = self._monitor.excess(psi=_PSI)
        return self._monitor.surprise(values, self._excess) if self._excess else 0.0


class ReviewQueue:
    """Takes candidates at once and writes them behind; safe from several threads.

    Attributes:
        counts: Of `kept`, `passed over` (less interesting than all that is kept), `dropped` (the
            queue was full) and `failed` (the disk).
        error: What is wrong with the disk now; None: nothing.
    """

    def __init__(
        self,
        settings: ReviewSettings,
        *,
        selector: Selector | None = None,
        on_outcome: Callable[[str], None] | None = None,
        on_alarm: Callable[[str], None] | None = None,
    ) -> None:
        """Make the folder.

        Args:
            settings: What is kept, and where.
            selector: Used by `consider`.
            on_outcome: Told what became of each candidate, as in `counts`; from any thread.
            on_alarm: Told in a line when the disk fails, and when it works again.

        Raises:
            ConfigError: The folder cannot be made or written to.
        """
        self.settings = settings
        self.counts: Counter[str] = Counter()
        self.error: str | None = None
        self._folder = settings.folder()
        self._folder.make()
        self._selector = selector
        self._on_outcome, self._on_alarm = on_outcome, on_alarm
        self._waiting: deque[Candidate] = deque()
        self._bytes, self._busy = 0, False
        self._changed = threading.Condition()
        self._closing = self._hurried = False
        self._thread: threading.Thread | None = None

    @property
    def waiting(self) -> int:
        """How many wait to be written."""
        return len(self._waiting)

    def wants(self, reason: str) -> bool:
        """Return whether a reason counts."""
        return reason in self.settings.reasons

    def consider(
        self,
        result: Segmentation,
        *,
        source: str | None = None,
        group: str | None = None,
        values: Mapping[str, float] | None = None,
    ) -> None:
        """Keep an answered picture if it deserves a look; returns at once.

        Args:
            result: The answer.
            source: Where the picture came from.
            group: What it shares with others of the same part.
            values: Its features, where they are known.
        """
        if self._selector is None:
            return
        if values is None:
            values = features(result) if self._selector.watches_drift else {}
        chosen = self._selector.choose(result.score, result.decision, values)
        if chosen is not None:
            self.offer_result(result, *chosen, source=source, group=group)

    def offer_result(
        self,
        result: Segmentation,
        reason: str,
        interest: float,
        *,
        source: str | None = None,
        group: str | None = None,
        more: Mapping[str, Any] | None = None,
    ) -> None:
        """Queue an answered picture for a reason; returns at once."""
        facts = {
            "source": result.source if source is None else source,
            "group": group,
            "position": None,
            "score": result.score,
            "verdict": result.verdict,
            "decision": result.decision.to_dict(),
            "labels": list(result.labels),
            "model": dict(result.model),
            **(more or {}),
        }
        self.offer(
            Candidate(
                image=result.image,
                draft=result.classes,
                reason=reason,
                interest=interest,
                facts=facts,
            )
        )

    def offer(self, candidate: Candidate) -> None:
        """Queue a candidate; returns at once."""
        with self._changed:
            full = len(self._waiting) >= _WAITING or (
                self._waiting and self._bytes + candidate.size_bytes > _WAITING_BYTES
            )
            if full or self._closing:
                self._count("dropped")
                return
            self._waiting.append(candidate)
            self._bytes += candidate.size_bytes
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="review", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def flush(self, patience_s: float = 5.0) -> bool:
        """Wait until all that waits is written; False: it took too long."""
        with self._changed:
            self._hurried = True
            self._changed.notify_all()
            done = self._changed.wait_for(lambda: not (self._waiting or self._busy), patience_s)
            self._hurried = False
        return done

    def close(self, patience_s: float = 5.0) -> None:
        """Write what waits, for so long at most; the rest is dropped. Twice is harmless."""
        self.flush(patience_s)
        with self._changed:
            self._closing = True
            for _ in self._waiting:
                self._count("dropped")
            self._waiting.clear()
            self._changed.notify_all()

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closing)
                if not self._waiting:
                    return
                candidate = self._waiting.popleft()
                self._bytes -= candidate.size_bytes
                self._busy = True
            began_s = time.monotonic()
            self._write(candidate)
            rest_s = min(_REST * (time.monotonic() - began_s), _LONGEST_REST_S)
            with self._changed:
                self._busy = False
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._hurried or self._closing, rest_s)

    def _write(self, candidate: Candidate) -> None:
        try:
            name = self._folder.add(
                candidate.image,
                candidate.draft,
                reason=candidate.reason,
                interest=candidate.interest,
                facts={"run": self.settings.run, **candidate.facts},
            )
        except Exception as error:  # whatever it is, the inspection goes on
            self.fail(error)
            return
        self._tell(None)
        self._count("passed over" if name is None else "kept")

    def fail(self, error: Exception) -> None:
        """Count a picture that could not be kept, and tell why."""
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        self._tell(f"{self.settings.directory}: {reason}")
        self._count("failed")

    def _tell(self, error: str | None) -> None:
        """Note how the disk stands; an alarm is told once, and so is its end."""
        before, self.error = self.error, error
        if self._on_alarm is not None and (before is None) != (error is None):
            self._on_alarm(
                f"review: {error or f'{self.settings.directory} can be written to again'}"
            )

    def _count(self, outcome: str) -> None:
        with self._changed:
            self.counts[outcome] += 1
            if self._on_outcome is not None:
                self._on_outcome(outcome)
