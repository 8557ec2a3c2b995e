"""The demo in the browser: one tile, many tiles, a web of lines. Needs the extra `demo`.

Nothing comes from or goes to another machine: fonts are those of the reader's system, scripts are
Gradio's own, and its telemetry is off. What may reach Gradio is decided in `gate`.
"""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import cache
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # Gradio reads it when it is imported

import anyio
import anyio.to_thread
import gradio as gr
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import RedirectResponse
from starlette.routing import Mount, Route

from magtiles_seg.demo.files import Folder
from magtiles_seg.demo.gate import FILE_BYTES, JOBS, Gate
from magtiles_seg.demo.many import add_many_tab
from magtiles_seg.demo.tile import Judge, add_tile_tab
from magtiles_seg.demo.web import add_web_tab
from magtiles_seg.serve.cors import Forwarded

if TYPE_CHECKING:
    from magtiles_seg.infer.segmenter import Segmenter

__all__ = ["create_app", "mount", "run"]

PATH = "/demo"
_SESSIONS = 200  # of which Gradio keeps the state of the page's fields
_SWEPT_S = 1.0
_GRACE_S = 3  # for what is being answered when the server is told to stop
_LAST_S = 1.5  # for what is being computed after that
_BACKLOG = 128
_ABOUT = (
    "<header><h1>Defects of magnetic tiles</h1>"
    "<p>Give it a picture of a tile: it marks the defects, measures them and says whether the tile "
    "passes.</p></header>"
)
_ICON = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 32 32"><rect width="32" height="32" '
    'rx="6" fill="#475569"/><path d="M6 4v24M12 4v24M20 4v24M26 4v24" stroke="#94a3b8"/>'
    '<path d="M17 3l-3 9 4 6-4 11" fill="none" stroke="#facc15" stroke-width="3"/></svg>'
)
_FONTS = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "DejaVu Sans", "sans-serif")


def build(segmenter: Segmenter) -> gr.Blocks:
    """Return the demo's page; `mount` is what shows it to others.

    Args:
        segmenter: Model and thresholds to start from; stays the caller's.
    """
    judge = Judge(segmenter)
    with gr.Blocks(
        title="Defects of magnetic tiles", analytics_enabled=False, fill_width=True
    ) as blocks:
        gr.HTML(_ABOUT)
        with gr.Tab("One tile"):
            controls = add_tile_tab(judge)
        with gr.Tab("Many tiles"):
            add_many_tab(judge, controls)
        with gr.Tab("Line scan"):
            add_web_tab(segmenter)
    blocks.state_session_capacity = _SESSIONS
    blocks.root_path = ""  # GRADIO_ROOT_PATH would lead Gradio's routes astray; see `Forwarded`
    return blocks.queue(max_size=JOBS, api_open=False)


def mount(app: Starlette, segmenter: Segmenter, *, max_file_bytes: int = FILE_BYTES) -> Starlette:
    """Put the demo under `/demo` of an application, before that starts, and return it.

    Args:
        app: Its lifespan is wrapped, and its state survives.
        segmenter: Model and thresholds; stays the caller's.
        max_file_bytes: Largest upload, up to the demo's own limit.
    """
    folder = _folder()
    max_file_bytes = min(max_file_bytes, FILE_BYTES)
    blocks = build(segmenter)
    gr.mount_gradio_app(app, blocks, path=PATH, max_file_size=max_file_bytes, **_options())
    blocks.has_launched = True  # Gradio's own check of paths acts only then
    gradio_app = app.router.routes.pop()
    assert isinstance(gradio_app, Mount)
    icon = f"data:image/svg+xml,{quote(_ICON)}"
    gate = Gate(gradio_app.app, blocks, folder, icon, max_file_bytes)
    app.mount(PATH, gate)
    folder.keep_present()
    folder.on_removal = lambda gone: _forget(blocks, gone)
    app.router.lifespan_context = _around(app.router.lifespan_context, gate, folder)
    return app


def create_app(segmenter: Segmenter, *, root_path: str = "") -> Starlette:
    """Return an application with the demo alone; `/` leads to it.

    Args:
        segmenter: Model and thresholds; stays the caller's.
        root_path: What a proxy puts in front of every path, such as `/line3`.
    """

    def lead(request: Request) -> RedirectResponse:
        return RedirectResponse(f"{request.scope.get('root_path', '')}{PATH}/")

    middleware = [Middleware(Forwarded, root_path=root_path)]
    return mount(Starlette(routes=[Route("/", lead)], middleware=middleware), segmenter)


def run(segmenter: Segmenter, *, host: str, port: int, root_path: str = "") -> None:
    """Show the demo alone until the process is told to stop.

    Args:
        segmenter: Model and thresholds; stays the caller's.
        host: Address to listen on; `0.0.0.0` for all.
        port: Port to listen on.
        root_path: What a proxy puts in front of every path, such as `/line3`.
    """
    import uvicorn

    from magtiles_seg.serve.guard import PROTOCOL
    from magtiles_seg.serve.running import log_config

    uvicorn.run(
        create_app(segmenter, root_path=root_path),
        host=host,
        port=port,
        log_level="warning",
        log_config=log_config(),
        server_header=False,
        backlog=_BACKLOG,
        timeout_graceful_shutdown=_GRACE_S,
        http=PROTOCOL,
        ws="none",
    )


@cache
def _folder() -> Folder:
    """Return the folder of this process: Gradio knows but one."""
    folder = Folder()
    os.environ["GRADIO_TEMP_DIR"] = str(folder.path)
    return folder


def _options() -> dict[str, Any]:
    """Return how Gradio shows the page."""
    script = Path(__file__).with_name("demo.js").read_text(encoding="utf-8")
    return {
        "theme": gr.themes.Default(
            primary_hue="blue",
            neutral_hue="slate",
            font=_FONTS,
            font_mono=("ui-monospace", "monospace"),
        ),
        "css_paths": [Path(__file__).with_name("demo.css")],
        "head": f"<script>{script}</script>",
        "footer_links": [],
        "run_history": False,
        "ssr_mode": False,
        "show_error": False,
        "enable_monitoring": False,
        "mcp_server": False,
        "pwa": False,
    }


Lifespan = Callable[[Any], Any]


def _around(inner: Lifespan, gate: Gate, folder: Folder) -> Lifespan:
    """Return a lifespan in which the folder is kept small, and streams end at the first signal."""

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[Any]:
        async with inner(app) as state:
            gate.open()
            sweeping = asyncio.create_task(_sweep(folder))
            try:
                with _at_signal(gate.end_streams):
                    yield state
            finally:
                gate.end_streams()
                sweeping.cancel()
                await asyncio.gather(sweeping, return_exceptions=True)
        await _threads_rest()  # what they still draw would bring the folder back
        folder.close()

    return lifespan


async def _threads_rest() -> None:
    """Wait for the calls that are in a thread to come to their next step, or a little while."""
    limiter = anyio.to_thread.current_default_thread_limiter()
    with anyio.move_on_after(_LAST_S):
        while limiter.borrowed_tokens:
            await asyncio.sleep(0.02)


async def _sweep(folder: Folder) -> None:
    while True:
        await anyio.to_thread.run_sync(folder.sweep)
        await asyncio.sleep(_SWEPT_S)


@contextmanager
def _at_signal(act: Callable[[], None]) -> Iterator[None]:
    """Act at SIGTERM and SIGINT, before what acts on them already.

    A server waits for open connections before it ends an application, and an open page holds two.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    loop = asyncio.get_running_loop()
    former = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def handle(number: int, frame: FrameType | None) -> None:
        loop.call_soon_threadsafe(act)
        handler = former[signal.Signals(number)]
        if callable(handler):
            handler(number, frame)
        elif handler == signal.SIG_DFL:
            signal.signal(number, handler)
            signal.raise_signal(number)

    for number in former:
        signal.signal(number, handle)
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def _forget(blocks: gr.Blocks, gone: set[str]) -> None:
    """Let Gradio forget the names of removed files, which it would keep for good."""
    for names in list(blocks.temp_file_sets):
        names.difference_update(gone)
