"""How large a request's head may be: its request line and its header fields."""

from __future__ import annotations

from starlette.types import Scope

from magtiles_seg.serve.problems import Problem

MAX_HEAD_BYTES = 65_536
"""Largest request line and header fields together."""

_MAX_FIELDS = 200
_MAX_TARGET = 8_192
_CLOSE = {"Connection": "close"}


def head_trouble(scope: Scope) -> Problem | None:
    """Return why a request's head is refused, or None. `guard` ends those that never end."""
    target = len(scope["raw_path"] or b"") + len(scope["query_string"])
    if target > _MAX_TARGET:
        message = f"the address has {target:,} bytes; expected at most {_MAX_TARGET:,}"
        return Problem(414, message, headers=_CLOSE)
    fields = scope["headers"]
    size = target + sum(len(name) + len(value) + 4 for name, value in fields)
    if size > MAX_HEAD_BYTES or len(fields) > _MAX_FIELDS:
        return head_too_large()
    return None


def head_too_large() -> Problem:
    """Return the answer to a head beyond the limits."""
    message = f"expected at most {_MAX_FIELDS} header fields and {MAX_HEAD_BYTES:,} bytes of them"
    return Problem(431, message, headers=_CLOSE)
