"""Around every answer: its count and time, the model's lineage, and the end of a connection."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from time import perf_counter

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from magtiles_seg.infer.backends.base import BackendSpec
from magtiles_seg.serve.health import Readiness
from magtiles_seg.serve.limits import head_trouble
from magtiles_seg.serve.metrics import Metrics
from magtiles_seg.serve.problems import MEDIA_TYPE, too_large

_OURS = ("/analyze", "/livez", "/readyz", "/metrics", "/openapi.json", "/docs", "/")


def lineage_headers(spec: BackendSpec, version: str | None = None) -> dict[str, str]:
    """Return which model answers, as `X-Model-*` headers; what is not known is left out."""
    card = spec.card
    known = {
        "X-Model-Name": card.name,
        "X-Model-Version": version or "",
        "X-Model-Architecture": card.architecture,
        "X-Model-SHA256": spec.sha256,
        "X-Model-Git-Revision": card.git_revision,
        "X-Model-Backend": f"{spec.name}, {spec.provider}, {spec.precision}",
    }
    return {name: _latin(value) for name, value in known.items() if value}


def _latin(text: str) -> str:
    """Return a text as a header may hold it."""
    printable = "".join(letter if letter.isprintable() else "?" for letter in text)
    return printable.encode("latin-1", "replace").decode("latin-1")


@dataclass(frozen=True)
class Envelope:
    """An ASGI middleware, around all but `Forwarded`, which says what path is asked for."""

    app: ASGIApp
    metrics: Metrics
    readiness: Readiness
    headers: Mapping[str, str]
    max_body_bytes: int

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass one request on."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start, status = perf_counter(), 500
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        path = path if path in _OURS else "other"
        refused = False

        async def sent(message: Message) -> None:
            nonlocal status, refused
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                is_problem = headers.get("content-type") == MEDIA_TYPE
                refused = status == 413 and path != "other" and not is_problem
                if refused:  # by the framework, in plain text
                    await too_large(self.max_body_bytes).response()(scope, receive, send)
                    return
                headers.update({**self.headers, "X-Content-Type-Options": "nosniff"})
                if self.readiness.draining:
                    headers["Connection"] = "close"
            elif refused:
                return
            await send(message)

        try:
            trouble = head_trouble(scope)
            if trouble is not None:
                await trouble.response()(scope, receive, sent)
                return
            await self.app(scope, receive, sent)
        finally:
            self.metrics.requests.labels(path, str(status)).inc()
            self.metrics.request_seconds.labels(path).observe(perf_counter() - start)
