"""`POST /analyze`: a picture in, its defect mask out."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import uuid4

import anyio.to_thread
from anyio import CapacityLimiter
from python_multipart.multipart import parse_options_header
from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from magtiles_seg.drift import DriftMonitor, features
from magtiles_seg.errors import ImageError, MagtilesError
from magtiles_seg.result import Segmentation
from magtiles_seg.review.queue import ReviewQueue
from magtiles_seg.serve.auth import ApiKeys
from magtiles_seg.serve.batching import Batcher
from magtiles_seg.serve.decoding import Decoders
from magtiles_seg.serve.limits import Expired, Gate, Place, check_format
from magtiles_seg.serve.metrics import Metrics
from magtiles_seg.serve.problems import Problem
from magtiles_seg.serve.replies import INCLUDES, MASKS, TILES, Reply, Wish, encode
from magtiles_seg.serve.settings import Settings
from magtiles_seg.serve.shadow import MIRRORED, Shadow
from magtiles_seg.tile import TileResult

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_MAX_FIELDS = 16
_QUERY = ("include", "mask", "tile")
_CHARSETS = {"utf-8", "utf8", "us-ascii", "ascii", "iso-8859-1", "latin1", "windows-1252"}
_JSON, _PNG = "application/json", "image/png"


class WholeForm(MultiPartParser):
    """A parser that refuses a form without its end, of which Starlette drops the last part."""

    _ended = False

    def on_end(self) -> None:
        """Note the last boundary."""
        self._ended = True

    async def parse(self) -> FormData:
        """Return the form's fields.

        Raises:
            MultiPartException: It is damaged, has too many fields, or no end.
        """
        form = await super().parse()
        if not self._ended:
            for file in self._files_to_close_on_error:  # the part without an end is no field yet
                file.close()
            raise MultiPartException("It ends before its last boundary: send it whole.")
        return form


def wish_of(request: Request) -> Wish:
    """Return what a request asks for.

    Raises:
        Problem: 400 for an unknown word, 406 for a type that is not made here.
    """
    if strange := [name for name in request.query_params if name not in _QUERY]:
        raise Problem(
            400,
            f"unknown query word {strange[0]!r}; expected {', '.join(_QUERY)}: thresholds and "
            "scale are those that the service was started with",
        )
    for name in ("mask", "tile"):
        if len(given := request.query_params.getlist(name)) > 1:
            raise Problem(400, f"{name}: expected one word, got {', '.join(given)}")
    words = ",".join(request.query_params.getlist("include"))
    include = frozenset(word for word in words.split(",") if word)
    if include - set(INCLUDES):
        unknown = ", ".join(sorted(include - set(INCLUDES)))
        raise Problem(400, f"include: expected some of {', '.join(INCLUDES)}, got {unknown}")
    mask = request.query_params.get("mask", MASKS[0])
    if mask not in MASKS:
        raise Problem(400, f"mask: expected one of {', '.join(MASKS)}, got {mask}")
    tile = request.query_params.get("tile", TILES[0])
    if tile not in TILES:
        raise Problem(400, f"tile: expected one of {', '.join(TILES)}, got {tile}")
    accepted = ",".join(request.headers.getlist("accept") or ["*/*"])
    png = _quality(accepted, _PNG) > _quality(accepted, _JSON)
    if not png and _quality(accepted, _JSON) <= 0:
        raise Problem(406, f"expected Accept: {_JSON} or {_PNG}")
    zipped = _quality(request.headers.get("accept-encoding", ""), "gzip") > 0
    if png and tile == "true":
        raise Problem(400, "a PNG holds one mask, and no verdict on a tile; accept JSON")
    return Wish(include=include, mask=mask, png=png, zipped=zipped, tile=tile == "true")


def _quality(header: str, wanted: str) -> float:
    """Return how much an `Accept` header wants a type, 0..1; what names it exactly goes first."""
    best = (-1, 0.0)
    kind = wanted.split("/")[0] + "/*"
    for entry in header.split(","):
        name, *parameters = (part.strip().lower() for part in entry.split(";"))
        rank = {wanted: 2, kind: 1, "*/*": 0, "*": 0}.get(name, -1)
        if rank > best[0]:
            best = (rank, _q(parameters))
    return best[1]


def _q(parameters: list[str]) -> float:
    text = next((part[2:] for part in parameters if part.startswith("q=")), "1")
    try:
        return float(text)
    except ValueError:
        return 0.0


async def read_uploads(
    request: Request, settings: Settings, hold: Callable[[int], None]
) -> list[bytes]:
    """Return the files of a request's field `image`, each of an allowed format.

    They stay in memory: the service writes no temporary file and runs on a read-only file system.

    Args:
        request: Its body is read.
        settings: What is allowed.
        hold: Called with the bytes of each part of the body as it comes; refuses what is too much.

    Raises:
        Problem: 400, 408, 413 or 415: it is no form with such files, or one that comes too slowly.
        ClientDisconnect: The client left.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "multipart/form-data":
        raise Problem(415, "expected multipart/form-data, as `curl -F image=@tile.jpg` sends it")
    if request.headers.get("content-encoding", "identity").strip().lower() != "identity":
        raise Problem(
            415,
            "expected the form as it is, without Content-Encoding: pictures are compressed already",
            headers={"Accept-Encoding": "identity"},
        )
    check_charset(request)
    parser = WholeForm(
        request.headers,
        _checked(request, hold),
        max_files=settings.max_files,
        max_fields=_MAX_FIELDS,
    )
    parser.spool_max_size = settings.max_body_bytes + 1
    try:
        form = await asyncio.wait_for(parser.parse(), settings.read_timeout_s)
    except TimeoutError:
        message = f"the upload took longer than {settings.read_timeout_s:g} s"
        raise Problem(408, message, headers={"Connection": "close"}) from None
    except MultiPartException as error:
        more = " `--max-files` allows more." if "Too many files" in error.message else ""
        raise Problem(400, f"the form cannot be read: {error.message}{more}") from error
    try:
        pictures = [await file.read() for file in _files_of(form)]
    finally:
        await form.close()
    for number, picture in enumerate(pictures, start=1):
        with _saying_which(number, len(pictures)):
            check_format(picture, settings.format_names)
    return pictures


@contextmanager
def _saying_which(number: int, pictures: int) -> Iterator[None]:
    """Say in an error of one picture which of several it is.

    Raises:
        Problem: In place of an ImageError, or of another Problem.
    """
    try:
        yield
    except (ImageError, Problem) as error:
        if pictures == 1:
            raise
        problem = Problem.of(error) if isinstance(error, ImageError) else error
        detail = f"picture {number} of {pictures}: {problem.detail}"
        raise Problem(problem.status, detail, headers=problem.headers) from error


def _files_of(form: FormData) -> list[UploadFile]:
    """Return the files of the field `image`; none is left out without a word.

    Raises:
        Problem: 400, there is none, a text is in its place, or a file in another field.
    """
    sent = form.getlist("image")
    files = [file for file in sent if isinstance(file, UploadFile)]
    if not files or len(files) < len(sent):
        raise Problem(
            400,
            "expected a file in the field 'image', got "
            f"{'a text there' if sent else 'no such field'}: `curl -F image=@tile.jpg`",
        )
    for name, value in form.multi_items():
        if name != "image" and isinstance(value, UploadFile):
            raise Problem(
                400, f"a file is in the field {name!r:.40}; expected every file in a field 'image'"
            )
    return files


def check_charset(request: Request) -> None:
    """Refuse a form whose names are to be read by a codec of the client's choice.

    The framework would take any that Python has; some fail, and one is as slow as its input's
    square.

    Raises:
        Problem: 400.
    """
    _, parameters = parse_options_header(request.headers.get("content-type", ""))
    charset = parameters.get(b"charset", b"utf-8").decode("latin-1").lower()
    if charset not in _CHARSETS:
        raise Problem(400, "the form cannot be read: expected no charset, or charset=utf-8")


async def _checked(request: Request, hold: Callable[[int], None]) -> AsyncGenerator[bytes, None]:
    """Yield the body's parts; python-multipart takes no empty one."""
    async for part in request.stream():
        if part:
            hold(len(part))
            yield part


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
    review: ReviewQueue | None
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
        whole = TileResult(exposures=tuple(results)) if wish.tile else results[0]
        if wish.tile or len(results) == 1:
            headers |= {"X-Verdict": whole.verdict, "X-Score": f"{whole.score:.4f}"}
        return Response(reply.body, headers=headers)

    async def _answered(
        self, request: Request, wish: Wish, place: Place
    ) -> tuple[list[Segmentation], Reply]:
        with self.metrics.stage("read"):
            pictures = await self._uploaded(request, place)
        if wish.png and len(pictures) > 1:
            raise Problem(400, "a PNG holds one mask; send one picture, or accept JSON")
        await self.gate.room()  # others that came at the same moment may have taken it
        self.gate.expect(place, len(pictures))
        shadow = None if MIRRORED in request.headers else self.shadow
        try:
            return await self._while_there(request, self._answer(pictures, wish, place, shadow))
        except TimeoutError:
            raise self._too_late(place.pixels) from None

    async def _uploaded(self, request: Request, place: Place) -> list[bytes]:
        upload = read_uploads(request, self.settings, partial(self.gate.hold, place))
        with self.gate.reading(place) as gives_way:
            try:
                return await self._until_the_end(upload, gives_way)
            except ClientDisconnect:
                if not gives_way.done():
                    raise
        message = "the upload was slow, and gave way to other requests; send it again"
        raise Problem(408, message, headers={"Connection": "close"})

    async def _answer(
        self, pictures: list[bytes], wish: Wish, place: Place, shadow: Shadow | None
    ) -> tuple[list[Segmentation], Reply]:
        deadline = time.monotonic() + self.settings.timeout_s
        with self.metrics.stage("decode"):
            decoded = await _all(
                self._decoded(data, number, len(pictures))
                for number, data in enumerate(pictures, start=1)
            )
        self.gate.admit(place, [pixels.size for pixels in decoded])
        with self.metrics.stage("queue_and_infer"):
            results = await _all(self.batcher.submit(pixels, deadline) for pixels in decoded)
        self.gate.computed(place)
        with self.metrics.stage("encode"):
            reply, rows = await anyio.to_thread.run_sync(
                _finish, results, wish, limiter=self.limiter
            )
        group = uuid4().hex if wish.tile else None  # pictures of one part stay together
        for data, result, values in zip(pictures, results, rows, strict=True):
            self.metrics.picture(result, values, self.monitor)
            if shadow is not None:
                shadow.offer(data, result, group)
            if self.review is not None:
                self.review.consider(result, group=group, values=values)
        return results, reply

    async def _decoded(self, data: bytes, number: int, pictures: int) -> NDArray[np.uint8]:
        with _saying_which(number, pictures):
            return await self.decoders.decode(data)

    async def _while_there(self, request: Request, work: Coroutine[None, None, Answer]) -> Answer:
        """Return what the work returns; stop it when the client leaves or time is over.

        Raises:
            ClientDisconnect: The client left.
            TimeoutError: It took too long.
            Expired: The service ends.
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
            raise TimeoutError

    def _too_late(self, pixels: int) -> Expired:
        """Return what to say of a request for so many pixels that has had its time."""
        message = f"no answer within {self.settings.timeout_s:g} s"
        if (needed_s := self.gate.seconds(pixels)) > self.settings.timeout_s:
            message += f": {pixels:,} px take about {needed_s:.0f} s here; send smaller pictures"
            return Expired(503, message)
        wait = max(1, math.ceil(self.gate.wait_s))
        message += f"; try again in {wait} s"
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
