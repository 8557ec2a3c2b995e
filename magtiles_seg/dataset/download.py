"""Download one file, however often the transfer breaks, and whatever the server claims."""

from __future__ import annotations

import http.client
import random
import re
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from magtiles_seg.errors import DataError

OpenEndedProgress = Callable[[int, int | None], None]
"""Told `(done, total)`; the total is None where a server does not say it."""

ATTEMPTS = 5
MAX_TRANSFERS = 100
"""Requests in all: a server that hands out a little with each answer is not asked for ever."""

MAX_DOWNLOAD_BYTES = 4 << 30
MAX_SECONDS = 12 * 3600
FRUITFUL_BYTES = 64 << 10
"""A transfer that brings less has brought nothing."""

_STALL_S = 60.0
"""A transfer must bring `FRUITFUL_BYTES` in every such span, and be answered in half of it."""

_MAX_PAUSE_S = 60.0
_CHUNK_BYTES = 1 << 18
_URL_SIGNS = "%:/?#[]@!$&'()*+,;="
_WORTH_A_RETRY = frozenset({408, 425, 429, 500, 502, 503, 504})


class _BrokenError(Exception):
    """A transfer ended too early; the part may go on from where it stands."""


class _UselessError(_BrokenError):
    """What the server sends does not fit the part, which is of no use then."""


@dataclass(frozen=True)
class _Part:
    """What has arrived, and beside it the server's version of the file that it is of."""

    path: Path

    @property
    def version_path(self) -> Path:
        return self.path.with_name(self.path.name + ".version")

    @property
    def version(self) -> str:
        try:
            text = self.version_path.read_text("utf-8")
        except (FileNotFoundError, UnicodeDecodeError):
            return ""
        return text if text.isascii() and text.isprintable() else ""

    @property
    def size(self) -> int:
        return self.path.stat().st_size if self.path.is_file() else 0

    @property
    def resumable(self) -> bool:
        return bool(self.version) and 0 < self.size <= MAX_DOWNLOAD_BYTES

    def forget(self) -> None:
        self.path.unlink(missing_ok=True)
        self.version_path.unlink(missing_ok=True)


def download(
    url: str,
    target: Path,
    *,
    progress: OpenEndedProgress | None = None,
    attempts: int = ATTEMPTS,
    wait_s: float = 1.0,
) -> Path:
    """Download `url` to `target`, going on where an earlier transfer broke off.

    What has arrived stands in `<target>.part`, so that a later call resumes as well. A resumed
    transfer is tied to the server's version of the file; if that has changed, or the server's
    answer does not fit the part, the download starts anew.

    Args:
        url: An http or https address.
        target: File to write; its directory exists.
        progress: Called with (bytes here, bytes in all or None).
        attempts: Transfers in a row that may bring nothing before it gives up.
        wait_s: Pause after a broken transfer, with jitter; doubles with each fruitless one. A
            server that names a longer one gets it, up to a minute.

    Raises:
        DataError: The address is invalid, the server refuses, the file is too large, the disk
            cannot hold it, or the transfer keeps breaking.
    """
    part = _Part(target.with_name(target.name + ".part"))
    ends_at = time.monotonic() + MAX_SECONDS
    fruitless = 0
    for _ in range(MAX_TRANSFERS):
        before = part.size
        reason, pause_s = _try(url, part, progress, ends_at)
        if not reason:
            part.path.replace(target)
            part.forget()
            return target
        fruitless = 0 if part.size >= before + FRUITFUL_BYTES else fruitless + 1
        if fruitless >= attempts or time.monotonic() > ends_at:
            break
        backoff_s = wait_s * 2 ** max(0, fruitless - 1) * random.uniform(0.5, 1.5)
        time.sleep(min(max(backoff_s, pause_s if wait_s else 0), _MAX_PAUSE_S))
    raise DataError(
        f"cannot download {url}: {reason}; gave up after {fruitless} transfers in a row that "
        f"brought nothing; {part.size} bytes are kept in {part.path}, run again to go on from there"
    )


def _try(
    url: str, part: _Part, progress: OpenEndedProgress | None, ends_at: float
) -> tuple[str, float]:
    """Make one transfer; return why it broke, if it did, and the pause the server asks for."""
    try:
        with urllib.request.urlopen(_request(url, part), timeout=_STALL_S / 2) as response:
            _receive(url, response, part, progress, ends_at)
    except urllib.error.HTTPError as error:
        with error:
            return _answered(url, error, part)
    except _UselessError as error:
        part.forget()
        return str(error), 0
    except _BrokenError as error:
        return str(error), 0
    except (OSError, http.client.HTTPException) as error:
        if isinstance(getattr(error, "reason", error), ssl.SSLCertVerificationError):
            raise DataError(f"cannot download {url}: {error}") from error
        return str(error) or type(error).__name__, 0
    except ValueError as error:  # a URL that cannot be parsed
        if isinstance(error, DataError):
            raise
        raise DataError(f"cannot download {url}: {error}; check the address") from error
    return "", 0


def _answered(url: str, error: urllib.error.HTTPError, part: _Part) -> tuple[str, float]:
    """Return what `_try` does for an answer that is no file."""
    if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
        # Asked with If-Range for what lies behind the part: of this version there is no more.
        if part.resumable and error.headers["Content-Range"] == f"bytes */{part.size}":
            return "", 0
        part.forget()
    elif error.code not in _WORTH_A_RETRY:
        raise DataError(f"cannot download {url}: the server answers {error}") from error
    after = error.headers["Retry-After"] or ""
    return f"the server answers {error}", float(after) if re.fullmatch(r"\d{1,4}", after) else 0


def _receive(
    url: str,
    response: http.client.HTTPResponse,
    part: _Part,
    progress: OpenEndedProgress | None,
    ends_at: float,
) -> None:
    """Write the rest of a file that a server sends.

    Raises:
        DataError: It is too large, or cannot be written.
        _BrokenError: It ends too early, or comes too slowly.
        _UselessError: It does not fit what is here.
        OSError: The connection broke.
    """
    resumed = response.status == http.HTTPStatus.PARTIAL_CONTENT
    here = part.size if resumed else 0
    total = _total_bytes(response, part) if resumed else response.length
    _check_bound(url, total or 0, part)
    _write(part, "wb" if not resumed else "ab", b"")
    if not resumed:
        _write(part, "version", _version(response).encode())
    counted, since = here, time.monotonic()
    while chunk := response.read1(_CHUNK_BYTES):
        here += len(chunk)
        _check_bound(url, here, part)
        _write(part, "ab", chunk)
        if progress is not None:
            progress(here, total)
        now = time.monotonic()
        if now > ends_at:
            raise _BrokenError(f"it takes more than {MAX_SECONDS} s")
        if now - since > _STALL_S:
            if here - counted < FRUITFUL_BYTES:
                raise _BrokenError(f"{here - counted} bytes in {now - since:.0f} s are too slow")
            counted, since = here, now
    if total is not None and here > total:
        raise _UselessError(f"{here} bytes came, the server claimed {total}")
    if total is not None and here < total:
        raise _BrokenError("the connection broke")


def _request(url: str, part: _Part) -> urllib.request.Request:
    """Return the request for what is missing, tied by If-Range to the version the part is of."""
    readable = urllib.parse.quote(url, safe=_URL_SIGNS)  # as a browser does with a typed address
    request = urllib.request.Request(readable, headers={"User-Agent": "magtiles-seg"})
    if part.resumable:
        request.add_header("Range", f"bytes={part.size}-")
        request.add_header("If-Range", part.version)
    return request


def _total_bytes(response: http.client.HTTPResponse, part: _Part) -> int:
    """Return the size of the whole file by a partial answer.

    Raises:
        _UselessError: It is of another version, or starts elsewhere than asked.
    """
    got = response.headers["Content-Range"] or ""
    match = re.fullmatch(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18})", got)
    if not part.resumable or match is None or int(match[1]) != part.size:
        raise _UselessError(f"asked for bytes from {part.size}, got {got!r}")
    if _version(response) != part.version:
        raise _UselessError("the file on the server changed meanwhile")
    return int(match[3])


def _version(response: http.client.HTTPResponse) -> str:
    """Return the strong validator that If-Range accepts, or nothing."""
    etag = response.headers["ETag"] or ""
    return etag if etag and not etag.startswith("W/") else response.headers["Last-Modified"] or ""


def _check_bound(url: str, size: int, part: _Part) -> None:
    if size > MAX_DOWNLOAD_BYTES:
        part.forget()
        raise DataError(f"{url} exceeds the bound of {MAX_DOWNLOAD_BYTES} bytes")


def _write(part: _Part, how: str, content: bytes) -> None:
    """Write, so that a full disk is not taken for a broken connection."""
    path, mode = (part.version_path, "wb") if how == "version" else (part.path, how)
    try:
        with path.open(mode) as file:
            file.write(content)
    except OSError as error:
        raise DataError(f"cannot write {path}: {error.strerror or error}") from error
