"""`POST /analyze`: a picture in, its defect mask out."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import TypeVar

import anyio.to_thread
import numpy as np
from anyio import CapacityLimiter
from numpy.typing import NDArray
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from magtiles_seg.errors import MagtilesError
from magtiles_seg.image import read_image
from magtiles_seg.result import Segmentation
from magtiles_seg.serve.auth import ApiKeys
from magtiles_seg.serve.batching import Batcher
from magtiles_seg.serve.drift import DriftMonitor, features
from magtiles_seg.serve.limits import Gate
from magtiles_seg.serve.metrics import Metrics
from magtiles_seg.serve.problems import Problem
from magtiles_seg.serve.replies import Reply, Wish, encode
from magtiles_seg.serve.settings import Settings
from magtiles_seg.serve.shadow import Shadow
from magtiles_seg.serve.uploads import read_uploads, wish_of

_CLIENT_LEFT = 499  # nobody reads it; the metrics do

Answer = TypeVar("Answer")


@dataclass(frozen=True, kw_only=True)
class Analyzer:
    """All that a request passes on its way.

    Attributes:
        limiter: Of the threads that decode and encode.
    """

    settings: Settings
    keys: ApiKeys
    gate: Gate
    batcher: Batcher
    limiter: CapacityLimiter
    metrics: Metrics
    monitor: DriftMonitor
    shadow: Shadow | None

    async def post(self, request: Request) -> Response:
        """Answer one request."""
        if self.keys.digests and self.keys.name_of(request.headers) is None:
            raise Problem(
                401,
                "expected a valid key in `Authorization: Bearer KEY` or `X-API-Key: KEY`",
                headers={"WWW-Authenticate": "Bearer"},
            )
        wish = wish_of(request)
        with self.gate.entered():
            try:
                with self.metrics.stage("read"):
                    pictures = await read_uploads(request, self.settings)
                if wish.png and len(pictures) > 1:
                    raise Problem(400, "a PNG holds one mask; send one picture, or accept JSON")
                results, reply = await self._while_there(request, self._answer(pictures, wish))
            except ClientDisconnect:
                self.metrics.left.inc()
                return Response(status_code=_CLIENT_LEFT)
            except MagtilesError as error:
                raise Problem.of(error) from error
        headers = reply.headers
        if len(results) == 1:
            headers |= {"X-Verdict": results[0].verdict, "X-Score": f"{results[0].score:.4f}"}
        return Response(reply.body, headers=headers)

    async def _answer(self, pictures: list[bytes], wish: Wish) -> tuple[list[Segmentation], Reply]:
        results = await asyncio.gather(*(self._segment(data) for data in pictures))
        with self.metrics.stage("encode"):
            reply, rows = await anyio.to_thread.run_sync(
                _finish, results, wish, limiter=self.limiter
            )
        for data, result, values in zip(pictures, results, rows, strict=True):
            self.metrics.picture(result, values, self.monitor)
            if self.shadow is not None:
                self.shadow.offer(data, result)
        return results, reply

    async def _segment(self, data: bytes) -> Segmentation:
        with self.metrics.stage("decode"):
            pixels = await anyio.to_thread.run_sync(self._decode, data, limiter=self.limiter)
        with self.metrics.stage("queue_and_infer"):
            return await self.batcher.submit(pixels)

    def _decode(self, data: bytes) -> NDArray[np.uint8]:
        return read_image(data, max_pixels=self.settings.max_pixels)

    async def _while_there(self, request: Request, work: Coroutine[None, None, Answer]) -> Answer:
        """Return what the work returns; stop it when the client leaves or time is over.

        Raises:
            ClientDisconnect: The client left.
            Problem: 503 when it took too long.
        """
        working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(_left(request))
        try:
            done, _ = await asyncio.wait(
                {working, leaving},
                timeout=self.settings.timeout_s,
                return_when=asyncio.FIRST_COMPLETED,
            )
            if working in done:
                return working.result()
            if leaving in done:
                raise ClientDisconnect
        finally:
            working.cancel()
            leaving.cancel()
        wait = math.ceil(self.settings.timeout_s)
        message = f"no answer within {self.settings.timeout_s:g} s; try again in {wait} s"
        raise Problem(503, message, headers={"Retry-After": str(wait)})


def _finish(results: list[Segmentation], wish: Wish) -> tuple[Reply, list[dict[str, float]]]:
    return encode(results, wish), [features(result) for result in results]


async def _left(request: Request) -> None:
    """Return when the client has left; its whole body must have been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
