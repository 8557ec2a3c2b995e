"""Puts pictures of one size that wait at the same time into one inference, off the event loop."""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import anyio.to_thread
import numpy as np
from anyio import CapacityLimiter
from numpy.typing import NDArray

from magtiles_seg.infer.segmenter import Segmenter
from magtiles_seg.result import Segmentation


@dataclass(eq=False)
class _Job:
    pixels: NDArray[np.uint8]
    deadline: float
    done: asyncio.Future[Segmentation]
    since: float


class Batcher:
    """A queue before a `Segmenter`.

    A picture goes with those of exactly its own size: padded to a coarser bucket the network would
    see other edges, and the answer would no longer be the library's. Whoever stops waiting (the
    task is cancelled) leaves the queue, and so does a picture whose answer would come too late. Its
    length is bounded by who may ask: see `limits.Gate`.
    """

    def __init__(
        self,
        segmenter: Segmenter,
        *,
        streams: int = 1,
        max_batch: int = 1,
        wait_s: float = 0.0,
        observe: Callable[[int, int, float], None] = lambda *_: None,
        in_time: Callable[[int, float], bool] = lambda *_: True,
    ) -> None:
        """Make a queue; `run` works on it.

        Args:
            segmenter: What answers.
            streams: Inferences at once.
            max_batch: Most pictures in one inference.
            wait_s: How long the oldest picture may wait for others of its size.
            observe: Called with (pictures, pixels of all, seconds) after each inference.
            in_time: Called with (pixels, deadline) of a picture before its inference; tells whether
                its answer may still be of use.
        """
        self._segmenter = segmenter
        self._streams = streams
        self._max_batch = max_batch
        self._wait_s = wait_s
        self._observe = observe
        self._in_time = in_time
        self._waiting: deque[_Job] = deque()
        self._some = asyncio.Condition()
        self._limiter = CapacityLimiter(streams)

    def __len__(self) -> int:
        """Return how many pictures wait."""
        return len(self._waiting)

    async def submit(self, pixels: NDArray[np.uint8], deadline: float = math.inf) -> Segmentation:
        """Return the answer to one picture.

        Args:
            pixels: (H, W) uint8.
            deadline: When nobody waits for it any more, by `time.monotonic`.

        Raises:
            MagtilesError: This picture failed; others of its batch are not touched by it.
            TimeoutError: The answer would have come too late: it was not computed.
        """
        done = asyncio.get_running_loop().create_future()
        job = _Job(pixels, deadline, done, time.perf_counter())
        async with self._some:
            self._waiting.append(job)
            self._some.notify_all()
        return await job.done

    async def run(self) -> None:
        """Work until cancelled."""
        workers = [asyncio.create_task(self._work()) for _ in range(self._streams)]
        try:
            await asyncio.gather(*workers)
        finally:
            for worker in workers:
                worker.cancel()

    async def _work(self) -> None:
        while True:
            jobs = await self._next()
            start = time.perf_counter()
            answers = await anyio.to_thread.run_sync(
                self._infer, jobs, limiter=self._limiter, abandon_on_cancel=True
            )
            pixels = sum(job.pixels.size for job in jobs)
            self._observe(len(jobs), pixels, time.perf_counter() - start)
            for job, answer in zip(jobs, answers, strict=True):
                if job.done.done():
                    continue
                if isinstance(answer, Exception):
                    job.done.set_exception(answer)
                else:
                    job.done.set_result(answer)

    async def _next(self) -> list[_Job]:
        """Return the oldest job that someone still waits for, and others of its size."""
        async with self._some:
            while True:
                self._drop_deserted()
                if not self._waiting:
                    await self._some.wait()
                    continue
                oldest = self._waiting[0]
                jobs = [job for job in self._waiting if job.pixels.shape == oldest.pixels.shape]
                jobs = jobs[: self._max_batch]
                left = oldest.since + self._wait_s - time.perf_counter()
                if len(jobs) == self._max_batch or left <= 0:
                    for job in jobs:
                        self._waiting.remove(job)
                    return jobs
                await self._wait_for_more(left)

    async def _wait_for_more(self, seconds: float) -> None:
        try:
            await asyncio.wait_for(self._some.wait(), seconds)
        except TimeoutError:
            return

    def _drop_deserted(self) -> None:
        for job in self._waiting:
            if not job.done.done() and not self._in_time(job.pixels.size, job.deadline):
                job.done.set_exception(TimeoutError("too late to begin"))
        self._waiting = deque(job for job in self._waiting if not job.done.done())

    def _infer(self, jobs: list[_Job]) -> list[Segmentation | Exception]:
        """Answer every job; where the batch fails, each by itself."""
        try:
            return list(self._segmenter.batch([job.pixels for job in jobs]))
        except Exception as error:
            if len(jobs) == 1:
                return [error]
        return [answer for job in jobs for answer in self._infer([job])]
