from __future__ import annotations

import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from magtiles_seg.decision import Decision
from magtiles_seg.drift import statistics_of
from magtiles_seg.errors import ConfigError
from magtiles_seg.result import Segmentation
from magtiles_seg.review.folder import ReviewFolder
from magtiles_seg.review.queue import Candidate, ReviewQueue, Selector
from magtiles_seg.review.settings import ReviewSettings

UNSURE = Decision(reject_score=0.8, review_score=0.2, score_top_k_px=1)
NEVER: dict[str, float] = {}


def answer(probability: float, image: np.ndarray[Any, Any] | None = None) -> Segmentation:
    image = np.full((32, 32), 90, np.uint8) if image is None else image
    return Segmentation.from_prediction(
        image,
        np.full(image.shape, probability, np.float32),
        np.full(image.shape, 3, np.uint8),
        decision=UNSURE,
        model={"sha256": "ab" * 32},
    )


def queue(path: Path, selector: Selector | None = None, **settings: Any) -> ReviewQueue:  # noqa: ANN401
    return ReviewQueue(ReviewSettings(directory=path, **settings), selector=selector)


def test_unsure_picture_is_kept_with_model_thresholds_and_run(tmp_path: Path) -> None:
    kept = queue(tmp_path, Selector(("review",), 0, {}), run="run-1")
    for probability in (0.1, 0.5, 0.9):
        kept.consider(answer(probability), source="line/7.png", group="part-7")
    kept.close()
    (entry,) = ReviewFolder(tmp_path).entries()
    assert (entry.reason, entry.interest) == ("review", 0.5)
    record, _ = ReviewFolder(tmp_path).read(entry.name)
    assert record["model"]["sha256"] == "ab" * 32
    assert record["decision"]["reject_score"] == 0.8
    assert (record["run"], record["source"], record["group"]) == ("run-1", "line/7.png", "part-7")
    assert record["verdict"] == "review"
    assert kept.counts == Counter(kept=1)


def test_random_share_is_about_the_share() -> None:
    selector = Selector(("random",), 0.1, {}, seed=0)
    chosen = [selector.choose(0.0, UNSURE, NEVER) for _ in range(2000)]
    assert 150 < sum(one is not None for one in chosen) < 250


def test_reason_that_was_not_asked_for_keeps_nothing() -> None:
    selector = Selector(("disagreement",), 1.0, {})
    assert selector.choose(0.5, UNSURE, NEVER) is None


@pytest.mark.parametrize("has_card", [True, False])
def test_pictures_of_the_kind_that_became_frequent_are_drift(has_card: bool) -> None:
    rng = np.random.default_rng(0)

    def values(level: float) -> dict[str, float]:
        return {"gray_level": level + rng.normal(), "sharpness": 5 + rng.normal()}

    names = ("gray_level", "sharpness")
    usual = statistics_of([values(100) for _ in range(500)]) if has_card else {}
    selector = Selector(("drift",), 0, usual, names=names)
    before = [selector.choose(0, UNSURE, values(100)) for _ in range(700)]
    assert not any(before)
    later = [selector.choose(0, UNSURE, values(130 if n % 2 else 100)) for n in range(500)]
    bright, normal = later[201::2], later[200::2]
    assert all(one is not None and one[0] == "drift" for one in bright)
    assert sum(one is not None for one in normal) < 40  # the brightest tenth shares their bin


def test_full_queue_drops_counts_and_never_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go = threading.Event()
    monkeypatch.setattr(ReviewFolder, "add", lambda *_, **__: go.wait(20) and "name")
    kept = queue(tmp_path)
    began_s = time.monotonic()
    for _ in range(200):
        kept.offer_result(answer(0.5), "review", 0.5)
    assert time.monotonic() - began_s < 5  # a write that waited would take 20
    assert kept.counts["dropped"] >= 200 - 33
    go.set()
    kept.close()
    assert kept.counts["kept"] + kept.counts["dropped"] == 200


def test_full_disk_is_told_once_and_its_end_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing = True
    real = ReviewFolder.add

    def add(self: ReviewFolder, *words: Any, **options: Any) -> str | None:  # noqa: ANN401
        if failing:
            raise OSError(28, "No space left on device")
        return real(self, *words, **options)

    monkeypatch.setattr(ReviewFolder, "add", add)
    said: list[str] = []
    kept = ReviewQueue(ReviewSettings(directory=tmp_path), on_alarm=said.append)
    for _ in range(2):
        kept.offer_result(answer(0.5), "review", 0.5)
        assert kept.flush()
    assert kept.error == f"{tmp_path}: No space left on device"
    failing = False
    kept.offer_result(answer(0.5), "review", 0.5)
    kept.close()
    assert kept.error is None
    assert said == [
        f"review: {tmp_path}: No space left on device",
        f"review: {tmp_path} can be written to again",
    ]
    assert kept.counts == Counter(failed=2, kept=1)


def test_closed_queue_takes_nothing_and_closing_twice_is_harmless(tmp_path: Path) -> None:
    kept = queue(tmp_path)
    kept.close()
    kept.close()
    image = np.zeros((8, 8), np.uint8)
    kept.offer(Candidate(image=image, draft=image, reason="random", interest=0, facts={}))
    assert kept.counts == Counter(dropped=1)


def test_unknown_reason_and_odd_numbers_are_refused(tmp_path: Path) -> None:
    for wrong in ({"reasons": ("unsure",)}, {"share": 2.0}, {"most_pictures": 0}, {"most_mb": 0}):
        with pytest.raises(ConfigError, match="review"):
            queue(tmp_path, **wrong)
