"""What a request of `/analyze` says: its wishes and its files."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable

from python_multipart.multipart import parse_options_header
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from magtiles_seg.serve.limits import check_format
from magtiles_seg.serve.problems import Problem
from magtiles_seg.serve.replies import INCLUDES, MASKS, Wish
from magtiles_seg.serve.settings import Settings

_MAX_FIELDS = 16
_CHARSETS = {"utf-8", "utf8", "us-ascii", "ascii", "iso-8859-1", "latin1", "windows-1252"}
_JSON, _PNG = "application/json", "image/png"


def wish_of(request: Request) -> Wish:
    """Return what a request asks for.

    Raises:
        Problem: 400 for an unknown word, 406 for a type that is not made here.
    """
    words = ",".join(request.query_params.getlist("include"))
    include = frozenset(word for word in words.split(",") if word)
    if include - set(INCLUDES):
        unknown = ", ".join(sorted(include - set(INCLUDES)))
        raise Problem(400, f"include: expected some of {', '.join(INCLUDES)}, got {unknown}")
    mask = request.query_params.get("mask", MASKS[0])
    if mask not in MASKS:
        raise Problem(400, f"mask: expected one of {', '.join(MASKS)}, got {mask}")
    accepted = request.headers.get("accept", "*/*")
    png = _quality(accepted, _PNG) > _quality(accepted, _JSON)
    if not png and _quality(accepted, _JSON) <= 0:
        raise Problem(406, f"expected Accept: {_JSON} or {_PNG}")
    zipped = _quality(request.headers.get("accept-encoding", ""), "gzip") > 0
    return Wish(include=include, mask=mask, png=png, zipped=zipped)


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
    check_charset(request)
    parser = MultiPartParser(
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
        raise Problem(400, f"the form cannot be read: {error.message}") from error
    files = form.getlist("image")
    try:
        pictures = [await file.read() for file in files if isinstance(file, UploadFile)]
    finally:
        await form.close()
    if not pictures:
        raise Problem(
            400,
            "expected a file in the field 'image', got "
            f"{'a text there' if files else 'no such field'}: `curl -F image=@tile.jpg`",
        )
    for picture in pictures:
        check_format(picture, settings.format_names)
    return pictures


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
