from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from magtiles_seg import Segmenter
from magtiles_seg.serve import health
from magtiles_seg.serve.health import Readiness
from magtiles_seg.serve.metrics import Metrics

Change = Callable[[Any], Any]


class Queue:
    """Stands in for a Batcher whose answers a test can spoil."""

    def __init__(self, segmenter: Segmenter) -> None:
        self.segmenter = segmenter
        self.spoil: Change = lambda result: result

    async def submit(self, pixels: Any) -> Any:  # noqa: ANN401
        return self.spoil(self.segmenter(pixels))


def moved(result: Any) -> Any:  # noqa: ANN401
    return SimpleNamespace(probability=np.clip(result.probability + 0.1, 0, 1), verdict="accept")


def turned(result: Any) -> Any:  # noqa: ANN401
    return SimpleNamespace(probability=result.probability, verdict="review")


def failed(_: Any) -> Any:  # noqa: ANN401
    raise RuntimeError("device lost")


@pytest.fixture
def checked(model: Any) -> tuple[Queue, Readiness, Metrics]:  # noqa: ANN401
    segmenter, metrics = Segmenter(model, threads=1), Metrics()
    queue = Queue(segmenter)
    return queue, Readiness(segmenter, queue, metrics), metrics  # type: ignore[arg-type]


def test_readiness_before_the_first_tile_is_warming_up_and_then_ready(
    checked: tuple[Queue, Readiness, Metrics],
) -> None:
    _, readiness, metrics = checked
    assert readiness.trouble() == "the service is warming up"
    asyncio.run(readiness.check())
    assert readiness.trouble() is None
    assert "magtiles_ready 1.0" in metrics.text().decode()


@pytest.mark.parametrize(
    ("spoil", "words"),
    [(moved, "not reproduced"), (turned, "not reproduced"), (failed, "not be answered")],
)
def test_readiness_of_a_spoilt_tile_is_lost_and_comes_back(
    checked: tuple[Queue, Readiness, Metrics], spoil: Change, words: str
) -> None:
    queue, readiness, metrics = checked
    sound, queue.spoil = queue.spoil, spoil
    asyncio.run(readiness.check())
    assert words in str(readiness.trouble())
    assert "magtiles_ready 0.0" in metrics.text().decode()
    queue.spoil = sound
    asyncio.run(readiness.check())
    assert readiness.trouble() is None


def test_readiness_of_a_hanging_model_is_lost(
    checked: tuple[Queue, Readiness, Metrics], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, readiness, _ = checked
    asyncio.run(readiness.check())
    monkeypatch.setattr(health, "EVERY_S", -1.0)
    assert "for some time" in str(readiness.trouble())
