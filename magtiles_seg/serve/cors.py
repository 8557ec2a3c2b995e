"""Calls from pages of other origins: every answer carries what lets the page read it."""

from __future__ import annotations

from starlette.applications import Starlette
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

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
