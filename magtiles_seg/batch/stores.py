"""Archives behind an address: listed and read through fsspec, outages waited out."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from ftplib import error_perm, error_temp
from glob import has_magic
from html import unescape
from re import compile as compile_pattern
from re import finditer
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit

from magtiles_seg.errors import BackendUnavailableError, DataError, ImageError
from magtiles_seg.inputs import (
    HIDDEN,
    MASKS,
    RESULTS,
    Survey,
    is_hidden,
    is_mask_name,
    is_picture_name,
)
from magtiles_seg.marking import HEAD_BYTES, RESULT_NAMES, is_marked
from magtiles_seg.names import as_text, without_secrets
from magtiles_seg.progress import note

Value = TypeVar("Value")

_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.2, 20.0
_SHORT_S, _TOLD_EVERY_S = 2.0, 60.0
_next_told_s = 0.0


def persist(
    action: Callable[[], Value],
    *,
    patience_s: float,
    is_final: Callable[[Exception], bool],
    sleep: Callable[[float], None] = time.sleep,
) -> Value:
    """Return what an action gives, trying again while it fails.

    The waits double from 0.2 s to 20 s; each is shortened by up to a half at random, so that a
    thousand workers do not knock at once. What is waited for is said on stderr after 2 s, by one
    line a minute and process.

    Args:
        action: Tried until it succeeds.
        patience_s: Waits of so many seconds in all, then the last error is raised.
        is_final: Whether an error will not go away by waiting: it is raised at once.
        sleep: Waits.
    """
    wait_s, waited_s = _FIRST_WAIT_S, 0.0
    while True:
        try:
            return action()
        except Exception as error:
            if is_final(error) or waited_s >= patience_s:
                raise
            if waited_s >= _SHORT_S:
                _tell(error, patience_s)
        pause_s = min(wait_s * random.uniform(0.5, 1), patience_s - waited_s)
        sleep(pause_s)
        waited_s += pause_s
        wait_s = min(2 * wait_s, _LONGEST_WAIT_S)


def _tell(error: Exception, patience_s: float) -> None:
    """Say what is waited for, unless a wait was told of within the last minute."""
    global _next_told_s
    if time.monotonic() < _next_told_s:
        return
    _next_told_s = time.monotonic() + _TOLD_EVERY_S
    what = str(error) or type(error).__name__
    note(f"waiting until it passes, {patience_s:g} s at most (--patience-s): {what}")


_WEB, _S3 = ("http", "https"), ("s3", "s3a")
_BAD_CREDENTIALS = {
    "ExpiredToken", "ExpiredTokenException", "InvalidAccessKeyId", "InvalidToken",
    "RequestTimeTooSkewed", "SignatureDoesNotMatch", "TokenRefreshRequired",
}  # fmt: skip
_OVERLOADED = {408, 425, 429, 502, 503, 504}
"""HTTP answers that speak of the server: they are waited out."""
_FAULT, _FAULTS_OF_ONE = 500, 3
"""So many tries for a picture at which the server itself fails."""
_CONNECT_S, _SILENT_S = 20.0, 60.0
_DEEPEST = 64
"""Folders below each other; a server whose links go in circles has more."""

_OURS = (DataError, BackendUnavailableError)
_OF_ONE_PICTURE = (
    FileNotFoundError, IsADirectoryError, NotADirectoryError, ValueError, error_perm,
)  # fmt: skip
_WHOLE = compile_pattern(r"([A-Za-z0-9:/?#\[\]@!$&'()*+,;=._~-]|%[0-9A-Fa-f]{2})+")
_mine = threading.local()


def is_url(name: str) -> bool:
    """Return whether a name is for fsspec rather than a local path."""
    return "://" in name


def open_store(url: str) -> tuple[Any, str]:
    """Return fsspec's file system for a URL, which keeps no listings, and the path in it.

    Raises:
        BackendUnavailableError: fsspec, or its part for the protocol, is not installed.
        DataError: The protocol is unknown.
    """
    protocol, _, rest = url.partition("://")
    try:
        import fsspec

        kind = fsspec.get_filesystem_class(protocol)
        if protocol in _WEB:
            whole = _WHOLE.fullmatch(url) is not None  # sent as it is: it may be signed
            return kind(use_listings_cache=False, client_kwargs=_client(), encoded=whole), url
        if protocol in _S3:  # any character may stand in a key
            return kind(use_listings_cache=False), rest
        options = kind._get_kwargs_from_urls(url)
        if "host" not in options:
            return kind(use_listings_cache=False, **options), kind._strip_protocol(url)
        return _connection(kind, protocol, options), f"/{rest.partition('/')[2]}"
    except ImportError as error:
        raise BackendUnavailableError(
            f"{protocol}:// needs a package that is not installed ({error}): pip install "
            "'magtiles-seg[batch]' brings s3://, http:// and ftp://; others have their own fsspec "
            "package"
        ) from error
    except ValueError as error:
        if "not known" not in str(error):
            raise
        raise DataError(
            f"unknown protocol {protocol}://: expected one that fsspec knows, such as s3://"
        ) from error


def _client() -> dict[str, Any]:
    """Return what aiohttp is told: the machine's proxies, and patience for a slow answer only."""
    from aiohttp import ClientTimeout

    limits = ClientTimeout(total=None, sock_connect=_CONNECT_S, sock_read=_SILENT_S)
    return {"trust_env": True, "timeout": limits}


def _connection(kind: Any, protocol: str, options: dict[str, Any]) -> Any:  # noqa: ANN401
    """Return this thread's own connection: such a file system can do one thing at a time."""
    key = (protocol, *sorted(options.items()))
    if getattr(_mine, "key", None) != key:
        _mine.system, _mine.key = kind(use_listings_cache=False, **options), key
    return _mine.system


def read_url(url: str, patience_s: float) -> bytes:
    """Return an object's bytes.

    Raises:
        ImageError: This one cannot be read: it is gone or forbidden, or the server fails on it.
        DataError: The store is gone, and did not come back in time.
    """

    def fetch() -> bytes:
        system, path = open_store(url)
        content: bytes = system.cat_file(path)
        return content

    try:
        data: bytes = patiently(fetch, url, patience_s)
    except _OURS:
        raise
    except Exception as error:
        reason = without_secrets(_reason(error))
        raise ImageError(f"'{without_secrets(url)}' cannot be read: {reason}") from error
    return data


def patiently(action: Callable[[], Any], name: str, patience_s: float) -> Any:  # noqa: ANN401
    """Do something with a store, waiting out its outages.

    Raises:
        Exception: As it came, where it speaks of one picture; an `ImageError` of the action, too.
        DataError: The store is gone, and did not come back in time.
        BackendUnavailableError: A package is missing.
    """
    try:
        return persist(action, patience_s=patience_s, is_final=_Judge())
    except _OURS:
        raise
    except Exception as error:
        if _is_of_one_picture(error):
            raise
        raise DataError(
            f"{without_secrets(name)} cannot be read after {patience_s:g} s of waiting: "
            f"{without_secrets(_reason(error))}; start again when it can: what is done stays done"
        ) from error


class _Judge:
    """Says whether an error will not go away by waiting."""

    def __init__(self) -> None:
        self._faults = 0

    def __call__(self, error: Exception) -> bool:
        if _status(error) == _FAULT:
            self._faults += 1
            return self._faults >= _FAULTS_OF_ONE
        final = isinstance(error, _OURS) or _is_of_one_picture(error)
        if not final:
            _mine.__dict__.clear()  # a broken connection is not used again
        return final


def _is_of_one_picture(error: Exception) -> bool:
    status = _status(error)
    if status is not None:
        return status not in _OVERLOADED
    if isinstance(error, PermissionError):
        answer = getattr(error.__cause__, "response", None) or {}
        return answer.get("Error", {}).get("Code") not in _BAD_CREDENTIALS
    if type(error).__name__ == "ParamValidationError":  # botocore's, of a name that no bucket has
        return True
    return isinstance(error, _OF_ONE_PICTURE) and not isinstance(error.__cause__, error_temp)


def _status(error: BaseException) -> int | None:
    """Return the status of an HTTP answer that is an error, such as 404; 0: it leads in circles."""
    status = getattr(error, "status", None)
    return status if isinstance(status, int) else None


def _reason(error: BaseException) -> str:
    status = _status(error)
    if status is not None:
        said = getattr(error, "message", "") or type(error).__name__
        return f"HTTP {status} {said}" if status else f"HTTP: {said}"
    if isinstance(error, FileNotFoundError) and not error.strerror:
        return f"no such file ({error.__cause__})" if error.__cause__ else "no such file"
    return str(error) or type(error).__name__


# ---- what lies under a URL


def list_url(source: str, patience_s: float, survey: Survey) -> Iterator[str]:
    """Yield the pictures of a URL: one object, what matches a glob, or a prefix or folder.

    Args:
        source: `s3://bucket/shots/`, `http://host/shots/` with an index page, `…/*.png`, `…/a.png`.
        patience_s: How long an outage is waited out.
        survey: Told what is left out.

    Raises:
        DataError: The store is gone, it refuses, or there is no such folder.
    """
    protocol = source.partition("://")[0]
    if _is_one(source, protocol, patience_s):
        return iter([source])
    if not _has_magic(source, protocol):
        return _under(source, None, patience_s, survey)
    from fsspec.utils import glob_translate

    _, path = open_store(source)
    signs = "*" if protocol in _WEB else "*?["
    first = min(source.find(sign) for sign in signs if sign in source)
    folder = source[:first].rpartition("/")[0]
    if "://" not in folder:
        raise DataError(f"{source}: a glob is of files and folders; expected a bucket or host")
    return _under(
        folder,
        compile_pattern(glob_translate(path)),
        patience_s,
        survey,
    )


def _is_one(source: str, protocol: str, patience_s: float) -> bool:
    """Return whether a URL means a single object."""
    if protocol in _WEB:
        named = "*" not in source and is_picture_name(_path(source))
        return named or bool(urlsplit(source).query)
    if not is_picture_name(source):
        return False
    system, path = open_store(source)
    return bool(_ask(lambda: system.isfile(path), source, patience_s))


def _ask(action: Callable[[], Value], url: str, patience_s: float) -> Value:
    """Return what a store says of its contents.

    Raises:
        DataError: It is gone, or refuses.
    """
    try:
        answer: Value = patiently(action, url, patience_s)
    except _OURS:
        raise
    except Exception as error:
        raise DataError(
            f"{without_secrets(url)} cannot be listed: {without_secrets(_reason(error))}; "
            "expected a folder, an index page, or a picture's own URL"
        ) from error
    return answer


def _path(url: str) -> str:
    if url.startswith(_WEB):
        return unquote(urlsplit(url).path)
    return url.partition("://")[2]


def _has_magic(source: str, protocol: str) -> bool:
    """Return whether a URL is a glob; in one of the web `?` begins a query."""
    return "*" in source if protocol in _WEB else has_magic(_path(source))


def _under(prefix: str, pattern: Any, patience_s: float, survey: Survey) -> Iterator[str]:  # noqa: ANN401
    """Yield the pictures under a prefix whose path in the store fits a pattern."""
    protocol = prefix.partition("://")[0]
    found = _s3_pages if protocol in _S3 else _crawl
    root, start = len(_path(prefix).rstrip("/")), len(prefix.rstrip("/"))
    asked: dict[str, bool] = {}
    for url, path in found(prefix, patience_s):
        if not is_picture_name(_path(url)) or (pattern and not pattern.match(path)):
            continue
        if any(is_hidden(part) for part in _path(url)[root:].split("/")):
            survey.leave_out(HIDDEN, without_secrets(as_text(url)))
        elif is_mask_name(_path(url)) or _is_beside_images(url, start, asked, patience_s):
            survey.leave_out(MASKS, without_secrets(as_text(url)))
        elif RESULT_NAMES.search(_path(url)) and _is_result(url, patience_s):
            survey.leave_out(RESULTS, without_secrets(as_text(url)))
        else:
            yield url


def _is_beside_images(url: str, start: int, asked: dict[str, bool], patience_s: float) -> bool:
    """Return whether a file lies in a folder `masks` beside `images`: a labelled data set's.

    Args:
        url: Of the file.
        start: Where the path below the folder that was named begins in it.
        asked: Which folders `images` there are, as far as known; is added to.
        patience_s: As of `list_url`.
    """
    for found in finditer("/masks/", url[start:]):
        images = f"{url[: start + found.start()]}/images"
        if images not in asked:
            system, path = open_store(images)
            asked[images] = bool(_ask(lambda: system.isdir(path), images, patience_s))  # noqa: B023 - called at once
        if asked[images]:
            return True
    return False


def _is_result(url: str, patience_s: float) -> bool:
    system, path = open_store(url)
    try:
        head = patiently(lambda: system.cat_file(path, start=0, end=HEAD_BYTES), url, patience_s)
    except _OURS:
        raise
    except Exception:  # gone, or forbidden: its row will say so
        return False
    return is_marked(head)


def _crawl(prefix: str, patience_s: float) -> Iterator[tuple[str, str]]:
    """Yield URL and path of each file in a folder and below; a server's index pages are folders."""
    _, top = open_store(prefix)
    waiting, seen = [(top, 0)], {top}
    while waiting:
        folder, depth = waiting.pop()
        for entry in _entries(folder, prefix, patience_s, is_top=depth == 0):
            name = unescape(entry["name"]) if prefix.startswith(_WEB) else entry["name"]
            if entry["type"] != "directory":
                yield _url(prefix, name), name
            elif name not in seen and depth < _DEEPEST and "/../" not in name:
                seen.add(name)
                waiting.append((name, depth + 1))


def _url(prefix: str, path: str) -> str:
    """Return the URL of a path in the store of a prefix."""
    protocol, _, rest = prefix.partition("://")
    if protocol in _WEB:
        return path
    if _has_host(prefix):
        return f"{protocol}://{rest.partition('/')[0]}{path}"
    return str(open_store(prefix)[0].unstrip_protocol(path))


def _has_host(url: str) -> bool:
    import fsspec

    kind = fsspec.get_filesystem_class(url.partition("://")[0])
    return "host" in kind._get_kwargs_from_urls(url)


def _entries(folder: str, prefix: str, patience_s: float, *, is_top: bool) -> list[dict[str, Any]]:
    def look() -> list[dict[str, Any]]:
        try:
            found: list[dict[str, Any]] = open_store(prefix)[0].ls(folder, detail=True)
        except FileNotFoundError as error:
            if is_top or not _is_of_one_picture(error):
                raise
            return []  # it went away meanwhile
        return found

    entries = _ask(look, folder, patience_s)
    return [entry for entry in entries if entry["name"] != folder or entry["type"] != "directory"]


def _s3_pages(prefix: str, patience_s: float) -> Iterator[tuple[str, str]]:
    """Yield the objects under a prefix; s3fs itself would gather all of them first."""
    protocol, _, rest = prefix.partition("://")
    system, _ = open_store(prefix)
    bucket, _, key = rest.partition("/")
    folder = f"{key.rstrip('/')}/" if key else ""
    more: dict[str, str] = {}
    while True:
        page: dict[str, Any] = _ask(
            lambda more=more: system.call_s3(  # type: ignore[misc]  # a lambda's default
                "list_objects_v2", Bucket=bucket, Prefix=folder, **more
            ),
            prefix,
            patience_s,
        )
        if not page.keys() & {"IsTruncated", "Name", "Contents"}:  # as of a page to log in at
            raise DataError(f"{prefix} cannot be listed: what answers there is no S3 service")
        for item in page.get("Contents", ()):
            yield f"{protocol}://{bucket}/{item['Key']}", f"{bucket}/{item['Key']}"
        if not page.get("IsTruncated"):
            return
        more = {"ContinuationToken": page["NextContinuationToken"]}
