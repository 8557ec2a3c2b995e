r"""How files, addresses, times and runs are named, and how names are sorted, shown and stored.

A file's name may be any bytes. What is no valid UTF-8 in it is shown and stored with escapes, the
same in text, JSON, CSV and Parquet: the byte FC becomes the six characters `\udcfc`.
"""

from __future__ import annotations

import os
import re
from datetime import UTC, datetime
from pathlib import PurePath

_SECRET = re.compile(
    r"(?i)([?&;][^=&\s'\"]*(?:sig|token|key|secret|passw|credential|auth)[^=&\s'\"]*=)[^&\s'\"]+"
)
_FORMULA = tuple("=+-@\t\r\n\uff1d\uff0b\uff0d\uff20")  # the last four: the wide forms of the first
_USER = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*://)[^/\s'\"?#]*@")


def natural_key(path: str | os.PathLike[str]) -> tuple[object, ...]:
    """Return a sorting key by which numbers in names count as numbers: 1, 2, 10.

    Folders are compared before what lies in them; leading zeros decide last.
    """
    return tuple(_pieces(part) for part in PurePath(path).parts), os.fspath(path)


def _pieces(name: str) -> list[object]:
    pieces: list[object] = list(re.split("([0-9]+)", name))
    for place in range(1, len(pieces), 2):  # text and numbers take turns
        digits = str(pieces[place]).lstrip("0")
        pieces[place] = (len(digits), digits)
    return pieces


def as_text(name: str) -> str:
    r"""Return a name as valid Unicode; bytes of it that are no UTF-8 are written `\udcfc`."""
    return name.encode(errors="backslashreplace").decode()


def as_line(name: str) -> str:
    r"""Return a name for a terminal: control characters, such as line ends, are written `\n`."""
    shown = (c if c.isprintable() else c.encode("unicode_escape").decode() for c in as_text(name))
    return "".join(shown)


def counted(number: int, what: str) -> str:
    """Return a number and what it is of: `1 picture`, `2,000 pictures`."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def as_cell(text: str) -> str:
    """Return a text for a CSV: one that a spreadsheet would take for a formula begins with `'`."""
    return f"'{text}" if text.startswith(_FORMULA) else text


def without_secrets(text: str) -> str:
    """Return a text in which addresses carry no password, key, token or signature."""
    return _SECRET.sub(r"\1***", _USER.sub(r"\1***@", text))


def is_address(path: str | os.PathLike[str]) -> bool:
    """Return whether a path is an address, as `s3://bucket/a`: `Path` makes one of two slashes."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", os.fspath(path)) is not None


def working_folder() -> str | None:
    """Return the folder that relative paths start from; None: it has been deleted."""
    try:
        return os.getcwd()  # noqa: PTH109 - a text
    except FileNotFoundError:
        return None


def timestamp(at: datetime | None = None) -> str:
    """Return a time in UTC, now where none is given, by ISO 8601 to the millisecond."""
    at = datetime.now(UTC) if at is None else at
    return at.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def new_run() -> str:
    """Return an identifier for one run of an inspection: its start in UTC, and a random part."""
    return f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{os.urandom(3).hex()}"
