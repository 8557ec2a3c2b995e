from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("anyio")

from magtiles_seg.errors import InferenceError
from magtiles_seg.serve.batching import Batcher

BAD = 13


class Recorder:
    """Stands in for a Segmenter: answers each picture with its first pixel."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.release = threading.Event()
        self.release.set()

    def batch(self, images: Sequence[Any]) -> list[Any]:
        self.release.wait(10)
        firsts = [int(image[0, 0]) for image in images]
        self.batches.append(firsts)
        if BAD in firsts:
            raise InferenceError("bad picture")
        return [SimpleNamespace(first=first) for first in firsts]


def picture(value: int, width: int = 4) -> Any:  # noqa: ANN401
    return np.full((3, width), value, np.uint8)


def run(
    scenario: Callable[[Batcher, Recorder], Awaitable[None]],
    **options: Any,  # noqa: ANN401
) -> Recorder:
    """Run a scenario beside a working batcher."""

    async def main() -> Recorder:
        recorder = Recorder()
        batcher = Batcher(recorder, **options)  # type: ignore[arg-type]
        working = asyncio.create_task(batcher.run())
        try:
            await asyncio.wait_for(scenario(batcher, recorder), 10)
        finally:
            recorder.release.set()
            working.cancel()
        return recorder

    return asyncio.run(main())


async def busy(batcher: Batcher, recorder: Recorder) -> asyncio.Task[Any]:
    """Keep the only stream busy until `release` is set."""
    recorder.release.clear()
    task = asyncio.create_task(batcher.submit(picture(0)))
    while len(batcher) or not task:
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.05)
    return task


def test_submit_pictures_that_wait_go_together_by_size_oldest_first() -> None:
    async def scenario(batcher: Batcher, recorder: Recorder) -> None:
        first = await busy(batcher, recorder)
        widths = [4, 6, 4, 6, 4]
        tasks = [
            asyncio.create_task(batcher.submit(picture(i + 1, w))) for i, w in enumerate(widths)
        ]
        await asyncio.sleep(0.05)
        recorder.release.set()
        answers: list[Any] = await asyncio.gather(first, *tasks)
        assert [answer.first for answer in answers] == [0, 1, 2, 3, 4, 5]

    assert run(scenario, max_batch=2).batches == [[0], [1, 3], [2, 4], [5]]


def test_submit_one_bad_picture_fails_alone() -> None:
    async def scenario(batcher: Batcher, recorder: Recorder) -> None:
        first = await busy(batcher, recorder)
        tasks = [asyncio.create_task(batcher.submit(picture(value))) for value in (1, BAD, 2)]
        await asyncio.sleep(0.05)
        recorder.release.set()
        answers: list[Any] = await asyncio.gather(first, *tasks, return_exceptions=True)
        assert isinstance(answers[2], InferenceError)
        assert [answer.first for answer in answers if not isinstance(answer, Exception)] == [
            0,
            1,
            2,
        ]

    run(scenario, max_batch=8)


def test_submit_cancelled_leaves_the_queue_without_inference() -> None:
    async def scenario(batcher: Batcher, recorder: Recorder) -> None:
        first = await busy(batcher, recorder)
        gone = asyncio.create_task(batcher.submit(picture(7)))
        stays = asyncio.create_task(batcher.submit(picture(8)))
        await asyncio.sleep(0.05)
        gone.cancel()
        await asyncio.sleep(0)
        recorder.release.set()
        await asyncio.gather(first, stays)

    assert run(scenario).batches == [[0], [8]]


def test_submit_lonely_picture_waits_no_longer_than_its_deadline_for_company() -> None:
    async def scenario(batcher: Batcher, _: Recorder) -> None:
        early = asyncio.create_task(batcher.submit(picture(1)))
        await asyncio.sleep(0.05)
        late = asyncio.create_task(batcher.submit(picture(2)))
        await asyncio.gather(early, late)
        await asyncio.wait_for(batcher.submit(picture(3)), 5)

    assert run(scenario, max_batch=8, wait_s=0.3).batches == [[1, 2], [3]]


def test_submit_waits_for_company_from_when_the_oldest_came(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = SimpleNamespace(perf_counter=lambda: 0.0)
    monkeypatch.setattr("magtiles_seg.serve.batching.time", clock)

    async def scenario(batcher: Batcher, _: Recorder) -> None:
        early = asyncio.create_task(batcher.submit(picture(1)))
        await asyncio.sleep(0.05)
        clock.perf_counter = lambda: 100.0
        await asyncio.gather(early, batcher.submit(picture(2)))

    assert run(scenario, max_batch=8, wait_s=60.0).batches == [[1, 2]]


def test_streams_work_at_the_same_time() -> None:
    async def scenario(batcher: Batcher, recorder: Recorder) -> None:
        recorder.release.clear()
        tasks = [asyncio.create_task(batcher.submit(picture(value))) for value in (1, 2)]
        while len(batcher) > 0 or not all(tasks):
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.05)
        assert len(batcher) == 0  # both are with the model
        recorder.release.set()
        await asyncio.gather(*tasks)

    run(scenario, streams=2)


def test_submit_too_late_is_not_computed() -> None:
    async def scenario(batcher: Batcher, recorder: Recorder) -> None:
        first = await busy(batcher, recorder)
        late = asyncio.create_task(batcher.submit(picture(7), deadline=1.0))
        stays = asyncio.create_task(batcher.submit(picture(8)))
        await asyncio.sleep(0.05)
        recorder.release.set()
        await asyncio.gather(first, stays)
        with pytest.raises(TimeoutError):
            await late

    assert run(scenario, in_time=lambda _, deadline: deadline > 1).batches == [[0], [8]]
