"""Unpack a zip archive from anywhere without trusting it."""

from __future__ import annotations

import re
import shutil
import stat
import zipfile
import zlib
from pathlib import Path, PurePosixPath

from magtiles_seg.errors import DataError

MAX_MEMBERS = 200_000
MAX_UNPACKED_BYTES = 16 << 30
MAX_RATIO = 100
"""How many times its archive a data set may grow to; pictures are compressed already."""

_RATIO_FREE_BYTES = 64 << 20
_COPY_BYTES = 1 << 20
_ENCRYPTED_FLAG = 1


def unpack(archive: Path, directory: Path) -> None:
    """Unpack a zip into a directory, after every member's name, kind and size has been checked.

    Args:
        archive: The zip file.
        directory: Where to; made if missing. When an error is raised, what was written stays there.

    Raises:
        DataError: No zip file, an unsafe or oversized one (nothing is written then), or damaged
            members; names all.
    """
    try:
        with zipfile.ZipFile(archive) as opened:
            members = [info for info in opened.infolist() if not info.is_dir()]
            _check_sizes(archive, members)
            _raise(archive, "is not safe to unpack", _unsafe(members))
            _raise(archive, "is damaged", _extract(opened, members, directory))
    except (zipfile.BadZipFile, NotImplementedError, UnicodeDecodeError) as error:
        raise DataError(
            f"{archive} is no complete zip file: {error}; delete it and fetch it again"
        ) from error


def _check_sizes(archive: Path, members: list[zipfile.ZipInfo]) -> None:
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


def _unsafe(members: list[zipfile.ZipInfo]) -> list[str]:
    """Return one line for each member that must not be written."""
    problems = []
    seen: set[str] = set()
    for info in members:
        kind = stat.S_IFMT(info.external_attr >> 16)
        path = PurePosixPath(info.orig_filename)
        if path.is_absolute() or ".." in path.parts or re.search(r"[\\:\x00]", info.orig_filename):
            problems.append(f"{info.orig_filename!r}: path leads out of the directory")
        elif kind not in (0, stat.S_IFREG):
            problems.append(f"{info.filename!r}: a link or special file")
        elif info.flag_bits & _ENCRYPTED_FLAG:
            problems.append(f"{info.filename!r}: encrypted")
        elif str(path).casefold() in seen:
            problems.append(f"{info.filename!r}: twice in the archive")
        seen.add(str(path).casefold())
    return problems


def _extract(opened: zipfile.ZipFile, members: list[zipfile.ZipInfo], directory: Path) -> list[str]:
    """Write every member; return one line for each that is damaged."""
    problems = []
    for info in members:
        target = directory.joinpath(*PurePosixPath(info.filename).parts)
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            with opened.open(info) as source, target.open("wb") as file:
                shutil.copyfileobj(source, file, _COPY_BYTES)
        except (zipfile.BadZipFile, zlib.error, EOFError) as error:
            problems.append(f"{info.filename}: {error}")
    return problems


def _raise(archive: Path, what: str, problems: list[str]) -> None:
    if problems:
        raise DataError(f"{archive} {what}, {len(problems)} files:\n  " + "\n  ".join(problems))
