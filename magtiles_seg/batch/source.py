"""What an archive holds: its pictures listed once and frozen, and their bytes."""

from __future__ import annotations

import errno
import heapq
import json
import os
import shutil
import stat
from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np

from magtiles_seg.batch.stores import is_url, list_url, patiently, read_url
from magtiles_seg.errors import DataError, ImageError
from magtiles_seg.inputs import (
    SUFFIXES,
    Survey,
    check_word,
    expand_home,
    find_glob,
    is_glob,
    is_picture_name,
    walk,
)
from magtiles_seg.names import as_line, without_secrets

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
    raise _missing(source)


def check_there(source: str) -> None:
    """Check that a source of this machine is there; a URL is not asked.

    Raises:
        DataError: It is missing, or a folder that cannot be listed.
    """
    if is_url(source) or is_glob(source):
        return
    path = Path(source)
    if not path.exists():
        raise _missing(source)
    if path.is_dir():
        try:
            os.scandir(path).close()
        except OSError as error:
            raise DataError(
                f"{source} cannot be listed: {error.strerror}; change its permissions"
            ) from error


def _missing(source: str) -> DataError:
    return DataError(
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
        except ImageError:
            raise
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


def read_list(path: Path) -> Iterator[str]:
    """Yield what each line names: an absolute path, or a URL.

    Raises:
        DataError: It is no list of pictures, or its paths are relative to another folder.
    """
    with path.open("rb") as file:
        wide = file.read(2) in (BOM_UTF16_LE, BOM_UTF16_BE)
    encoding, errors = ("utf-16", "surrogatepass") if wide else ("utf-8-sig", "surrogateescape")
    checked = False
    with path.open(encoding=encoding, errors=errors, newline="\n") as lines:
        for line in lines:
            name = _name(line.rstrip("\n"), path)
            if name is None:
                continue
            if not checked and not is_url(name):
                checked = True
                _check_folder(name, path)
            yield name


def _name(line: str, path: Path) -> str | None:
    """Return what a line names, or None: nothing."""
    if "\0" in line:
        raise DataError(
            f"{path} is no list of pictures: expected one path or URL per line, in UTF-8, or in "
            f"UTF-16 with a byte order mark, got binary data; pictures end in "
            f"{', '.join(sorted(SUFFIXES))}"
        )
    text = line.strip()
    bare = text.strip('"')
    if is_url(bare):
        return local_path(bare)
    meant = expand_home(bare.replace("\\", "/"))
    if not text or (text[0] == "#" and not os.path.lexists(path.parent / line)):
        return None
    if line != meant:
        for name in (line, text, bare):
            if os.path.lexists(path.parent / name):
                return os.path.normpath(path.parent / name)
    return os.path.normpath(path.parent / meant)


def local_path(url: str) -> str:
    """Return a URL as it is, but the path that a `file://` URL means."""
    if not url.startswith("file://"):
        return url
    from urllib.parse import unquote_to_bytes, urlsplit

    return os.fsdecode(unquote_to_bytes(os.fsencode(urlsplit(url).path)))


def _check_folder(name: str, path: Path) -> None:
    """Look at the first path: a list that was written for another folder would find nothing."""
    here = os.path.normpath(Path.cwd() / os.path.relpath(name, path.parent))
    if not os.path.lexists(name) and os.path.lexists(here):
        raise DataError(
            f"the paths in {path} are not relative to its folder: there is {as_line(here)}, but no "
            f"{as_line(name)}; move the list there, or write absolute paths"
        )


_NAMES, _OFFSETS = "names.jsonl", "offsets.npy"
_RUN = 500_000  # names that are sorted in memory at once: some 100 MB


class Listing:
    """A frozen listing. Cheap to send to another process: it holds a path."""

    def __init__(self, folder: Path) -> None:
        """Open what `freeze` wrote.

        Raises:
            FileNotFoundError: There is none.
            DataError: It is damaged.
        """
        self.folder = folder
        try:
            offsets = np.load(folder / _OFFSETS, mmap_mode="r")
            self.pictures, end = int(offsets[0]), int(offsets[-1])
        except (ValueError, EOFError, IndexError) as error:
            raise DataError(f"{folder / _OFFSETS} is damaged: {error}") from error
        if (size := (folder / _NAMES).stat().st_size) != end:
            raise DataError(f"{folder / _NAMES} is damaged: {size} bytes; expected {end}")
        self.parts = len(offsets) - 2
        """How many parts there are; they are numbered from 0."""

    def names(self, part: int) -> list[str]:
        """Return the pictures of one part, in order."""
        start, end = np.load(self.folder / _OFFSETS, mmap_mode="r")[part + 1 : part + 3]
        with (self.folder / _NAMES).open("rb") as file:
            file.seek(int(start))
            return [json.loads(line) for line in file.read(int(end - start)).splitlines()]


def freeze(
    names: Iterable[str],
    folder: Path,
    *,
    part_rows: int,
    progress: Callable[[int], None] | None = None,
    run: int = _RUN,
) -> Listing:
    """Write a listing, whole or not at all, in memory that does not grow with it.

    Args:
        names: In any order; one that comes twice is kept once.
        folder: Replaced.
        part_rows: Pictures of a part; the last may have fewer.
        progress: Told how many names have come.
        run: Names that are sorted in memory at once.
    """
    fresh = fresh_of(folder)
    shutil.rmtree(fresh, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    fresh.mkdir(mode=0o700)
    secrets = _Secrets()
    names = map(secrets.watch, names)
    runs = list(_sorted_runs(names, fresh, run, progress))
    with ExitStack() as stack:
        files = [stack.enter_context(path.open("rb")) for path in runs]
        offsets = _write_names(heapq.merge(*files), fresh / _NAMES, part_rows)
    for path in runs:
        path.unlink()
    np.save(fresh / _OFFSETS, np.array(offsets, dtype=np.int64))
    if not secrets.seen:
        fresh.chmod(stat.S_IMODE(folder.parent.stat().st_mode))
    shutil.rmtree(folder, ignore_errors=True)
    fresh.replace(folder)
    return Listing(folder)


def fresh_of(folder: Path) -> Path:
    """Return the folder in which `freeze` writes until it is done."""
    return folder.with_name(folder.name + ".new")


def is_ours(path: Path) -> bool:
    """Return whether `freeze` writes a file of this name into its folder."""
    return path.name in (_NAMES, _OFFSETS) or path.match("run-*")


class _Secrets:
    """Watches names go by: a listing with passwords or tokens in it stays its owner's alone."""

    def __init__(self) -> None:
        self.seen = False

    def watch(self, name: str) -> str:
        self.seen = self.seen or ("://" in name and without_secrets(name) != name)
        return name


def _sorted_runs(
    names: Iterable[str], folder: Path, run: int, progress: Callable[[int], None] | None
) -> Iterator[Path]:
    """Write sorted runs of names, a file each, and yield the files."""
    lines = (f"{json.dumps(name)}\n".encode() for name in names)
    count = 0
    while chunk := sorted(islice(lines, run)):
        count += len(chunk)
        if progress:
            progress(count)
        path = folder / f"run-{count}"
        with path.open("wb") as file:
            file.writelines(chunk)
        yield path


def _write_names(lines: Iterable[bytes], path: Path, part_rows: int) -> list[int]:
    """Write sorted lines, each once; return their number, where each part begins, and the end."""
    begins: list[int] = []
    count = position = 0
    last = b""
    with path.open("wb") as file:
        for line in lines:
            if line == last:
                continue
            if count % part_rows == 0:
                begins.append(position)
            file.write(line)
            count, position, last = count + 1, position + len(line), line
    return [count, *begins, position]
