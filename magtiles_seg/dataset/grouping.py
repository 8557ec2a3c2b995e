"""Which pictures show the same tile, by their names or by a groups file."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from magtiles_seg.dataset.groups import read_groups_file
from magtiles_seg.dataset.layouts import name_key
from magtiles_seg.dataset.samples import Sample
from magtiles_seg.errors import ConfigError, DataError
from magtiles_seg.names import as_line, counted

_SHOWN = 3


@dataclass(frozen=True)
class Group:
    """One tile's pictures.

    Attributes:
        name: What the tile is called; unique among those of one grouping.
        pictures: Names of its pictures, in the order given.
    """

    name: str
    pictures: tuple[str, ...]


def group_pictures(
    names: Sequence[str], group_by: str, *, across_folders: bool = False
) -> tuple[Group, ...]:
    r"""Return the tiles that pictures show, in the order of their first pictures.

    Args:
        names: Paths or addresses of the pictures, each once.
        group_by: A file such as `groups.csv`, or a regular expression that is searched for in each
            name without its suffix. What its groups `(…)` hold names the tile: with
            `(\w+)_light\d` the pictures `p7_light1.png` and `p7_light2.png` are those of `p7`. A
            group that is called `group`, `(?P<group>…)`, names it alone. A
            pattern without a slash is searched for in the file's name, and tiles do not reach
            over folders; one with a slash in the whole path, folders parted by `/`.
        across_folders: Whether tiles reach over folders by any pattern.

    Raises:
        ConfigError: The pattern is invalid, or has no group.
        DataError: The file is at fault, or a picture is in no tile.
        FileNotFoundError: There is no such file.
    """
    path = Path(group_by)
    if group_by.lower().endswith(".csv") or path.is_file():
        keys = _by_file(names, path)
    else:
        keys = _by_pattern(names, _compiled(group_by), across_folders=across_folders)
    groups: dict[str, list[str]] = {}
    for name, key in zip(names, keys, strict=True):
        groups.setdefault(key, []).append(name)
    return tuple(Group(name, tuple(pictures)) for name, pictures in groups.items())


def regrouped(samples: Sequence[Sample], group_by: str) -> list[Sample]:
    """Return samples with other tiles; the folders of a data set are classes, and part no tile.

    Raises:
        ConfigError, DataError, FileNotFoundError: As of `group_pictures`.
    """
    names = [str(sample.image_path) for sample in samples]
    groups = group_pictures(names, group_by, across_folders=True)
    number_of = {name: index for index, group in enumerate(groups) for name in group.pictures}
    return [replace(sample, group=number_of[str(sample.image_path)]) for sample in samples]


def _compiled(pattern: str) -> re.Pattern[str]:
    try:
        compiled = re.compile(pattern)
    except (re.error, RecursionError) as error:
        raise ConfigError(
            f"pictures cannot be grouped by {pattern!r}: no file, and no valid pattern: {error}; "
            r"give a groups.csv, or a regular expression such as '(\w+)_light\d'"
        ) from error
    if not compiled.groups:
        raise ConfigError(
            f"pictures cannot be grouped by {pattern!r}: no file, and a pattern without a group; "
            r"put what names the tile in brackets, as in '(\w+)_light\d'"
        )
    return compiled


def _by_pattern(
    names: Sequence[str], pattern: re.Pattern[str], *, across_folders: bool
) -> list[str]:
    """Return the tile of each picture: what the pattern's groups hold, with the folder if needed.

    Raises:
        DataError: The pattern does not fit a name.
    """
    in_path = "/" in pattern.pattern
    places = [_place(name) for name in names]
    found = [
        pattern.search(f"{folder}/{stem}" if in_path and folder else stem)
        for folder, stem in places
    ]
    parts = [() if match is None else _parts_of(match) for match in found]
    texts = ["_".join(part) for part in parts]
    strangers = [name for name, text in zip(names, texts, strict=True) if not text]
    if strangers:
        raise DataError(
            f"the pattern {pattern.pattern!r} tells no tile for {_some(strangers)}; expected it "
            "to fit the name of every picture, with text in a group: change it, or leave those out"
        )
    first: dict[str, int] = {}
    for at, text in enumerate(texts):
        other = first.setdefault(text, at)
        if parts[other] != parts[at]:
            raise DataError(
                f"the pattern {pattern.pattern!r} calls two tiles {as_line(text)!r}: that of "
                f"{as_line(names[other])} and that of {as_line(names[at])}; name the tile by one "
                "group around it all"
            )
    folders = {folder for folder, _ in places}
    if in_path or across_folders or len(folders) == 1:
        return texts
    return [f"{folder}/{text}" for (folder, _), text in zip(places, texts, strict=True)]


def _parts_of(match: re.Match[str]) -> tuple[str, ...]:
    named = match.groupdict()
    found = (named["group"],) if "group" in named else match.groups()
    return tuple(filter(None, found))


def _place(name: str) -> tuple[str, str]:
    """Return the folder of a picture, `/` between, and its name without suffix and query."""
    path = name.replace("\\", "/")
    if "://" in path:
        path = re.split("[?#]", path, maxsplit=1)[0]
    folder, _, file = path.rpartition("/")
    stem, dot, _ = file.rpartition(".")
    return folder, stem if dot and stem else file


def _by_file(names: Sequence[str], path: Path) -> list[str]:
    """Return the tile of each picture by a groups file, which knows no folders.

    Raises:
        DataError: The file is at fault, lacks a picture, or two pictures share a name.
        FileNotFoundError: There is no such file.
    """
    if not path.exists():
        raise FileNotFoundError(f"no groups file {path}; expected columns image,group")
    keys = [name_key(_place(name)[1]) for name in names]
    files: dict[str, Path] = {}
    for name, key in zip(names, keys, strict=True):
        if key in files:
            raise DataError(
                f"{as_line(str(files[key]))} and {as_line(name)} share a name, and {path} tells "
                "pictures by their names alone: rename one, or group by a pattern"
            )
        files[key] = Path(name)
    groups = read_groups_file(path, files)
    if groups.problems:
        raise DataError("; ".join(groups.problems[:_SHOWN]) + _more(len(groups.problems)))
    return [groups.names[groups.of[key]] for key in keys]


def _some(names: Iterable[str]) -> str:
    shown = list(names)
    return f"{counted(len(shown), 'picture')}, such as {', '.join(map(as_line, shown[:_SHOWN]))}"


def _more(count: int) -> str:
    return f"; and {count - _SHOWN} more" if count > _SHOWN else ""
