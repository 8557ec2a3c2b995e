"""`POST /analyze`: a picture in, its defect mask out."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Coroutine, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import anyio.to_thread
from anyio import CapacityLimiter
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from magtiles_seg.errors import MagtilesError
from magtiles_seg.result import Segmentation
from magtiles_seg.serve.auth import ApiKeys
from magtiles_seg.serve.batching import Batcher
from magtiles_seg.serve.decoding import Decoders
from magtiles_seg.serve.drift import DriftMonitor, features
from magtiles_seg.serve.limits import Expired, Gate, Place
from magtiles_seg.serve.metrics import Metrics
from magtiles_seg.serve.problems import Problem
from magtiles_seg.serve.replies import Reply, Wish, encode
from magtiles_seg.serve.settings import Settings
from magtiles_seg.serve.shadow import Shadow
from magtiles_seg.serve.uploads import read_uploads, wish_of

_CLIENT_LEFT = 499  # nobody reads it; the metrics do
_AGAIN = {"Retry-After": "1", "Connection": "close"}

Answer = TypeVar("Answer")


class Ending:
    """Tells all that wait for something when the service must have answered them."""

    def __init__(self) -> None:
        self._waiting: set[asyncio.Future[None]] = set()
        self._come = False

    def come(self) -> None:
        """Tell them now, and all who ask later."""
        self._come = True
        for future in self._waiting:
            if not future.done():
                future.set_result(None)

    @contextmanager
    def awaited(self) -> Iterator[asyncio.Future[None]]:
        """Give a future that is done when the end has come."""
        future = asyncio.get_running_loop().create_future()
        self._waiting.add(future)
        if self._come:
            future.set_result(None)
        try:
            yield future
        finally:
            self._waiting.discard(future)


@dataclass(frozen=True, kw_only=True)
class Analyzer:
    """All that a request passes on its way.

    Attributes:
        limiter: Of the threads that encode.
        ending: Told when the service must have answered all.
    """

    settings: Settings
    keys: ApiKeys
    gate: Gate
    decoders: Decoders
    batcher: Batcher
    limiter: CapacityLimiter
    metrics: Metrics
    monitor: DriftMonitor
    shadow: Shadow | None
    ending: Ending = field(default_factory=Ending)

    async def post(self, request: Request) -> Response:
        """Answer one request."""
        if self.keys.digests and self.keys.name_of(request.headers) is None:
            raise Problem(
                401,
                "expected a valid key in `Authorization: Bearer KEY` or `X-API-Key: KEY`",
                headers={"WWW-Authenticate": "Bearer"},
            )
        wish = wish_of(request)
        await self.gate.room()
        with self.gate.entered() as place:
            try:
                results, reply = await self._answered(request, wish, place)
            except ClientDisconnect:
                place.outcome = "left"
                return Response(status_code=_CLIENT_LEFT)
            except MagtilesError as error:
                raise Problem.of(error) from error
        headers = reply.headers
        if len(results) == 1:
            headers |= {"X-Verdict": results[0].verdict, "X-Score": f"{results[0].score:.4f}"}
        return Response(reply.body, headers=headers)

    async def _answered(
        self, request: Request, wish: Wish, place: Place
    ) -> tuple[list[Segmentation], Reply]:
        with self.metrics.stage("read"):
            upload = read_uploads(request, self.settings, partial(self.gate.hold, place))
            pictures = await self._until_the_end(upload)
        if wish.png and len(pictures) > 1:
            raise Problem(400, "a PNG holds one mask; send one picture, or accept JSON")
        await self.gate.room()  # others that came at the same moment may have taken it
        self.gate.expect(place, len(pictures))
        return await self._while_there(request, self._answer(pictures, wish, place))

    async def _answer(
        self, pictures: list[bytes], wish: Wish, place: Place
    ) -> tuple[list[Segmentation], Reply]:
        deadline = time.monotonic() + self.settings.timeout_s
        with self.metrics.stage("decode"):
            decoded = await _all(self.decoders.decode(data) for data in pictures)
        self.gate.admit(place, [pixels.size for pixels in decoded])
        try:
            with self.metrics.stage("queue_and_infer"):
                results = await _all(self.batcher.submit(pixels, deadline) for pixels in decoded)
        except TimeoutError:
            raise self._too_late() from None
        self.gate.computed(place)
        with self.metrics.stage("encode"):
            reply, rows = await anyio.to_thread.run_sync(
                _finish, results, wish, limiter=self.limiter
            )
        for data, result, values in zip(pictures, results, rows, strict=True):
            self.metrics.picture(result, values, self.monitor)
            if self.shadow is not None:
                self.shadow.offer(data, result)
        return results, reply

    async def _while_there(self, request: Request, work: Coroutine[None, None, Answer]) -> Answer:
        """Return what the work returns; stop it when the client leaves or time is over.

        Raises:
            ClientDisconnect: The client left.
            Expired: It took too long, or the service ends.
        """
        leaving = asyncio.ensure_future(_left(request))
        try:
            return await self._until_the_end(work, leaving, self.settings.timeout_s)
        finally:
            leaving.cancel()

    async def _until_the_end(
        self,
        work: Coroutine[None, None, Answer],
        leaving: asyncio.Future[None] | None = None,
        seconds: float | None = None,
    ) -> Answer:
        working = asyncio.ensure_future(work)
        with self.ending.awaited() as ending:
            awaited: set[asyncio.Future[Any]] = {working, ending}
            try:
                await asyncio.wait(
                    awaited | {leaving} if leaving else awaited,
                    timeout=seconds,
                    return_when=asyncio.FIRST_COMPLETED,
                )
                if working.done():
                    return working.result()
                if leaving and leaving.done():
                    raise ClientDisconnect
            finally:
                working.cancel()
            if ending.done():
                raise Expired(503, "the service ends; send it again", headers=_AGAIN)
            raise self._too_late()

    def _too_late(self) -> Expired:
        wait = max(1, math.ceil(self.gate.wait_s))
        message = f"no answer within {self.settings.timeout_s:g} s; try again in {wait} s"
        return Expired(503, message, headers={"Retry-After": str(wait)})


async def _all(works: Iterable[Coroutine[None, None, Answer]]) -> list[Answer]:
    """Return what all of them return; when one fails, the others are stopped."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()


def _finish(results: list[Segmentation], wish: Wish) -> tuple[Reply, list[dict[str, float]]]:
    return encode(results, wish), [features(result) for result in results]


async def _left(request: Request) -> None:
    """Return when the client has left; its whole body must have been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
