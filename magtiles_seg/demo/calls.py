"""What a page may ask of the demo's functions: each call is rebuilt from what is known of it.

Gradio takes any file of the server's, and any address, that a call names. Here a call consists of
numbers, of the keys of results, and of uploads of the same visitor; everything else is refused, and
nothing that was not checked is passed on.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from magtiles_seg.serve.problems import Problem

BODY_BYTES = 1_000_000
_MAX_FILES = 200
_MAX_INDEX = 10_000
_KEY = re.compile(r"[\w:-]{0,64}", re.ASCII)
_EVENT = re.compile(r"[0-9a-f]{32}")

Takes = Callable[[str, str], Path | None]
"""Returns the upload of a name for a session's use, `takes(name, session)`, or None."""


@dataclass(frozen=True)
class Call:
    """A checked call of one of the demo's functions.

    Attributes:
        session: Name of the page's session.
        function: Which one, by Gradio's number.
        content: What Gradio is given, as JSON.
    """

    session: str
    function: int
    content: bytes


def document_of(body: bytes) -> dict[str, Any]:
    """Return the JSON object that a body holds.

    Raises:
        Problem: 400, it holds none.
    """
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):  # UnicodeDecodeError is a ValueError
        raise Problem(400, "expected JSON") from None
    if not isinstance(document, dict):
        raise Problem(400, "expected a JSON object")
    return document


def check_call(blocks: gr.Blocks, document: dict[str, Any], takes: Takes) -> Call:
    """Return a call as Gradio may see it.

    Args:
        blocks: The page.
        document: As the client sent it; its session is the client's.
        takes: Says which uploads the session may use.

    Raises:
        Problem: 400 or 403, it is none that the page makes.
    """
    session, number = document.get("session_hash"), document.get("fn_index")
    if not isinstance(session, str):
        raise Problem(400, "session_hash: expected a text")
    function = blocks.fns.get(number) if type(number) is int else None
    if function is None or function.fn is None:  # the page stops a call by `cancel` alone
        raise Problem(400, "fn_index: expected the number of one of the page's functions")
    data = document.get("data")
    if not isinstance(data, list) or len(data) != len(function.inputs):
        raise Problem(400, f"data: expected a list of {len(function.inputs)} values")
    values = [
        _value(component, value, session, takes)
        for component, value in zip(function.inputs, data, strict=True)
    ]
    trigger, sources = document.get("trigger_id"), {target for target, _ in function.targets}
    content = {
        "session_hash": session,
        "fn_index": function._id,
        "data": values,
        "event_data": _event_data(document.get("event_data")),
        "trigger_id": trigger if type(trigger) is int and trigger in sources else None,
    }
    return Call(session, function._id, json.dumps(content).encode())


def check_cancel(document: dict[str, Any]) -> Call:
    """Return the request to stop a function as Gradio may see it.

    Raises:
        Problem: 400, it is none.
    """
    session, number, event = (
        document.get(name) for name in ("session_hash", "fn_index", "event_id")
    )
    if not isinstance(session, str) or type(number) is not int or abs(number) > _MAX_INDEX:
        raise Problem(400, "expected session_hash, a text, and fn_index, a whole number")
    if not isinstance(event, str) or not _EVENT.fullmatch(event):
        raise Problem(400, "event_id: expected one that was given")
    content = {"session_hash": session, "fn_index": number, "event_id": event}
    return Call(session, number, json.dumps(content).encode())


def _value(component: Any, value: object, session: str, takes: Takes) -> Any:  # noqa: ANN401
    if isinstance(component, gr.Slider | gr.Number):
        return _number(component, value)
    if isinstance(component, gr.Checkbox | gr.Dropdown | gr.Textbox):
        return _choice(component, value)
    if value is None and isinstance(component, gr.File | gr.Image):
        return None
    if isinstance(component, gr.File) and component.file_count != "single":
        if not isinstance(value, list) or len(value) > _MAX_FILES:
            raise Problem(400, f"expected a list of at most {_MAX_FILES} files")
        return [_file(entry, session, takes) for entry in value]
    if isinstance(component, gr.File | gr.Image):
        return _file(value, session, takes)
    raise Problem(400, "this function cannot be called")  # no other kind is an input


def _choice(component: gr.Checkbox | gr.Dropdown | gr.Textbox, value: object) -> object:
    if isinstance(component, gr.Checkbox):
        if isinstance(value, bool):
            return value
        raise Problem(400, "expected true or false")
    if isinstance(component, gr.Dropdown):
        if isinstance(value, str) and value in [choice for _, choice in component.choices]:
            return value
        raise Problem(400, "expected one of the choices")
    if value is None or (isinstance(value, str) and _KEY.fullmatch(value)):
        return value
    raise Problem(400, "expected the key of a result")


def _number(component: gr.Slider | gr.Number, value: object) -> float | None:
    if value is None and not isinstance(component, gr.Slider):
        return None
    least = -math.inf if component.minimum is None else component.minimum
    most = math.inf if component.maximum is None else component.maximum
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise Problem(400, "expected a number")
    if not (math.isfinite(value) if isinstance(value, float) else abs(value) < 1e15):
        raise Problem(400, "expected a finite number")
    if not least <= value <= most:
        raise Problem(400, f"expected a number from {least:g} to {most:g}")
    return value


def _file(value: object, session: str, takes: Takes) -> dict[str, Any]:
    name = value.get("path") if isinstance(value, dict) else None
    if not isinstance(name, str):
        raise Problem(400, "expected an uploaded file")
    path = takes(name, session)
    if path is None:
        raise Problem(
            403, "this page uploaded no such file, or it was removed since: upload it again"
        )
    return {"path": str(path), "meta": {"_type": "gradio.FileData"}}


def _event_data(value: object) -> dict[str, Any] | None:
    """Return which of several things was chosen, the one thing that the page tells of an event."""
    index = value.get("index") if isinstance(value, dict) else None
    if type(index) is not int or not 0 <= index < _MAX_INDEX:
        index = None
    return {"index": index, "value": None}
