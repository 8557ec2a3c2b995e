"""Unpack a zip from anywhere: names, kinds and sizes of its members are checked before."""

from __future__ import annotations

import errno
import lzma
import shutil
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from magtiles_seg.dataset.layouts import name_key
from magtiles_seg.errors import DataError
from magtiles_seg.files import free_bytes, lfs_pointer
from magtiles_seg.names import counted

MAX_MEMBERS = 200_000
MAX_UNPACKED_BYTES = 16 << 30
MAX_RATIO = 100
"""How many times its archive a data set may grow to; pictures are compressed already."""

_RATIO_FREE_BYTES = 64 << 20
_COPY_BYTES = 1 << 20
_MAX_DEPTH = 32
_MAX_NAME_BYTES = 255
_MAX_PATH_BYTES = 1024
_ENCRYPTED_FLAGS = 0x1 | 0x40 | 0x2000
_METHODS = frozenset(
    {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA}
)
UNREADABLE_ZIP = (
    zipfile.BadZipFile,
    NotImplementedError,  # a newer kind of zip
    ValueError,  # undecodable names, offsets before the file
    EOFError,
    OverflowError,
    RuntimeError,
    struct.error,
    zlib.error,
    lzma.LZMAError,
)
"""All that zipfile and its decompressors raise on hostile input, beside OSError."""


def unpack(archive: Path, directory: Path) -> None:
    """Unpack a zip into a directory, after every member's name, kind and size has been checked.

    Args:
        archive: The zip file.
        directory: Where to; made if missing. When an error is raised, what was written stays there.

    Raises:
        DataError: No zip file, an unsafe or oversized one (nothing is written then), damaged
            members, or no room on the disk; names all.
    """
    try:
        with zipfile.ZipFile(archive) as opened:
            members = [info for info in opened.infolist() if not _is_folder(info)]
            _check_sizes(archive, members, directory)
            _raise(archive, "is not safe to unpack", _unsafe(members))
            _raise(archive, "is damaged", _extract(opened, members, directory))
    except DataError:
        raise
    except (*UNREADABLE_ZIP, OSError) as error:
        raise DataError(_no_zip(archive, error)) from error


def _no_zip(archive: Path, error: Exception) -> str:
    try:
        with archive.open("rb") as file:
            head = file.read(64)
    except OSError as unreadable:
        return f"{archive} cannot be read: {unreadable}"
    if head.startswith(b"PK"):
        return f"{archive} is no complete zip file: {error}; delete it and fetch it again"
    if said := lfs_pointer(head, "archive"):
        return f"{archive} {said}"
    page = head.lstrip().lower().startswith((b"<!doc", b"<html"))
    kind = "a web page" if page else repr(head[:16])
    return f"{archive} is no zip file: it starts as {kind}; expected a zip archive of the data set"


def _check_sizes(archive: Path, members: list[zipfile.ZipInfo], directory: Path) -> None:
    """Refuse bombs by what the directory declares; `zipfile` never unpacks more than that."""
    if len(members) > MAX_MEMBERS:
        raise DataError(f"{archive} holds {len(members)} files; expected at most {MAX_MEMBERS}")
    packed_bytes = archive.stat().st_size
    bound = min(MAX_UNPACKED_BYTES, max(_RATIO_FREE_BYTES, MAX_RATIO * packed_bytes))
    total = sum(info.file_size for info in members)
    if total > bound:
        raise DataError(
            f"{archive} would unpack to {total} bytes; expected at most {bound} from an archive of "
            f"{packed_bytes} bytes: it looks like a zip bomb"
        )
    free = free_bytes(directory)
    if total > free:
        raise DataError(
            f"{archive} unpacks to {total} bytes, but the disk of {directory} has {free} left; "
            "make room, or choose another data_load.directory"
        )


def _is_folder(info: zipfile.ZipInfo) -> bool:
    return info.orig_filename.endswith(("/", "\\"))


def _path_of(info: zipfile.ZipInfo) -> PurePosixPath:
    """Return a member's path; some old Windows programs separate folders by backslashes."""
    return PurePosixPath(info.orig_filename.replace("\\", "/"))


def _unsafe(members: list[zipfile.ZipInfo]) -> list[str]:
    """Return one line for each member that must not be written."""
    problems = []
    seen: set[str] = set()
    folders = {name_key(str(parent)) for info in members for parent in _path_of(info).parents}
    for info in members:
        path = _path_of(info)
        key = name_key(str(path))
        reason = next(_reasons(info, path), "")
        if not reason and key in seen:
            reason = "twice in the archive, but for case or Unicode form"
        if not reason and key in folders:
            reason = "a file and a folder at once"
        if reason:
            problems.append(f"{info.orig_filename[:300]!r}: {reason}")
        seen.add(key)
    return problems


def _reasons(info: zipfile.ZipInfo, path: PurePosixPath) -> Iterator[str]:
    """Yield why a member must not be written, the gravest reason first."""
    lengths = [len(part.encode(errors="surrogatepass")) for part in path.parts]
    if path.is_absolute() or ".." in path.parts:
        yield "path leads out of the directory"
    if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG):
        yield "a link or special file"
    if not path.parts:
        yield "no name"
    if ":" in str(path):
        yield "a colon in its name, which on Windows names a drive or stream; rename it"
    if any(not letter.isprintable() for letter in str(path)):
        yield "a control or unprintable character in its name; rename it"
    if max(lengths, default=0) > _MAX_NAME_BYTES or sum(lengths) + len(lengths) > _MAX_PATH_BYTES:
        yield f"its name is too long: {max(lengths)} bytes, its path {sum(lengths)}; expected at " \
              f"most {_MAX_NAME_BYTES} and {_MAX_PATH_BYTES}"  # fmt: skip
    if len(path.parts) > _MAX_DEPTH:
        yield f"{len(path.parts)} folders deep; expected at most {_MAX_DEPTH}"
    if info.flag_bits & _ENCRYPTED_FLAGS:
        yield "encrypted; pack it again without a password"
    if info.compress_type not in _METHODS:
        yield f"compressed by the method {info.compress_type}, which is not read; pack it again"


def _extract(opened: zipfile.ZipFile, members: list[zipfile.ZipInfo], directory: Path) -> list[str]:
    """Write every member; return one line for each that is damaged."""
    problems = []
    for info in members:
        target = directory.joinpath(*_path_of(info).parts)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with opened.open(info) as source, target.open("wb") as file:
                shutil.copyfileobj(source, file, _COPY_BYTES)
        except UNREADABLE_ZIP as error:
            problems.append(f"{info.filename}: {error or type(error).__name__}")
        except OSError as error:
            if error.errno in (None, errno.EINVAL):  # bzip2's data, or an offset before the file
                problems.append(f"{info.filename}: {error}")
                continue
            raise DataError(f"cannot write {target}: {error.strerror or error}") from error
    return problems


def _raise(archive: Path, what: str, problems: list[str]) -> None:
    if problems:
        files = counted(len(problems), "file")
        raise DataError(f"{archive} {what}, {files}:\n  " + "\n  ".join(problems))
