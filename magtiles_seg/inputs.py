"""Which pictures the words of a command line mean, and where their results go."""

from __future__ import annotations

import glob
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from magtiles_seg.errors import ConfigError, DataError

SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})
"""What is taken for a picture in a folder; a file that is named outright may end in anything."""


def find_pictures(words: Sequence[str]) -> dict[Path, Path]:
    """Return every picture that files, folders and globs name, in order, each once.

    Args:
        words: A folder means the pictures in it and below; a word that is no path and holds
            `*`, `?` or `[` is a glob, in which `**` crosses folders.

    Returns:
        Each picture with its place below the folder that named it, as in `{a/b/c.png: b/c.png}`.

    Raises:
        DataError: A folder or glob holds no picture.
    """
    pictures: dict[Path, Path] = {}
    for word in words:
        path = Path(word)
        if path.is_dir():
            found = {item: item.relative_to(path) for item in sorted(path.rglob("*")) if _is(item)}
        elif glob.has_magic(word) and not path.exists():
            matches = sorted(Path(item) for item in glob.glob(word, recursive=True))  # noqa: PTH207
            found = {item: Path(item.name) for item in matches if _is(item)}
        else:
            found = {path: Path(path.name)}
        if not found:
            raise DataError(f"no picture in {word}: expected files ending in {_wanted()}")
        for item, place in found.items():
            pictures.setdefault(item, place)
    return pictures


def output_names(pictures: dict[Path, Path]) -> dict[Path, tuple[Path, str]]:
    """Return the folder (below the output folder) and the stem for each picture's results.

    Two pictures of one folder that differ by their suffix alone keep it: `a.png_mask.png`.

    Raises:
        ConfigError: Two pictures would be written to the same files.
    """
    stems = Counter(place.with_suffix("") for place in pictures.values())
    names: dict[Path, tuple[Path, str]] = {}
    taken: dict[tuple[Path, str], Path] = {}
    for picture, place in pictures.items():
        unique = stems[place.with_suffix("")] == 1
        name = (place.parent, place.stem if unique else place.name)
        if name in taken:
            raise ConfigError(
                f"{taken[name]} and {picture} would be written to the same files; "
                "segment their common folder, or each with an --out of its own"
            )
        taken[name] = picture
        names[picture] = name
    return names


def _is(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and path.is_file()


def _wanted() -> str:
    return ", ".join(sorted(SUFFIXES))
