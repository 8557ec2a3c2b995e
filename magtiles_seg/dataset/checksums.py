"""Checksums: which files a data set consists of, and the SHA-256 of each, as `sha256sum` writes it.

An archive may hold more, be packed again or come from somewhere else: what is used is the same
files with the same bytes, or an error that names those that are not.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

from magtiles_seg.dataset.groups import FILE_NAME as GROUPS
from magtiles_seg.dataset.layouts import PICTURE_SUFFIXES, REVIEWED
from magtiles_seg.errors import ConfigError, DataError
from magtiles_seg.files import read_text, sha256_of

_LINE = re.compile(r"(?P<sha256>[0-9a-f]{64}) [ *](?P<path>[^\\]+)")
_SHOWN = 20

Checksums = Mapping[str, str]
"""{path below the data set's root, with `/`: SHA-256 of the file, in small letters}."""


def read_checksums(path: Path) -> Checksums:
    """Read a list as `sha256sum` writes it: a line a file, its SHA-256, two spaces, its path.

    Raises:
        FileNotFoundError: There is no such file.
        ConfigError: It is no text, a line has another form, a path leads out of the data set, or
            stands there twice.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"no list of files {str(path)!r}, which data_load.checksums names; "
            "write it with sha256sum, or set data_load.checksums=null"
        )
    listed: dict[str, str] = {}
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        match = _LINE.fullmatch(line)
        if match is None or not _is_inside(match["path"]):
            raise ConfigError(
                f"{path}, line {number}: expected a SHA-256, two spaces and a path inside the data "
                f"set, as sha256sum writes them; got {line[:120]!r}"
            )
        if match["path"] in listed:
            raise ConfigError(f"{path}, line {number}: {match['path']} stands there twice")
        listed[match["path"]] = match["sha256"]
    if not listed:
        raise ConfigError(f"{path} lists no file; set data_load.checksums=null to take all")
    return listed


def leave_out(directory: Path, root: Path, listed: Checksums) -> None:
    """Remove what is not listed from a directory that was unpacked a moment ago.

    Args:
        directory: All below it is looked at.
        root: The data set in it.
        listed: The files that stay.
    """
    kept = {root / name for name in listed}
    for path in sorted(directory.rglob("*"), reverse=True):  # a folder after what is in it
        if path.is_dir():
            if not any(path.iterdir()):
                path.rmdir()
        elif path not in kept:
            path.unlink()


def check_files(root: Path, listed: Checksums, *, source: str) -> None:
    """Make sure that a data set holds the listed files, byte by byte, and no picture beside.

    Args:
        root: The data set's root.
        listed: Its files.
        source: What it was brought from, for the error.

    Raises:
        DataError: A file is missing, different, or not listed; names them.
    """
    there = {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}
    if not there & listed.keys():
        raise DataError(
            f"{source} holds none of the {len(listed)} files that data_load.checksums lists: the "
            "list is of another data set; set data_load.checksums=null"
        )
    problems = [f"{name}: missing" for name in sorted(listed.keys() - there)]
    for name in sorted(there & listed.keys()):
        actual = sha256_of(root / name)
        if actual != listed[name]:
            problems.append(f"{name}: has the SHA-256 {actual}; expected {listed[name]}")
    beside = sorted(name for name in there - listed.keys() if _is_used(name))
    problems += [f"{name}: not listed; remove it" for name in beside]
    if problems:
        raise DataError(_differs(source, problems))


def _differs(source: str, problems: Sequence[str]) -> str:
    more = [f"and {len(problems) - _SHOWN} more"] if len(problems) > _SHOWN else []
    lines = "\n  ".join([*problems[:_SHOWN], *more])
    count = f"{len(problems)} problem{'s' if len(problems) > 1 else ''}"
    return (
        f"{source} is not the data set that data_load.checksums lists, {count}:\n"
        f"  {lines}\nit was damaged or has changed: fetch it again, or set data_load.checksums to "
        "a list of the present files, or to null"
    )


def _is_used(name: str) -> bool:
    """Tell whether a file would be taken for a picture, a mask or the list of groups."""
    path = PurePosixPath(name)
    if path.parts[0] == REVIEWED:  # each part has checksums of its own
        return False
    hidden = any(part.startswith(".") for part in path.parts)
    return not hidden and (path.suffix.lower() in PICTURE_SUFFIXES or path.name == GROUPS)


def _is_inside(path: str) -> bool:
    parts = PurePosixPath(path).parts
    return not path.startswith("/") and ".." not in parts and path == str(PurePosixPath(*parts))
