"""Errors over HTTP: RFC 9457 `application/problem+json`, without paths, stacks or addresses."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping
from http import HTTPStatus

from starlette.exceptions import HTTPException
from starlette.middleware.body_limit import MAX_BODY_SIZE_SCOPE_KEY
from starlette.requests import Request
from starlette.responses import Response

from magtiles_seg.errors import ImageError, MagtilesError

MEDIA_TYPE = "application/problem+json"
_IMAGE_STATUS = {"too_large": 413, "unsupported": 415, "invalid": 400}
_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")
_log = logging.getLogger("magtiles_seg.serve")


class Problem(Exception):  # noqa: N818  (the name of the thing in RFC 9457)
    """An answer that is an error.

    Attributes:
        status: The HTTP status.
        detail: What is wrong with this request, and the fix; the client reads it.
        headers: Sent along.
    """

    def __init__(
        self, status: int, detail: str, *, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.headers = dict(headers or {})

    @classmethod
    def of(cls, error: MagtilesError) -> Problem:
        """Return what a client is told of a library error; what is not its fault stays inside."""
        if isinstance(error, ImageError):
            return cls(_IMAGE_STATUS[error.reason], _ADDRESS.sub("", str(error)))
        _log.error("inference failed", exc_info=error)
        return cls(503, "the model failed on this request; try again", headers={"Retry-After": "1"})

    def response(self) -> Response:
        """Return the answer as RFC 9457 has it."""
        document = {
            "type": "about:blank",
            "title": HTTPStatus(self.status).phrase,
            "status": self.status,
            "detail": self.detail,
        }
        body = json.dumps(document).encode()
        return Response(body, self.status, {**self.headers, "Content-Type": MEDIA_TYPE})


def too_large(limit_bytes: int) -> Problem:
    """Return what is told of a body that is larger than the service's limit."""
    text = f"the request is larger than {limit_bytes:,} bytes, the most that this service takes"
    return Problem(413, f"{text}; send a smaller picture")


async def on_problem(_: Request, error: Exception) -> Response:
    """Answer a `Problem`."""
    assert isinstance(error, Problem)
    return error.response()


async def on_http_exception(request: Request, error: Exception) -> Response:
    """Answer what the framework itself refuses: 404, 405, 413."""
    assert isinstance(error, HTTPException)
    if error.status_code == 413:
        return too_large(request.scope[MAX_BODY_SIZE_SCOPE_KEY]).response()
    return Problem(error.status_code, error.detail, headers=error.headers).response()


async def on_defect_of_ours(_: Request, error: Exception) -> Response:
    """Answer 500 without a word about the inside; the log has it all."""
    _log.error("unexpected error", exc_info=error)
    return Problem(500, "the service failed on this request; its log says why").response()
