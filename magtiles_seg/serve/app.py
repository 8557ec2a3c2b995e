"""`create_app`: the service as a Starlette application.

| path | answer |
|---|---|
| `POST /analyze` | the defect mask of a picture, and more where asked |
| `/livez`, `/readyz` | whether the process lives; whether it should get requests |
| `/metrics` | counters for Prometheus |
| `/openapi.json`, `/docs`, `/` | what it takes and answers |
| `/demo` | the browser demo, where the setting `demo` asks for it |
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from importlib import import_module
from pathlib import Path
from types import FrameType, ModuleType

from anyio import CapacityLimiter
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.body_limit import RequestBodyLimitMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.routing import Route

from magtiles_seg.decision import OVERRIDES
from magtiles_seg.drift import DriftMonitor
from magtiles_seg.errors import BackendUnavailableError
from magtiles_seg.infer.backends.base import available_cores
from magtiles_seg.infer.segmenter import Segmenter
from magtiles_seg.review.queue import ReviewQueue, Selector
from magtiles_seg.serve import openapi
from magtiles_seg.serve.analyze import Analyzer
from magtiles_seg.serve.auth import ApiKeys
from magtiles_seg.serve.batching import Batcher
from magtiles_seg.serve.cors import Forwarded, Service
from magtiles_seg.serve.decoding import SPARE, Budget, Decoders
from magtiles_seg.serve.envelope import Envelope, lineage_headers
from magtiles_seg.serve.health import Readiness
from magtiles_seg.serve.limits import STOP_RESERVE_S, Gate
from magtiles_seg.serve.metrics import CONTENT_TYPE, Metrics
from magtiles_seg.serve.problems import (
    Problem,
    on_defect_of_ours,
    on_http_exception,
    on_problem,
)
from magtiles_seg.serve.settings import Settings
from magtiles_seg.serve.shadow import Shadow

_MAX_UPLOADS = 16  # of the largest body, in memory at once
_TELL_LOAD_S = 1.0  # between two notes of a worker's load, where there are several
_LAST_S = 0.5  # for background tasks to end
_log = logging.getLogger("magtiles_seg.serve")


def create_app(settings: Settings | None = None) -> Starlette:
    """Load the model and return the service.

    Args:
        settings: None reads them from the environment.

    Raises:
        ConfigError: A setting is invalid.
        FileNotFoundError, ModelError, BackendUnavailableError: The model cannot be loaded.
    """
    settings = settings or Settings.read()
    keys = ApiKeys.parse(settings.api_keys)
    plan = settings.plan(available_cores())
    segmenter = _open(settings, plan.threads)
    metrics = Metrics()
    gate = Gate(
        settings.max_in_flight,
        streams=plan.streams,
        timeout_s=settings.timeout_s,
        stop_s=settings.stop_s,
        max_held_bytes=_MAX_UPLOADS * settings.max_body_bytes,
        count=metrics.outcome,
    )

    def inferred(pictures: int, pixels: int, seconds: float) -> None:
        metrics.batch(pictures, seconds)
        gate.measured(pixels, seconds)

    batcher = Batcher(
        segmenter,
        streams=plan.streams,
        max_batch=plan.max_batch,
        wait_s=settings.batch_wait_ms / 1000,
        observe=inferred,
        in_time=gate.in_time,
    )
    decoders = Decoders(
        plan.streams + SPARE,
        Budget(max_pixels=settings.max_pixels, max_bytes=settings.max_body_bytes),
        ended=lambda cause: metrics.decoders_ended.labels(cause).inc(),
    )
    review = _review(settings, segmenter, metrics)
    analyzer = Analyzer(
        settings=settings,
        keys=keys,
        gate=gate,
        decoders=decoders,
        batcher=batcher,
        limiter=CapacityLimiter(plan.streams),
        metrics=metrics,
        monitor=DriftMonitor(segmenter.spec.card.input_statistics, window=settings.drift_window),
        shadow=_shadow(settings, metrics, review),
        review=review,
    )
    readiness = Readiness(segmenter, batcher, metrics, decoders)
    return _assemble(settings, segmenter, analyzer, readiness)


def _open(settings: Settings, threads: int) -> Segmenter:
    return Segmenter(
        settings.model,
        device=settings.device,
        mm_per_px=settings.mm_per_px,
        threads=threads,
        **{name: getattr(settings, name) for name in OVERRIDES},
    )


def _review(settings: Settings, segmenter: Segmenter, metrics: Metrics) -> ReviewQueue | None:
    wanted = settings.review
    if wanted is None:
        return None
    if segmenter.decision.review_score is None and "review" in wanted.reasons:
        _log.info("no review_score is set: no picture is kept as unsure")
    usual = segmenter.spec.card.input_statistics
    return ReviewQueue(
        wanted,
        selector=Selector(wanted.reasons, wanted.share, usual),
        on_outcome=lambda outcome: metrics.review.labels(outcome).inc(),
        on_alarm=_log.warning,
    )


def _shadow(settings: Settings, metrics: Metrics, review: ReviewQueue | None) -> Shadow | None:
    if settings.shadow_url is None:
        return None
    report = Path(settings.shadow_report) if settings.shadow_report else None
    return Shadow(
        settings.shadow_url,
        fraction=settings.shadow_fraction,
        api_key=settings.shadow_api_key,
        metrics=metrics,
        report=report,
        review=review,
    )


def _assemble(
    settings: Settings, segmenter: Segmenter, analyzer: Analyzer, readiness: Readiness
) -> Starlette:
    lineage = lineage_headers(segmenter.spec, settings.model_version)
    middleware = [
        Middleware(Forwarded, root_path=settings.root_path or ""),
        Middleware(
            Envelope,
            analyzer.metrics,
            readiness,
            headers=lineage,
            max_body_bytes=settings.max_body_bytes,
        ),
    ]
    limited = [Middleware(RequestBodyLimitMiddleware, max_body_size=settings.max_body_bytes)]

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        async with _running(analyzer, readiness):
            with _draining_first(settings, analyzer, readiness):
                yield
        segmenter.close()

    app = Service(
        routes=[
            Route("/analyze", analyzer.post, methods=["POST"], middleware=limited),
            *_facts(settings, segmenter, analyzer, readiness),
        ],
        middleware=middleware,
        exception_handlers={
            Problem: on_problem,
            HTTPException: on_http_exception,
            Exception: on_defect_of_ours,
        },
        lifespan=lifespan,
    )
    app.origins = tuple(filter(None, (settings.cors_origins or "").split(",")))
    app.state.analyzer, app.state.readiness = analyzer, readiness
    if settings.demo:
        _demo().mount(app, segmenter, max_file_bytes=settings.max_body_bytes)
    return app


def _demo() -> ModuleType:
    try:
        return import_module("magtiles_seg.demo")
    except ModuleNotFoundError as error:
        raise BackendUnavailableError(
            f"serve.demo needs {error.name}, which is not installed: "
            "pip install 'magtiles-seg[demo]', or leave the demo out"
        ) from error


def _facts(
    settings: Settings,
    segmenter: Segmenter,
    analyzer: Analyzer,
    readiness: Readiness,
) -> list[Route]:
    """Return the routes that tell of the service."""
    document = openapi.document(settings)
    text, page = json.dumps(document), openapi.reference(document)
    spec, metrics = segmenter.spec, analyzer.metrics
    metrics.model.labels(spec.card.name, spec.sha256, spec.name, spec.device).set(1)

    async def livez(_: Request) -> Response:
        return PlainTextResponse("alive\n")

    async def readyz(_: Request) -> Response:
        trouble = readiness.trouble()
        if trouble is not None:
            raise Problem(503, trouble)
        return PlainTextResponse("ready\n")

    async def numbers(_: Request) -> Response:
        _tell_load(analyzer)
        return Response(metrics.text(), headers={"Content-Type": CONTENT_TYPE})

    async def schema(request: Request) -> Response:
        root = request.scope.get("root_path")
        here = json.dumps({**document, "servers": [{"url": root}]}) if root else text
        return Response(here, media_type="application/json")

    async def reference(_: Request) -> Response:
        return HTMLResponse(page)

    async def landing(request: Request) -> Response:
        root = request.scope.get("root_path", "")
        return HTMLResponse(openapi.landing(segmenter.spec, demo=settings.demo, root_path=root))

    return [
        Route("/livez", livez),
        Route("/readyz", readyz),
        Route("/metrics", numbers),
        Route("/openapi.json", schema),
        Route("/docs", reference),
        Route("/", landing),
    ]


def _tell_load(analyzer: Analyzer) -> None:
    """Bring the gauges of this process up to date."""
    analyzer.metrics.in_flight.set(analyzer.gate.inside)
    analyzer.metrics.queue.set(len(analyzer.batcher))
    analyzer.metrics.wait.set(analyzer.gate.wait_s)


async def _tell_load_of_one_among_several(analyzer: Analyzer) -> None:
    """Do so until cancelled: the scrape that asks another worker must not read an old load."""
    while True:
        _tell_load(analyzer)
        await asyncio.sleep(_TELL_LOAD_S)


@asynccontextmanager
async def _running(analyzer: Analyzer, readiness: Readiness) -> AsyncIterator[None]:
    """Keep what works in the background alive for as long as the service is."""
    await analyzer.decoders.warm()
    jobs = [analyzer.batcher.run(), readiness.run()]
    jobs += [analyzer.shadow.run()] if analyzer.shadow else []
    jobs += [_tell_load_of_one_among_several(analyzer)] if analyzer.metrics.shared else []
    tasks = [asyncio.create_task(job) for job in jobs]
    if not analyzer.monitor.has_reference:
        _log.info("the model's card has no input statistics: drift is not measured")
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        ended, _ = await asyncio.wait(tasks, timeout=_LAST_S)
        for task in ended:
            if not task.cancelled() and task.exception() is not None:
                _log.error("a background task failed", exc_info=task.exception())
        analyzer.decoders.close()
        if analyzer.review is not None:
            analyzer.review.close(_LAST_S)
        gate = analyzer.gate
        _log.info(
            "accepted %d requests, answered %d, expired %d, clients left %d; refused %d",
            *(gate.accepted, gate.answered, gate.expired, gate.left, gate.refused),
        )


@contextmanager
def _draining_first(settings: Settings, analyzer: Analyzer, readiness: Readiness) -> Iterator[None]:
    """Go on for some time after SIGTERM on open connections, before the server closes them.

    Without it, a request that arrives on an idle connection while the server closes it is lost. The
    port closes first: clients that are told to leave would else connect anew, and be reset.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    loop = asyncio.get_running_loop()
    servers_own = signal.getsignal(signal.SIGTERM)

    def close(number: int, frame: FrameType | None) -> None:
        if callable(servers_own):
            servers_own(number, frame)
        else:
            signal.signal(number, servers_own)
            signal.raise_signal(number)

    def begin(number: int, frame: FrameType | None) -> None:
        if readiness.draining:  # a terminal, or a supervisor, sends it to parent and worker
            return
        readiness.draining = True
        analyzer.gate.end(time.monotonic() + settings.stop_s - STOP_RESERVE_S)
        _stop_listening(servers_own)
        loop.call_later(settings.drain_within_s, close, number, frame)
        loop.call_later(settings.stop_s - STOP_RESERVE_S, analyzer.ending.come)
        _end_hard_after(settings.stop_s)

    def drain(number: int, frame: FrameType | None) -> None:
        loop.call_soon_threadsafe(begin, number, frame)

    signal.signal(signal.SIGTERM, drain)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, servers_own)


def _end_hard_after(seconds: float) -> None:
    """End the process after so long, whatever an inference or a framework still waits for."""

    def end() -> None:
        _log.error("not ended within %g s of SIGTERM: ending now", seconds)
        os._exit(128 + signal.SIGTERM)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()


def _stop_listening(servers_own: object) -> None:
    """Close the ports of the uvicorn server whose signal handler this is."""
    for listener in getattr(getattr(servers_own, "__self__", None), "servers", ()):
        listener.close()
