"""What browsers and proxies need: CORS, and the path that a proxy has stripped."""

from __future__ import annotations

import re
from dataclasses import dataclass

from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from magtiles_seg.serve.settings import ROOT_PATH

READABLE = (
    "X-Verdict",
    "X-Score",
    "X-Model-Name",
    "X-Model-Version",
    "X-Model-Architecture",
    "X-Model-SHA256",
    "X-Model-Git-Revision",
    "X-Model-Backend",
    "Retry-After",
    "WWW-Authenticate",
)
"""Headers of answers that a page may read."""


class Service(Starlette):
    """An application that allows calls from pages of other origins, in whatever it answers.

    CORS lies around all other middleware and around the handler of unexpected errors: a page that
    cannot read a 413, a 500 or a 503 sees a failure of the network, with no reason.

    Attributes:
        origins: Which pages may call; none: no header is sent.
    """

    origins: tuple[str, ...] = ()

    def build_middleware_stack(self) -> ASGIApp:
        """Return all that a request passes."""
        stack = super().build_middleware_stack()
        if not self.origins:
            return stack
        return CORSMiddleware(
            stack,
            allow_origins=self.origins,
            allow_methods=("GET", "HEAD", "POST"),
            allow_headers=("*",),  # keys are asked for in headers, and no cookie is read
            allow_private_network=True,  # a page of the internet may call a line's own machine
            expose_headers=READABLE,
        )


_SCHEME = re.compile("https?")
_HOST = re.compile(r"[\w.-]+(:\d{1,5})?|\[[0-9a-fA-F:.]+\](:\d{1,5})?", re.ASCII)


@dataclass(frozen=True)
class Forwarded:
    """An ASGI middleware, the outermost one: routes and links then start from the client's address.

    A proxy that serves `/line3/…` and passes on `/…` says so in `X-Forwarded-Prefix`; where it does
    not, `root_path` does. One that passes `/line3/…` on as it is works with `root_path` alike.

    Attributes:
        app: What is served.
        root_path: In front of every path of the service; empty: nothing, or as the proxy says.
    """

    app: ASGIApp
    root_path: str = ""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass one request on."""
        if scope["type"] != "lifespan":
            scope = _as_seen(scope, self.root_path)
        await self.app(scope, receive, send)


def _as_seen(scope: Scope, root_path: str) -> Scope:
    headers = MutableHeaders(raw=list(scope["headers"]))
    seen = {**scope, "headers": headers.raw}
    root = root_path or _first(headers, "x-forwarded-prefix", ROOT_PATH)
    if root and not scope.get("root_path"):
        seen["root_path"] = root
        if not f"{scope['path']}/".startswith(f"{root}/"):
            seen["path"] = root + scope["path"]
            seen["raw_path"] = root.encode() + scope.get("raw_path", scope["path"].encode())
    host = _first(headers, "x-forwarded-host", _HOST)
    if host:
        headers["host"] = host
    scheme = _first(headers, "x-forwarded-proto", _SCHEME)
    if scheme and scope["type"] == "http":
        seen["scheme"] = scheme
    for name in ("x-forwarded-host", "x-forwarded-proto", "x-forwarded-prefix"):
        del headers[name]
    return seen


def _first(headers: Headers, name: str, form: re.Pattern[str]) -> str:
    """Return the first value of a header, or an empty text where it is not of that form."""
    value = headers.get(name, "").split(",")[0].strip().rstrip("/")
    return value if len(value) <= 255 and form.fullmatch(value) else ""
