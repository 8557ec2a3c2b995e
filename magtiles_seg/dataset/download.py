"""Download one file, however often the transfer breaks."""

from __future__ import annotations

import hashlib
import http.client
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

from magtiles_seg.errors import DataError

Progress = Callable[[int, int | None], None]

ATTEMPTS = 5
MAX_DOWNLOAD_BYTES = 4 << 30
_CHUNK_BYTES = 1 << 18
_TIMEOUT_S = 30.0
_WORTH_A_RETRY = frozenset({408, 416, 425, 429, 500, 502, 503, 504})


def download(
    url: str,
    target: Path,
    *,
    progress: Progress | None = None,
    attempts: int = ATTEMPTS,
    wait_s: float = 1.0,
) -> Path:
    """Download `url` to `target`, going on where an earlier transfer broke off.

    What has arrived stands in `<target>.part`, so that a later call resumes as well. A resumed
    transfer is tied to the server's version of the file; if that has changed, the download starts
    anew.

    Args:
        url: An http or https address.
        target: File to write; its directory exists.
        progress: Called with (bytes here, bytes in all or None).
        attempts: Transfers in a row that may bring nothing before it gives up.
        wait_s: Pause after the first fruitless transfer; doubles with each.

    Raises:
        DataError: The server refuses, the file is too large, or the transfer keeps breaking.
    """
    part = target.with_name(target.name + ".part")
    fruitless = 0
    while True:
        before = _size(part)
        try:
            if _transfer(url, part, progress):
                part.replace(target)
                _version_file(part).unlink(missing_ok=True)
                return target
            reason = "the connection broke"
        except urllib.error.HTTPError as error:
            if error.code not in _WORTH_A_RETRY:
                raise DataError(f"cannot download {url}: the server answers {error}") from error
            reason = str(error)
        except (OSError, http.client.HTTPException) as error:
            reason = str(error) or type(error).__name__
        fruitless = 0 if _size(part) > before else fruitless + 1
        if fruitless >= attempts:
            raise DataError(
                f"cannot download {url}: {reason}, {attempts} times in a row; "
                f"{_size(part)} bytes are kept in {part}, run again to go on from there"
            )
        time.sleep(wait_s * 2 ** (fruitless - 1) if fruitless else 0)


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _transfer(url: str, part: Path, progress: Progress | None) -> bool:
    """Fetch what `part` lacks; return whether it is complete now."""
    with urllib.request.urlopen(_request(url, part), timeout=_TIMEOUT_S) as response:
        resumed = response.status == http.HTTPStatus.PARTIAL_CONTENT
        here = _size(part) if resumed else 0
        total = _total_bytes(response, here)
        _version_file(part).write_text(_version(response), encoding="utf-8")
        with part.open("ab" if resumed else "wb") as file:
            while chunk := response.read(_CHUNK_BYTES):
                here += len(chunk)
                if max(here, total or 0) > MAX_DOWNLOAD_BYTES:
                    raise DataError(f"{url} exceeds the bound of {MAX_DOWNLOAD_BYTES} bytes")
                file.write(chunk)
                if progress is not None:
                    progress(here, total)
    return total is None or here == total


def _request(url: str, part: Path) -> urllib.request.Request:
    """Return the request for what is missing, tied by If-Range to the version the part is of."""
    request = urllib.request.Request(url, headers={"User-Agent": "magtiles-seg"})
    version = _version_file(part).read_text("utf-8") if _version_file(part).is_file() else ""
    if _size(part) and version:
        request.add_header("Range", f"bytes={_size(part)}-")
        request.add_header("If-Range", version)
    return request


def _total_bytes(response: http.client.HTTPResponse, here: int) -> int | None:
    """Return the size of the whole file, or None when the server does not tell.

    Raises:
        ConnectionError: A partial answer starts elsewhere than asked; the part is useless then.
    """
    if response.status != http.HTTPStatus.PARTIAL_CONTENT:
        length = response.headers["Content-Length"]
        return int(length) if length else None
    match = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", response.headers["Content-Range"] or "")
    if match is None or int(match[1]) != here:
        raise ConnectionError(
            f"asked for bytes from {here}, got {response.headers['Content-Range']}"
        )
    return int(match[2])


def _version(response: http.client.HTTPResponse) -> str:
    """Return the strong validator that If-Range accepts, or nothing."""
    etag = response.headers["ETag"] or ""
    return etag if etag and not etag.startswith("W/") else response.headers["Last-Modified"] or ""


def _version_file(part: Path) -> Path:
    return part.with_name(part.name + ".version")


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0
