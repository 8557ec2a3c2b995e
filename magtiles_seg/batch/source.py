"""What an archive holds, and its pictures' bytes: local files, or anything that fsspec opens.

| SOURCE | pictures |
|---|---|
| a folder | the picture files in it and below |
| `shots/**/*.png`, `s3://bucket/shots/*.png` | those that match the glob |
| `s3://bucket/shots/`, any fsspec URL | the picture files under the prefix |
| `pictures.txt` | one path or URL a line, paths relative to the list's folder |
| `tile.png` | the one |

Names come one after another, never all at once: an object store is asked for a page at a time.
"""

from __future__ import annotations

import errno
import glob
import os
import re
import stat
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any

from magtiles_seg.batch.retrying import persist
from magtiles_seg.errors import BackendUnavailableError, DataError, ImageError
from magtiles_seg.inputs import SUFFIXES

MAX_FILE_BYTES = 512 * 2**20
"""Local files of more are refused unread: no picture of the allowed size is as large."""

_MOUNT_GONE = {errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN, errno.EHOSTDOWN}
_BAD_CREDENTIALS = {
    "ExpiredToken", "ExpiredTokenException", "InvalidAccessKeyId", "InvalidToken",
    "RequestTimeTooSkewed", "SignatureDoesNotMatch", "TokenRefreshRequired",
}  # fmt: skip


def is_url(name: str) -> bool:
    """Return whether a name is for fsspec rather than a local path."""
    return "://" in name


def resolve(source: str) -> str:
    """Return a source so that it means the same from any working directory."""
    return source if is_url(source) else os.path.abspath(source)  # noqa: PTH100 (keeps a glob)


def list_names(source: str, *, patience_s: float) -> Iterator[str]:
    """Yield the name of every picture of a source, in no order, perhaps one twice.

    Args:
        source: As in this module's table, from `resolve`.
        patience_s: How long an outage of an object store is waited out.

    Raises:
        DataError: There is no such source, or a line of a list is a relative URL or a folder.
        BackendUnavailableError: fsspec, or its part for the protocol, is not installed.
    """
    if is_url(source):
        return _list_url(source, patience_s)
    path = Path(source)
    if path.is_dir():
        return _walk(source)
    if path.is_file():
        return iter([source]) if _is_picture(source) else _read_list(path)
    if glob.has_magic(source):
        found = glob.iglob(source, recursive=True)  # noqa: PTH207 (Path.glob wants a root)
        return (name for name in found if _is_picture(name) and os.path.isfile(name))  # noqa: PTH113
    raise DataError(
        f"there is no source {source}: expected a folder, a glob, a list file, or a URL such as "
        "s3://bucket/prefix"
    )


def _is_picture(name: str) -> bool:
    return PurePosixPath(name).suffix.lower() in SUFFIXES


def _walk(folder: str) -> Iterator[str]:
    """Yield the pictures below a folder; memory grows with the depth, not with the number."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                yield from _walk(entry.path)
            elif _is_picture(entry.name) and entry.is_file():
                yield entry.path


def _read_list(path: Path) -> Iterator[str]:
    with path.open(encoding="utf-8", errors="surrogateescape") as lines:
        for line in lines:
            name = line.strip()
            if "\0" in name:
                raise DataError(
                    f"{path} is no list of pictures: expected one path or URL a line, got binary "
                    f"data; pictures end in {', '.join(sorted(SUFFIXES))}"
                )
            if name:
                yield name if is_url(name) else os.path.normpath(path.parent / name)


def _list_url(source: str, patience_s: float) -> Iterator[str]:
    prefix = re.split(r"[*?\[]", source, maxsplit=1)[0]
    pattern = None
    if prefix != source:
        from fsspec.utils import glob_translate

        pattern = re.compile(glob_translate(source))
        prefix = prefix.rpartition("/")[0]
    for name in _under_prefix(prefix, patience_s):
        if _is_picture(name) and (pattern is None or pattern.match(name)):
            yield name


def _under_prefix(prefix: str, patience_s: float) -> Iterator[str]:
    protocol = prefix.partition("://")[0]
    system = file_system(protocol)
    if protocol in ("s3", "s3a"):
        return _s3_pages(system, protocol, prefix, patience_s)
    return (
        system.unstrip_protocol(f"{folder.rstrip('/')}/{file}")
        for folder, _, files in system.walk(system._strip_protocol(prefix))
        for file in files
    )


def _s3_pages(system: Any, protocol: str, prefix: str, patience_s: float) -> Iterator[str]:  # noqa: ANN401
    """Yield the objects under a prefix; s3fs itself would gather all of them first."""
    bucket, _, key = prefix.partition("://")[2].partition("/")
    folder = f"{key.rstrip('/')}/" if key else ""
    more: dict[str, str] = {}
    while True:
        page = _persist(
            lambda more=more: system.call_s3(  # type: ignore[misc]  # a lambda's default
                "list_objects_v2", Bucket=bucket, Prefix=folder, **more
            ),
            f"{protocol}://{bucket}",
            patience_s,
        )
        for item in page.get("Contents", ()):
            yield f"{protocol}://{bucket}/{item['Key']}"
        if not page.get("IsTruncated"):
            return
        more = {"ContinuationToken": page["NextContinuationToken"]}


@cache
def file_system(protocol: str) -> Any:  # noqa: ANN401  (fsspec carries no types)
    """Return fsspec's file system of a protocol, which keeps no listings.

    Raises:
        BackendUnavailableError: fsspec, or its part for the protocol, is not installed.
        DataError: The protocol is unknown.
    """
    try:
        import fsspec

        return fsspec.filesystem(protocol, use_listings_cache=False)
    except ImportError as error:
        raise BackendUnavailableError(
            f"{protocol}:// needs a package that is not installed ({error}): "
            "pip install 'magtiles-seg[batch]' brings s3://; others have their own fsspec package"
        ) from error
    except ValueError as error:
        raise DataError(
            f"unknown protocol {protocol}://: expected one that fsspec knows, such as s3://"
        ) from error


class Reader:
    """Reads pictures' bytes; waits out a store or a mount that is gone for a while."""

    def __init__(self, root: str, *, patience_s: float) -> None:
        """Make a reader.

        Args:
            root: The source: where it is a folder that vanishes, the mount is gone, not a picture.
            patience_s: How long an outage is waited out.
        """
        self._root = Path(root) if not is_url(root) and Path(root).is_dir() else None
        self._patience_s = patience_s

    def read(self, name: str) -> bytes:
        """Return a picture's bytes.

        Raises:
            ImageError: This one cannot be read: it is gone, forbidden, or no regular file.
            DataError: The store is gone, and did not come back in time.
        """
        if is_url(name):
            return self._read_url(name)
        where = str(self._root or name)
        data: bytes = _persist(lambda: self._read_local(name), where, self._patience_s)
        return data

    def _read_local(self, name: str) -> bytes:
        try:
            with open(name, "rb", opener=_open_without_waiting) as file:
                kind = os.fstat(file.fileno())
                if not stat.S_ISREG(kind.st_mode):
                    raise ImageError(f"'{name}' is no regular file; expected a picture file")
                if kind.st_size > MAX_FILE_BYTES:
                    raise ImageError(
                        f"'{name}' has {kind.st_size:,} bytes; expected at most {MAX_FILE_BYTES:,}",
                        reason="too_large",
                    )
                data: bytes = file.read()
                return data
        except (OSError, ValueError) as error:
            if getattr(error, "errno", None) in _MOUNT_GONE or self._is_root_gone():
                raise ConnectionError(f"the disk of {self._root or name} is gone") from error
            reason = getattr(error, "strerror", None) or error
            raise ImageError(f"'{name}' cannot be read: {reason}") from error

    def _is_root_gone(self) -> bool:
        """Return whether the source's folder is missing or empty, as an unmounted one is."""
        if self._root is None:
            return False
        try:
            return next(self._root.iterdir(), None) is None
        except OSError:
            return True

    def _read_url(self, name: str) -> bytes:
        protocol, _, path = name.partition("://")
        system = file_system(protocol)
        try:
            data: bytes = _persist(lambda: system.cat_file(path), name, self._patience_s)
        except (FileNotFoundError, PermissionError, IsADirectoryError) as error:
            raise ImageError(f"'{name}' cannot be read: {error}") from error
        return data


def _persist(action: Callable[[], Any], name: str, patience_s: float) -> Any:  # noqa: ANN401
    try:
        return persist(action, patience_s=patience_s, is_final=_is_final)
    except (ImageError, FileNotFoundError, PermissionError, IsADirectoryError):
        raise
    except Exception as error:
        raise DataError(
            f"{name} did not answer within {patience_s:g} s: {error or type(error).__name__}; "
            "start again when it does: what is done stays done"
        ) from error


def _is_final(error: Exception) -> bool:
    """Return whether an error speaks of one picture rather than of the store."""
    if isinstance(error, PermissionError):
        answer = getattr(error.__cause__, "response", None) or {}
        return answer.get("Error", {}).get("Code") not in _BAD_CREDENTIALS
    return isinstance(error, ImageError | FileNotFoundError | IsADirectoryError)


def _open_without_waiting(path: str, flags: int) -> int:
    """Open a file; a pipe that nobody writes to would block for ever."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
