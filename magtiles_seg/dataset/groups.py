"""groups.csv: which pictures show the same part, from whatever spreadsheet it was saved by.

What a spreadsheet or a hand may have changed in a name (spaces, quotes around it, case, Unicode
form, the kind of a dash) tears no group apart: such names are one group. Two that are equal as
numbers alone (1, 01, 1.0), or but for separators and leading zeros (tile1, tile_01), are refused:
nobody can know whether they were one.
"""

from __future__ import annotations

import codecs
import csv
import io
import re
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path

from magtiles_seg.dataset.layouts import PICTURE_SUFFIXES, name_key
from magtiles_seg.errors import DataError

FILE_NAME = "groups.csv"
_COLUMNS = ("image", "group")
_NUMBER = re.compile(r"[+-]?\d{1,40}([.,]\d{1,40})?(e[+-]?\d{1,3})?")
_THOUSANDS = re.compile(r"[+-]?\d{1,3}([,.' ]\d{3})+")
_WORDS = re.compile(r"[^\W\d_]+|\d+|[^\w\s.-]")
_DASHES = dict.fromkeys(map(ord, "\u2010\u2011\u2012\u2013\u2014\u2015\u2212"), "-")
_QUOTES = " '\"`\u2018\u2019\u201c\u201d\u201e"
_NO_VALUES = frozenset(
    {"#n/a", "#name?", "#ref!", "#value!", "#div/0!", "#null!", "#num!", "#error!", "nan"}
)
"""What a spreadsheet or a script writes where it has no value."""
_MARKS = (  # the longer ones first: that of UTF-32 starts as that of UTF-16
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
    (codecs.BOM_UTF8, "utf-8-sig"),
)


@dataclass(frozen=True)
class Groups:
    """What groups.csv says.

    Attributes:
        of: Number of the group by the key of the picture's stem.
        problems: One line for each thing that is wrong.
        notes: One line for each thing that a reader should know of.
        names: Name of each group by its number, as it is first spelled; empty without a file.
    """

    of: dict[str, int] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Row:
    line: int
    image: str
    group: str


def read_groups(root: Path, pictures: Mapping[str, Path]) -> Groups:
    """Read the groups of a data set; without a file every picture is a group of its own.

    Args:
        root: Where groups.csv lies, if there is one.
        pictures: The pictures by the keys of their stems.
    """
    path = root / FILE_NAME
    if not path.exists() and not path.is_symlink():
        alone = {key: index for index, key in enumerate(sorted(pictures))}
        return Groups(alone, problems=list(_misnamed(root)))
    return read_groups_file(path, pictures)


def read_groups_file(path: Path, pictures: Mapping[str, Path]) -> Groups:
    """Read the groups of some pictures from a file of columns image,group.

    Args:
        path: The file, which is there.
        pictures: The pictures by the keys of their stems.
    """
    try:
        rows = _rows(_text(path))
    except (DataError, OSError) as error:
        return Groups(problems=[f"{path}: {error}"])
    return _resolve(path, rows, pictures)


def _resolve(path: Path, rows: list[_Row], pictures: Mapping[str, Path]) -> Groups:
    """Match the rows with the pictures and number the groups."""
    files = {name_key(file.name): key for key, file in pictures.items()}
    chosen: dict[str, _Row] = {}
    unknown: list[str] = []
    problems = list(_alike(rows))
    for row in rows:
        key = _key_of(row.image, files, pictures)
        if key is None:
            unknown.append(f"line {row.line}: no picture {row.image!r}")
        elif _same_group(chosen.setdefault(key, row).group) != _same_group(row.group):
            problems.append(
                f"line {row.line}: {row.image!r} is of the group {row.group!r}, by line "
                f"{chosen[key].line} of {chosen[key].group!r}; expected one group"
            )
    lacking = [f"no line for the picture {pictures[key].name}" for key in sorted(pictures)
               if key not in chosen]  # fmt: skip
    if lacking and unknown:  # a name was probably changed, by a spreadsheet that strips zeros, say
        problems += unknown
    spellings: dict[str, str] = {}
    for row in sorted(rows, key=lambda row: row.group):
        spellings.setdefault(_same_group(row.group), row.group)
    number_of = {name: index for index, name in enumerate(spellings)}
    return Groups(
        {key: number_of[_same_group(row.group)] for key, row in chosen.items()},
        [f"{path}: {text}" for text in (*problems, *lacking)],
        [f"{path}: {text}" for text in unknown],
        tuple(spellings.values()),
    )


def _text(path: Path) -> str:
    """Decode a file by its mark, or as UTF-8.

    Raises:
        DataError: It is in another encoding, or no text.
    """
    if path.exists() and not path.is_file():  # reading a pipe or a device might never end
        raise DataError("no regular file; expected text in UTF-8")
    content = path.read_bytes()
    if content.startswith((b"PK\x03\x04", b"\xd0\xcf\x11\xe0")):
        raise DataError("a spreadsheet's own format; expected text: save it as 'CSV UTF-8'")
    encoding = next((name for mark, name in _MARKS if content.startswith(mark)), "utf-8")
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"line {line} is not {encoding.upper().removesuffix('-SIG')} (byte "
            f"0x{content[error.start]:02x}); expected text in UTF-8: save it as 'CSV UTF-8'"
        ) from error
    if "\0" in text:
        raise DataError("it holds NUL characters; expected text in UTF-8: save it as 'CSV UTF-8'")
    return text


def _rows(text: str) -> list[_Row]:
    """Split the text by the separator its header shows: comma, semicolon or tab.

    Raises:
        DataError: The header or rows are not as expected; names all rows.
    """
    lines = text.splitlines(keepends=True)
    skipped = 0
    while lines and (not lines[0].strip() or re.fullmatch(r"sep=.\s*", lines[0])):
        lines, skipped = lines[1:], skipped + 1
    header = lines[0] if lines else ""
    for separator in (",", ";", "\t"):
        names = [name.strip().strip("\"'").casefold() for name in header.split(separator)]
        if set(_COLUMNS) <= set(names):
            break
    else:
        raise DataError(f"expected the columns image,group; got {header.strip()!r}")
    if any(names.count(column) > 1 for column in _COLUMNS):
        raise DataError(f"expected the columns image,group once; got {header.strip()!r}")
    where = (names.index("image"), names.index("group"), len(names))
    reader = csv.reader(io.StringIO("".join(lines[1:]), newline=""), delimiter=separator,
                        strict=True)  # fmt: skip
    rows, problems = [], []
    try:
        for cells in reader:
            line = reader.line_num + skipped + 1
            problem = _problem_of(cells, where)
            if problem:
                problems.append(f"line {line}: {problem}")
            elif any(cell.strip() for cell in cells):
                rows.append(_Row(line, cells[where[0]].strip(), cells[where[1]].strip()))
    except csv.Error as error:
        problems.append(f"line {reader.line_num + skipped + 1}: {error}")
    if problems:
        raise DataError("; ".join(problems))
    return rows


def _problem_of(cells: list[str], where: tuple[int, int, int]) -> str:
    """Return what is wrong with a row, or nothing; one without any text is no row."""
    image, group, width = where
    if not any(cell.strip() for cell in cells):
        return ""
    if any(cell.strip() for cell in cells[width:]):
        return f"{len(cells)} cells; expected {width}: put a name with a separator in quotes"
    if len(cells) <= image or not cells[image].strip():
        return "no image"
    name = cells[image].strip()
    if len(cells) <= group or _same_group(cells[group]) in ("", *_NO_VALUES):
        return f"no group for {name!r}"
    if len(f"{name}{cells[group].strip()}".splitlines()) > 1:
        return f"a line break in a cell, {name!r}; is a quotation mark missing?"
    return ""


def _key_of(name: str, files: Mapping[str, str], pictures: Mapping[str, Path]) -> str | None:
    """Return the key of the picture that a cell names: with or without suffix and folders."""
    folded = name_key(re.split(r"[\\/]", name)[-1])
    stem, dot, suffix = folded.rpartition(".")
    if folded in files:
        return files[folded]
    if folded in pictures:
        return folded
    return stem if f"{dot}{suffix}" in PICTURE_SUFFIXES and stem in pictures else None


def _same_group(name: str) -> str:
    """Return what two spellings of one group share.

    No format characters, quotes around, or case; single spaces, one kind of dash. A zero-width
    space or a no-break space cannot be seen in a spreadsheet, and a dash or a quote is replaced
    while it is typed.
    """
    seen = "".join(
        c for c in unicodedata.normalize("NFKC", name) if unicodedata.category(c) != "Cf"
    )
    return name_key(" ".join(seen.translate(_DASHES).split()).strip(_QUOTES))


def _alike(rows: list[_Row]) -> Iterator[str]:
    """Yield a line for each group whose name is another's, written in another way."""
    first: dict[object, _Row] = {}
    told: set[str] = set()
    for row in rows:
        name = _same_group(row.group)
        for reading, why in _readings(name):
            other = first.setdefault(reading, row)
            if _same_group(other.group) != name and name not in told:
                told.add(name)
                yield (
                    f"line {row.line}: the group {row.group!r} and {other.group!r} of line "
                    f"{other.line} {why}; spell groups that are one alike, and others apart"
                )


def _readings(name: str) -> Iterator[tuple[object, str]]:
    """Yield what a group's name may stand for, and what two names that share it are."""
    number = "are one number, as a spreadsheet rewrites it"
    if _THOUSANDS.fullmatch(name):
        yield Decimal(re.sub("[,.' ]", "", name)), number
    if _NUMBER.fullmatch(name):
        yield Decimal(name.replace(",", ".")), number
    elif words := _WORDS.findall(name):
        plain = tuple(word.lstrip("0") if word.isdecimal() else word for word in words)
        yield plain, "differ by separators or leading zeros alone"


def _misnamed(root: Path) -> Iterator[str]:
    """Yield a line for each file that was probably meant to be groups.csv."""
    for folder in (root, root / "images", root / "masks"):
        for path in sorted(folder.iterdir()) if folder.is_dir() else []:
            stem = path.name.casefold().split(".")[0]
            meant = stem in ("group", "groups") or (folder == root and stem.startswith("groups"))
            if not meant or not path.suffix or path.suffix.lower() in PICTURE_SUFFIXES:
                continue
            if path.is_file():
                yield f"{path}: not read; expected {root / FILE_NAME}: save it there as CSV"
