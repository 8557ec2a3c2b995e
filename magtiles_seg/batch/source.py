"""What an archive holds, and its pictures' bytes: local files, or anything that fsspec opens.

| SOURCE | pictures |
|---|---|
| a folder | the picture files in it and below; linked folders, too |
| `shots/**/*.png`, `s3://bucket/shots/*.png` | those that match the glob |
| `s3://bucket/shots/`, any fsspec URL | the picture files under the prefix |
| `http://host/shots/` | the picture files that its index pages lead to |
| `pictures.txt` | one path or URL a line, see `lists` |
| `tile.png`, `s3://bucket/tile.png`, `http://host/tile.png?size=full` | the one |

Names come one after another, never all at once: an object store is asked for a page at a time.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from magtiles_seg.batch.lists import local_path, read_list
from magtiles_seg.batch.stores import is_url, list_url, patiently, read_url
from magtiles_seg.errors import DataError, ImageError
from magtiles_seg.inputs import (
    Survey,
    check_word,
    expand_home,
    find_glob,
    is_glob,
    is_picture_name,
    walk,
)

MAX_FILE_BYTES = 512 * 2**20
"""Local files of more are refused unread: no picture of the allowed size is as large."""

_MOUNT_GONE = {errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN, errno.EHOSTDOWN}


def resolve(source: str) -> str:
    """Return a source so that it means the same from any working directory.

    Raises:
        DataError: It is empty, or no valid URL.
    """
    check_word(source)
    try:
        urlsplit(source)
    except ValueError as error:
        if is_url(source):
            raise DataError(f"{source} is no valid URL: {error}") from error
    source = local_path(source)
    return source if is_url(source) else os.path.abspath(expand_home(source))  # noqa: PTH100 (keeps a glob)


def list_names(source: str, *, patience_s: float, survey: Survey | None = None) -> Iterator[str]:
    """Yield the name of every picture of a source, in no order, perhaps one twice.

    A folder that cannot be listed is yielded, too: its row says so.

    Args:
        source: As in this module's table, from `resolve`.
        patience_s: How long an outage of an object store is waited out.
        survey: Told what is left out.

    Raises:
        DataError: There is no such source, or a list file is none.
        BackendUnavailableError: fsspec, or its part for the protocol, is not installed.
    """
    survey = survey or Survey()
    if is_url(source):
        return list_url(source, patience_s, survey)
    path = Path(source)
    if path.is_dir():
        return _and_unlisted(walk(source, survey), survey)
    if path.is_file():
        return iter([source]) if is_picture_name(source) else read_list(path)
    if is_glob(source):
        return _and_unlisted(find_glob(source, survey), survey)
    raise DataError(
        f"there is no source {source}: expected a folder, a glob, a list file, or a URL such as "
        "s3://bucket/prefix"
    )


def _and_unlisted(names: Iterator[str], survey: Survey) -> Iterator[str]:
    yield from names
    yield from survey.unlisted


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
            return read_url(name, self._patience_s)
        where = str(self._root or name)
        data: bytes = patiently(lambda: self._read_local(name), where, self._patience_s)
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


def _open_without_waiting(path: str, flags: int) -> int:
    """Open a file; a pipe that nobody writes to would block for ever."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
