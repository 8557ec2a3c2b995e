"""What stands between the network and Gradio: only what the demo's page itself asks passes.

Gradio serves some fifty routes, many of which read files, fetch addresses or tell of other
visitors. Here a dozen are open; uploads and files are handled by `files`, calls are rebuilt by
`calls`, and streams end when the server is told to stop.
"""

from __future__ import annotations

import asyncio
import mimetypes
import re
from collections.abc import AsyncGenerator, Coroutine, MutableMapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import anyio
import anyio.to_thread
from starlette.applications import Starlette
from starlette.datastructures import MutableHeaders, UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from magtiles_seg.demo.calls import BODY_BYTES, Call, check_call, check_cancel, document_of
from magtiles_seg.demo.files import Folder, Full
from magtiles_seg.demo.visitors import Sessions, Visitor
from magtiles_seg.serve.analyze import WholeForm, check_charset
from magtiles_seg.serve.problems import (
    Problem,
    on_defect_of_ours,
    on_http_exception,
    on_problem,
)

if TYPE_CHECKING:
    import gradio as gr

FILE_BYTES = 16_000_000
"""Largest upload: a picture of the demo's largest size fits in any usual format."""

JOBS = 64
"""Calls that may wait or run at once."""

_JOBS_OF_ONE = 4
_STREAMS, _STREAMS_OF_ONE = 256, 12
_UPLOADS = 16
_FILES = 100
_PATH_BYTES = 255  # beyond it, looking for a file is an error of the system's
_UPLOAD_S = 60.0
_BODY_S = 10.0
_API = "/gradio_api"
_SHOWN = {"image/png", "image/jpeg", "image/webp", "image/bmp"}
# Gradio would allow every origin, and zip what `hidden` must read; another names the server.
_STEERING = ("origin", "accept-encoding", "range", "x-gradio-server")
_ZIPPED_FROM, _LEVEL = 500, 4  # bytes; a third of zlib's time at level 6 for 5 % more bytes
_LASTS = "public, max-age=31536000, immutable"  # of files that have their hash in their name
_HASHED = re.compile(r"/assets/[\w.-]+-[\w-]{8,9}\.(js|css)$")
_MANIFEST = b'<link rel="manifest" href="/manifest.json" />'  # beside the page, not of it
_CLIENT_LEFT = 499


class Gate:
    """An ASGI application around Gradio's."""

    def __init__(
        self, app: ASGIApp, blocks: gr.Blocks, folder: Folder, icon: str, max_file_bytes: int
    ) -> None:
        """Stand before an application.

        Args:
            app: Gradio's, of this page.
            blocks: The page.
            folder: Where its files lie.
            icon: Address of the page's icon.
            max_file_bytes: Largest upload.
        """
        self._max_file_bytes = max_file_bytes
        self._icon = f'<link rel="icon" href="{icon}" />'.encode()
        self._app = app
        self._blocks = blocks
        self._folder = folder
        self._sessions = Sessions(self._forget)
        self._streams: list[Visitor] = []
        self._uploads = 0
        self._stopping = asyncio.Event()
        self._served = self._routes()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] == "http":
            await self._served(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1000})

    def open(self) -> None:
        """Begin to serve, inside the event loop."""
        self._stopping = asyncio.Event()

    def end_streams(self) -> None:
        """End the streams that pages hold open, and take no further calls."""
        self._stopping.set()
        self._blocks.close(verbose=False)

    def _routes(self) -> Starlette:
        page, asset = _zipped(self._page), _zipped(self._asset)
        passed = {"/": page, "/config": page, "/config/": page}
        passed |= dict.fromkeys(
            ("/theme.css", "/favicon.ico", "/manifest.json", "/robots.txt", f"{_API}/theme.css"),
            asset,
        )
        passed |= dict.fromkeys(("/assets/{path:path}", "/static/{path:path}"), asset)
        passed |= {f"{_API}/queue/data": self._stream, f"{_API}/heartbeat/{{name}}": self._stream}
        routes = [Route(path, _Passed(to), methods=["GET"]) for path, to in passed.items()]
        routes += [
            Route(f"{_API}/queue/join", _Passed(self._join), methods=["POST"]),
            Route(f"{_API}/cancel", _Passed(self._cancel), methods=["POST"]),
            Route(f"{_API}/reset", _reset, methods=["POST"]),
            Route(f"{_API}/upload", self._upload, methods=["POST"]),
            Route(f"{_API}/upload_progress", _progress, methods=["GET"]),
            Route(f"{_API}/file={{path:path}}", self._file, methods=["GET"]),
        ]
        return Starlette(
            routes=routes,
            exception_handlers={
                Problem: on_problem,
                HTTPException: on_http_exception,
                Exception: on_defect_of_ours,
            },
        )

    async def _page(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the page or its configuration on, and make its visitor known."""
        sent = _greeting(scope, self._hiding(self._with_icon(send)))
        await self._app(_as_passed(scope), receive, sent)

    async def _asset(self, scope: Scope, receive: Receive, send: Send) -> None:
        if len(scope["path"].encode()) > _PATH_BYTES:
            raise HTTPException(404)
        await self._app(_as_passed(scope), receive, _lasting(scope, send))

    async def _join(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Queue a call of one of the page's functions."""
        request = Request(scope, receive)
        visitor = Visitor.of(request)
        document = document_of(await _body(request))
        self._admit(document.get("session_hash"), visitor)
        call = check_call(
            self._blocks, document, lambda path, name: self._folder.take(path, visitor, name)
        )
        if self._stopping.is_set():
            raise _stopping()
        if self._jobs_of(visitor) >= _JOBS_OF_ONE:
            raise Problem(429, "wait for what you asked before", headers={"Retry-After": "2"})
        await self._pass_call(call, scope, receive, _greeting(scope, send))

    async def _cancel(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Stop a call of the same session."""
        request = Request(scope, receive)
        call = check_cancel(document_of(await _body(request)))
        self._admit(call.session, Visitor.of(request))
        await self._pass_call(call, scope, receive, send)

    async def _pass_call(self, call: Call, scope: Scope, receive: Receive, send: Send) -> None:
        told = False

        async def rebuilt() -> Message:
            nonlocal told
            if told:
                return await receive()
            told = True
            return {"type": "http.request", "body": call.content, "more_body": False}

        passed = _as_passed(scope)
        headers = MutableHeaders(raw=passed["headers"])
        headers["content-type"] = "application/json"
        headers["content-length"] = str(len(call.content))
        del headers["transfer-encoding"]
        await self._app({**passed, "headers": headers.raw}, rebuilt, send)

    async def _stream(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on a stream of a page until it ends, the visitor leaves or the server stops."""
        request = Request(scope)
        visitor = Visitor.of(request)
        name = request.path_params.get("name") or request.query_params.get("session_hash")
        self._admit(name, visitor)
        waits = "name" in request.path_params or name in self._pending
        if not waits:
            raise Problem(404, "this page waits for no answer")  # Gradio breaks off its own
        own = sum(visitor.token == other.token for other in self._streams)
        if len(self._streams) >= _STREAMS or own >= _STREAMS_OF_ONE or self._stopping.is_set():
            raise Problem(503, "too many open pages; try again", headers={"Retry-After": "10"})
        passed = _as_passed(scope, query=f"session_hash={name}".encode())
        self._streams.append(visitor)
        try:
            await _until(self._stopping, self._app, passed, receive, self._hiding(send))
        finally:
            self._streams.remove(visitor)

    async def _upload(self, request: Request) -> Response:
        """Answer an upload; of a refusal the page shows all text, so it is no JSON."""
        try:
            return await self._store(request)
        except Problem as problem:
            return PlainTextResponse(problem.detail, problem.status, headers=problem.headers)

    async def _store(self, request: Request) -> Response:
        """Store the files of a form and answer their paths, as Gradio's own route does."""
        visitor = Visitor.of(request)
        if self._uploads >= _UPLOADS or self._stopping.is_set():
            raise Problem(503, "too many uploads at once; try again", headers={"Retry-After": "5"})
        self._uploads += 1
        try:
            with anyio.fail_after(_UPLOAD_S):
                paths = await _before(self._stopping, self._receive(request, visitor))
        except TimeoutError:
            raise Problem(408, f"the upload took longer than {_UPLOAD_S:g} s") from None
        except Full:
            raise Problem(
                503, "the demo has no room; try again", headers={"Retry-After": "30"}
            ) from None
        except ClientDisconnect:
            return Response(status_code=_CLIENT_LEFT)
        finally:
            self._uploads -= 1
        return JSONResponse(paths, headers=_cookie(request.scope, visitor))

    async def _receive(self, request: Request, visitor: Visitor) -> list[str]:
        """Read a form; while it arrives, its files have no name on the disk and go with it."""
        limit = self._folder.limits.visitor_bytes
        length = request.headers.get("content-length", "")
        if length.isdecimal() and len(length) < 20 and int(length) > limit:
            raise _too_large(limit)
        check_charset(request)
        with self._folder.arriving() as tell:
            parser = WholeForm(
                request.headers, _told(request, tell, limit), max_files=_FILES, max_fields=8
            )
            try:
                form = await parser.parse()
            except (MultiPartException, LookupError, ValueError) as error:
                detail = getattr(error, "message", "it is no multipart/form-data with a boundary")
                raise Problem(400, f"the form cannot be read: {detail}") from error
            try:
                files = [file for file in form.getlist("files") if isinstance(file, UploadFile)]
                if not files:
                    raise Problem(400, "expected files in the field 'files'")
                most = self._max_file_bytes
                if any((file.size or 0) > most for file in files):
                    raise _too_large(most, "a file")
                await anyio.to_thread.run_sync(self._folder.sweep)
                named = [(file.filename or "", file.file) for file in files]
                return await anyio.to_thread.run_sync(self._folder.store, named, visitor)
            finally:
                await form.close()

    async def _file(self, request: Request) -> Response:
        """Send a file that the demo drew, or that the same visitor uploaded."""
        visitor = Visitor.of(request)
        path = await anyio.to_thread.run_sync(
            self._folder.find, request.path_params["path"], visitor
        )
        if path is None:
            raise Problem(404, "there is no such file, or it was removed since")
        kind = mimetypes.guess_type(path.name)[0]
        shown = kind in _SHOWN
        return FileResponse(
            path,
            media_type=kind if shown else "application/octet-stream",
            filename=path.name,
            content_disposition_type="inline" if shown else "attachment",
            headers={
                "Cache-Control": "private, max-age=600",
                "Content-Security-Policy": "default-src 'none'; sandbox",
                "X-Content-Type-Options": "nosniff",
            },
        )

    def _hiding(self, send: Send) -> Send:
        """Return a `send` that tells no path of the server's."""

        async def hiding(message: Message) -> None:
            if message["type"] == "http.response.start":
                del MutableHeaders(scope=message)["content-length"]
            elif "body" in message:
                message = {**message, "body": self._folder.hidden(message["body"])}
            await send(message)

        return hiding

    def _with_icon(self, send: Send) -> Send:
        """Return a `send` that names the page's icon in place of a manifest that is not there."""

        async def named(message: Message) -> None:
            if "body" in message:
                message = {**message, "body": message["body"].replace(_MANIFEST, self._icon)}
            await send(message)

        return named

    def _admit(self, name: object, visitor: Visitor) -> None:
        if not self._sessions.admits(name, visitor):
            raise Problem(403, "session_hash: expected a name of this visitor's own choice")

    def _jobs_of(self, visitor: Visitor) -> int:
        """Return how many calls of a visitor wait or run."""
        events = list(self._blocks._queue.event_ids_to_events.values())
        owners = (self._sessions.owner_of(event.session_hash) for event in events)
        return sum(owner is not None and owner.token == visitor.token for owner in owners)

    @property
    def _pending(self) -> MutableMapping[str, Any]:
        """Gradio's messages by session, as long as a session has calls."""
        pending: MutableMapping[str, Any] = self._blocks._queue.pending_messages_per_session
        return pending

    def _forget(self, session: str) -> None:
        """Let go of what Gradio keeps for a session that nobody uses."""
        queue = self._blocks._queue
        with suppress(KeyError):
            del self._pending[session]
        queue.pending_event_ids_session.pop(session, None)


class _Passed:
    """An endpoint that is an ASGI application; Starlette takes functions for something else."""

    def __init__(self, to: Any) -> None:  # noqa: ANN401  (an ASGI application)
        self._to = to

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._to(scope, receive, send)


async def _before(stopping: asyncio.Event, work: Coroutine[Any, Any, list[str]]) -> list[str]:
    """Return what the work returns.

    Raises:
        Problem: 503, the server was told to stop; the work is given up.
    """
    working, stopped = asyncio.ensure_future(work), asyncio.ensure_future(stopping.wait())
    try:
        await asyncio.wait({working, stopped}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise _stopping()
    finally:
        stopped.cancel()
        working.cancel()
        await asyncio.wait({working})


async def _until(
    stopping: asyncio.Event, app: ASGIApp, scope: Scope, receive: Receive, send: Send
) -> None:
    """Run an application until it is done or the server stops, and end its answer."""
    state = ""

    async def sent(message: Message) -> None:
        nonlocal state
        more = message["type"] == "http.response.start" or message.get("more_body", False)
        state = "open" if more else "done"
        await send(message)

    serving = asyncio.ensure_future(app(scope, receive, sent))
    stopped = asyncio.ensure_future(stopping.wait())
    try:
        await asyncio.wait({serving, stopped}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        stopped.cancel()
        ended = not serving.done()
        serving.cancel()
        with suppress(asyncio.CancelledError, *([Exception] if ended else ())):
            await serving
    if ended and state == "open":
        await send({"type": "http.response.body", "body": b"", "more_body": False})
    elif ended and not state:
        raise _stopping()


async def _body(request: Request) -> bytes:
    """Return a small body.

    Raises:
        Problem: 408 or 413, it is too slow or too large.
    """
    parts, size = [], 0
    try:
        with anyio.fail_after(_BODY_S):
            async for part in request.stream():
                size += len(part)
                if size > BODY_BYTES:
                    raise _too_large(BODY_BYTES)
                parts.append(part)
    except TimeoutError:
        raise Problem(408, f"the request took longer than {_BODY_S:g} s") from None
    except ClientDisconnect:
        raise Problem(400, "the request ended early") from None
    return b"".join(parts)


async def _told(request: Request, tell: Any, limit: int) -> AsyncGenerator[bytes, None]:  # noqa: ANN401
    """Yield a body's parts, each counted."""
    size = 0
    async for part in request.stream():
        size += len(part)
        if size > limit:
            raise _too_large(limit)
        tell(len(part))
        if part:  # python-multipart takes no empty one
            yield part


def _as_passed(scope: Scope, query: bytes = b"") -> Scope:
    """Return a request as Gradio may see it: no query, no header that steers it."""
    headers = MutableHeaders(raw=list(scope["headers"]))
    for name in _STEERING:
        del headers[name]
    return {**scope, "query_string": query, "headers": headers.raw}


def _greeting(scope: Scope, send: Send) -> Send:
    """Return a `send` that gives a new visitor the cookie."""
    fields = _cookie(scope, Visitor.of(Request(scope)))

    async def greeting(message: Message) -> None:
        if message["type"] == "http.response.start":
            MutableHeaders(scope=message).update({**fields, "Cache-Control": "no-store"})
        await send(message)

    return greeting


def _zipped(to: ASGIApp) -> ASGIApp:
    """Return an endpoint whose texts are sent zipped to those who take it."""
    return GZipMiddleware(to, minimum_size=_ZIPPED_FROM, compresslevel=_LEVEL)


def _lasting(scope: Scope, send: Send) -> Send:
    """Return a `send` that lets browsers keep a script or style for good."""
    if not _HASHED.search(scope["path"]):
        return send

    async def lasting(message: Message) -> None:
        if message["type"] == "http.response.start" and message["status"] == 200:
            MutableHeaders(scope=message)["Cache-Control"] = _LASTS
        await send(message)

    return lasting


def _cookie(scope: Scope, visitor: Visitor) -> dict[str, str]:
    if not visitor.is_new:
        return {}
    path = scope.get("root_path") or "/"
    return {"Set-Cookie": visitor.cookie(path=path, https=scope["scheme"] == "https")}


def _stopping() -> Problem:
    return Problem(503, "the server is stopping", headers={"Retry-After": "10"})


def _too_large(limit: int, what: str = "the request") -> Problem:
    return Problem(413, f"{what} is larger than {limit // 1000:,} kB")


async def _reset(_: Request) -> Response:
    return JSONResponse({"success": True})


async def _progress(_: Request) -> Response:
    """Tell the page that its upload arrived: it waits for the upload's own answer anyway."""
    return PlainTextResponse('data: {"msg": "done"}\n\n', media_type="text/event-stream")
