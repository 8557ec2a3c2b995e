"""Files: found, written whole or not at all, their SHA-256, and pictures as PNG; one way each."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from magtiles_seg.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_CHUNK_BYTES = 1 << 20
_POLLED_S = 0.005
_OF_A_DISK = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC), errno.EFBIG, errno.EIO}


@contextmanager
def staged(path: str | os.PathLike[str], *, durable: bool = False) -> Iterator[Path]:
    """Give a path beside `path` to write to; it takes the place of `path` when the block ends well.

    Nobody ever sees half a file under the name, and an error leaves what stood there before.

    Args:
        path: Where the file is to stand; missing folders are made. The path to write to has the
            same suffix, so that a format can be chosen by it.
        durable: Whether the content is on the disk before the name is given, so that a power
            failure leaves the old file or the new one.

    Raises:
        OSError: The folder or the file cannot be written; the error names the file.
    """
    path = Path(path)
    if not path.name:  # `.` or `/`
        raise _unwritten(path, errno.EISDIR)
    part = path.with_name(f".{os.urandom(16).hex()}.part{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield part
        if durable:
            _flush_to_disk(part)
        part.replace(path)
    except OSError as error:
        ours = {str(part), str(path), *map(str, path.parents)}
        if error.filename in ours or (error.filename is None and error.errno in _OF_A_DISK):
            raise _unwritten(path, error.errno) from error
        raise  # the block's own, of another file or of a connection
    finally:
        with suppress(NotADirectoryError):  # the folder is a file
            part.unlink(missing_ok=True)


def _unwritten(path: Path, number: int | None) -> OSError:
    number = number or errno.EIO
    return OSError(number, f"cannot write: {os.strerror(number)}", str(path))


@contextmanager
def staged_folder(path: Path, *, last: str = "") -> Iterator[Path]:
    """Give a folder to fill; what is in it moves into `path` when the block ends well.

    An error leaves `path` empty, so that nobody takes a part for the whole.

    Args:
        path: An empty folder, or one that is not there yet.
        last: Name of the file that tells that all is there. Files come after folders anyway.

    Raises:
        OSError: The folder cannot be written; of a full disk the error names the folder.
    """
    path.mkdir(parents=True, exist_ok=True)
    part = path / f".{os.urandom(4).hex()}.part"
    part.mkdir()
    try:
        yield part
        for entry in sorted(part.iterdir(), key=lambda one: (one.is_file(), one.name == last)):
            entry.rename(path / entry.name)
    except OSError as error:
        if error.filename is None and error.errno in _OF_A_DISK:
            raise _unwritten(path, error.errno) from error
        raise
    finally:
        shutil.rmtree(part, ignore_errors=True)


def write(path: str | os.PathLike[str], content: bytes | str, *, durable: bool = False) -> None:
    """Write a file, whole or not at all.

    Args:
        path: Where; missing folders are made.
        content: A text is written as UTF-8, its line ends as they are. What UTF-8 does not hold, as
            a file name in another coding, is written as its escape.
        durable: As of `staged`.

    Raises:
        OSError: The folder or the file cannot be written; the error names the file.
    """
    data = content.encode(errors="backslashreplace") if isinstance(content, str) else content
    with staged(path, durable=durable) as part:
        part.write_bytes(data)


def write_json(path: str | os.PathLike[str], content: Any) -> None:  # noqa: ANN401 - any JSON value
    """Write a value as indented JSON, whole or not at all.

    Raises:
        OSError: The folder or the file cannot be written.
        ValueError: A number is not finite; JSON knows none such.
    """
    write(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


class Lock:
    """A lock file, which the system frees when the process ends, however it ends.

    It is removed when it is given back. A disk that knows no locks, as some network disks, holds
    nobody off.
    """

    def __init__(self, path: Path, *, taken: str = "") -> None:
        """Take the lock.

        Args:
            path: The lock file, in a folder that is there.
            taken: What to say when another holds it; empty: wait until it is free.

        Raises:
            ConfigError: Another holds it, and `taken` is given.
        """
        from filelock import FileLock, Timeout

        self._path = path
        self._lock = FileLock(path, mode=0o666, thread_local=False)
        try:
            self._lock.acquire(blocking=not taken, poll_interval=_POLLED_S)
        except Timeout:
            raise ConfigError(taken) from None
        except (OSError, NotImplementedError):
            return

    def release(self) -> None:
        """Give the lock back."""
        if self._lock.is_locked:
            with suppress(OSError):  # Windows removes no open file
                self._path.unlink()  # while it is held: who waits for it takes a new one
        self._lock.release()

    def __enter__(self) -> None:
        """Hold it for a block."""

    def __exit__(self, *_: object) -> None:
        """Give it back."""
        self.release()


def lfs_pointer(head: bytes, what: str) -> str:
    """Return what to say of a file that Git LFS has not fetched; empty: it begins as no pointer."""
    if not head.startswith(b"version https://git-lfs.github.com/spec/"):
        return ""
    return f"is a Git LFS pointer, not the {what}; fetch it: git lfs pull"


def read_text(path: Path) -> str:
    """Return the content of a text file in UTF-8, without the mark that Windows puts first.

    Raises:
        OSError: It cannot be read.
        ConfigError: It is no text in UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{path} is no text in UTF-8: {error.reason} at byte {error.start}; save it as UTF-8"
        ) from error


def walk(
    folder: str | os.PathLike[str],
    enter: Callable[[os.DirEntry[str]], bool],
    unlisted: dict[str, str],
) -> Iterator[os.DirEntry[str]]:
    """Yield what is in a folder and below: all but the folders that are entered.

    Each folder is visited once, links to folders after everything else: so links in circles do no
    harm, and a file goes by its own path where it has one. A link to a folder that `folder` itself
    lies in is not followed.

    Args:
        folder: Where to begin.
        enter: Whether a folder is entered.
        unlisted: Gets the folders that could not be listed, each with the reason.
    """
    root = os.fspath(folder)
    seen = {(status.st_dev, status.st_ino) for status in map(os.stat, Path(root).resolve().parents)}
    waiting, links = deque([root]), deque[str]()
    while waiting or links:
        here = waiting.pop() if waiting else links.popleft()
        try:
            status = os.stat(here)  # noqa: PTH116
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            with os.scandir(here) as entries:
                for entry in sorted(entries, key=lambda entry: entry.name):
                    if is_folder(entry) and enter(entry):
                        (links if entry.is_symlink() else waiting).append(entry.path)
                    else:
                        yield entry
        except OSError as error:
            unlisted[here] = error.strerror or str(error)


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Return whether it is a folder, or a link to one."""
    try:
        return entry.is_dir()
    except OSError:  # a link in a circle
        return False


def free_bytes(folder: Path) -> int:
    """Return how much the disk of a folder takes yet; the folder need not be there."""
    folder = folder.absolute()
    return shutil.disk_usage(next(p for p in (folder, *folder.parents) if p.exists())).free


def sha256_of(content: bytes | Path) -> str:
    """Return the SHA-256 of bytes, or of the file at a path, in 64 hexadecimal digits.

    Raises:
        OSError: The file cannot be read.
    """
    import hashlib

    if isinstance(content, bytes):
        return hashlib.sha256(content).hexdigest()
    digest = hashlib.sha256()
    with content.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def encode_png(picture: NDArray[np.uint8]) -> bytes:
    """Return a picture as the bytes of a PNG file.

    Args:
        picture: (H, W) grey or (H, W, 3) RGB, uint8.

    Raises:
        OSError: OpenCV cannot encode it.
    """
    import cv2

    bgr = cv2.cvtColor(picture, cv2.COLOR_RGB2BGR) if picture.ndim == 3 else picture
    done, encoded = cv2.imencode(".png", bgr)
    if not done:
        raise OSError(f"OpenCV could not encode a {picture.dtype} {picture.shape} array as PNG")
    return encoded.tobytes()


def _flush_to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
