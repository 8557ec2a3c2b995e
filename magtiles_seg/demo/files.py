"""The demo's files: a folder of its own, bounded in bytes, number and age, gone when it ends."""

from __future__ import annotations

import os
import re
import secrets
import shutil
import stat
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO
from urllib.parse import quote

from magtiles_seg.demo.visitors import Visitor

__all__ = ["Folder", "Full", "Limits"]

_ALIAS = "files"  # what clients call the directory

_NAME = re.compile(r"[^\w.()+ -]")
_NAME_BYTES = 120
_DIRECTORY_RESTS_S = 60  # an empty directory younger than this may be about to get its file


class Full(Exception):  # noqa: N818  (what the folder is)
    """There is no room for an upload, and nothing that may go."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What the folder may hold.

    Attributes:
        bytes: Of all files, uploads that are still arriving counted.
        files: Their number.
        visitor_bytes: Of one visitor's uploads.
        visitor_files: Their number.
        age_s: Older files go.
    """

    bytes: int = 256_000_000
    files: int = 4000
    visitor_bytes: int = 64_000_000
    visitor_files: int = 200
    age_s: float = 3600


@dataclass
class _Upload:
    owner: Visitor
    size: int
    session: str | None = None


class Folder:
    """Holds what visitors uploaded and what the demo drew; the oldest goes first.

    Attributes:
        path: The directory.
        limits: What it may hold.
        on_removal: Called with the paths that are gone.
    """

    def __init__(self, limits: Limits | None = None) -> None:
        """Make the directory, below `GRADIO_TEMP_DIR` or the system's place for such."""
        base = os.environ.get("GRADIO_TEMP_DIR") or None
        if base:
            Path(base).mkdir(parents=True, exist_ok=True)
        self.path = Path(tempfile.mkdtemp(prefix="magtiles-demo-", dir=base)).resolve()
        self.limits = limits or Limits()
        self.on_removal: Callable[[set[str]], object] = len
        self._uploads: dict[Path, _Upload] = {}  # in order of arrival
        self._kept: frozenset[Path] = frozenset()
        self._arriving = 0
        self._lock = threading.Lock()
        weakref.finalize(self, shutil.rmtree, self.path, ignore_errors=True)  # at exit, too

    def close(self) -> None:
        """Remove the directory with all that is in it; at exit again what was drawn since."""
        shutil.rmtree(self.path, ignore_errors=True)

    def keep_present(self) -> None:
        """Never remove the files that are there now: the page itself shows them."""
        self._kept = frozenset(path for path, _ in self._files())

    @contextmanager
    def arriving(self) -> Iterator[Callable[[int], None]]:
        """Count an upload's bytes while they arrive; yields what is told of each part.

        Raises:
            Full: From that function: there is no room for the part.
        """
        told = 0

        def tell(size: int) -> None:
            nonlocal told
            told += size
            with self._lock:
                self._arriving += size
                full = self._arriving > self.limits.bytes // 2
            if full:
                raise Full

        try:
            yield tell
        finally:
            with self._lock:
                self._arriving -= told

    def store(self, files: Iterable[tuple[str, IO[bytes]]], owner: Visitor) -> list[str]:
        """Keep uploaded files, and return names for them that nobody can guess."""
        stored = []
        for name, content in files:
            path = self.path / "uploads" / secrets.token_urlsafe(18) / safe_name(name)
            path.parent.mkdir(parents=True)
            with path.open("xb") as file:
                shutil.copyfileobj(content, file)
                size = file.tell()
            with self._lock:
                self._uploads[path] = _Upload(owner, size)
            stored.append(path)
        self._remove(self._beyond_share(owner, set(stored)))
        return [f"{_ALIAS}/{path.relative_to(self.path).as_posix()}" for path in stored]

    def take(self, name: str, visitor: Visitor, session: str) -> Path | None:
        """Return the upload of a name for a session's use: its visitor's, and no other session's.

        Args:
            name: As `store` gave it.
            visitor: Who asks.
            session: The first one that takes an upload has it.
        """
        path = self._real(name)
        with self._lock:
            upload = self._uploads.get(path) if path else None
            if upload is None or not visitor.is_same(upload.owner):
                return None
            if upload.session not in (None, session):
                return None
            upload.session = session
            return path

    def find(self, name: str, visitor: Visitor) -> Path | None:
        """Return a file that a visitor may read: drawn by the demo, or uploaded by itself."""
        path = self._real(name)
        if path is None:
            return None
        with self._lock:
            upload = self._uploads.get(path)
        if upload is None:
            return None if path.is_relative_to(self.path / "uploads") else path
        return path if visitor.is_same(upload.owner) else None

    def hidden(self, text: bytes) -> bytes:
        """Return a text with the clients' name for the directory in place of its path."""
        alias = _ALIAS.encode()
        for path in {str(self.path), quote(str(self.path))}:
            text = text.replace(path.encode(), alias)
        return text

    def _real(self, name: str) -> Path | None:
        """Return the file of a name, or None: no name leads out of the folder."""
        head, _, rest = name.partition("/")
        try:
            path = Path(os.path.realpath(self.path / rest))
        except (OSError, ValueError):
            return None
        straight = str(path) == f"{self.path}{os.sep}{rest}"
        return path if head == _ALIAS and straight and _is_file(path) else None

    def sweep(self) -> None:
        """Remove what is too old, and the oldest until the rest is within the limits."""
        files = sorted((entry.st_mtime, path, entry.st_size) for path, entry in self._files())
        room, number = self.limits.bytes - self._arriving, self.limits.files
        total, count = sum(size for _, _, size in files), len(files)
        latest = time.time() - self.limits.age_s
        gone = []
        for modified_s, path, size in files:
            if path in self._kept:
                continue
            if modified_s >= latest and total <= room and count <= number:
                break
            gone.append(path)
            total, count = total - size, count - 1
        self._remove(gone)
        self._remove_empty_directories()

    def size(self) -> int:
        """Return the bytes of all files."""
        return sum(entry.st_size for _, entry in self._files())

    def _files(self) -> Iterator[tuple[Path, os.stat_result]]:
        for folder, _, names in os.walk(self.path):
            for name in names:
                path = Path(folder, name)
                try:
                    yield path, path.lstat()
                except FileNotFoundError:
                    continue

    def _beyond_share(self, owner: Visitor, latest: set[Path]) -> list[Path]:
        """Return a visitor's oldest uploads, beyond what one visitor may have."""
        with self._lock:
            own = [
                (path, one.size)
                for path, one in self._uploads.items()
                if one.owner.token == owner.token
            ]
        total, count, gone = sum(size for _, size in own), len(own), []
        for path, size in own:
            within = total <= self.limits.visitor_bytes and count <= self.limits.visitor_files
            if within or path in latest:
                break
            gone.append(path)
            total, count = total - size, count - 1
        return gone

    def _remove(self, paths: list[Path]) -> None:
        for path in paths:
            path.unlink(missing_ok=True)
            with self._lock:
                self._uploads.pop(path, None)
        if paths:
            self.on_removal({str(path) for path in paths})

    def _remove_empty_directories(self) -> None:
        latest = time.time() - _DIRECTORY_RESTS_S
        for folder, _, names in os.walk(self.path, topdown=False):
            path = Path(folder)
            if names or path == self.path:
                continue
            try:
                if path.stat().st_mtime < latest:
                    path.rmdir()
            except OSError:
                continue  # not empty, or gone


def safe_name(name: str) -> str:
    """Return a name for an uploaded file that is a name everywhere: no folder, not hidden."""
    plain = _NAME.sub("_", re.split(r"[/\\]", name)[-1]).strip(" .") or "picture"
    stem, dot, suffix = plain.rpartition(".")
    stem, suffix = (stem, f".{suffix[:16]}") if dot and stem else (plain, "")
    room = _NAME_BYTES - len(suffix.encode())
    return stem.encode()[:room].decode(errors="ignore") + suffix


def _is_file(path: Path) -> bool:
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except (OSError, ValueError):
        return False
