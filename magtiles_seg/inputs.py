"""Which pictures the words of a command line mean, and where their results go.

| in a folder | |
|---|---|
| files that end as pictures do, in capitals too | taken, in natural order: 1, 2, 10 |
| linked folders | followed, each folder once |
| hidden files and folders (`.x`, `__MACOSX`) | left out |
| results that this package wrote | left out |
| masks: PNG files in `MT_<Class>/Imgs`, folders `masks` beside `images` | left out |
| pictures of a format that is not read, broken links that name no picture | left out |
| a folder that may not be read | an error that names it; the others go on |

What is left out is told in a line. A file that is named outright is always taken.
"""

from __future__ import annotations

import glob
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path, PurePath

from magtiles_seg import files
from magtiles_seg.errors import ConfigError, DataError
from magtiles_seg.marking import is_result
from magtiles_seg.names import as_line, natural_key

SUFFIXES = frozenset({".bmp", ".jfif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})
"""What is taken for a picture in a folder; a file that is named outright may end in anything."""

_NOT_READ = frozenset(
    {".avif", ".dng", ".exr", ".gif", ".heic", ".heif", ".jp2", ".jxl", ".pgm", ".pnm", ".ppm"}
)

RESULTS, HIDDEN = "results of an earlier run", "hidden files or folders"
FORMATS, BROKEN = "pictures of a format that is not read", "broken links"
MASKS, MASK_FOLDERS = "masks of labelled pictures", "folders of masks beside images"
"""Why something is left out."""
_ONE = {
    RESULTS: "result of an earlier run",
    HIDDEN: "hidden file or folder",
    FORMATS: "picture of a format that is not read",
    BROKEN: "broken link",
    MASKS: "mask of a labelled picture",
    MASK_FOLDERS: "folder of masks beside images",
}


_MASK = re.compile(r"(^|[/\\])MT_[^/\\]+[/\\]Imgs[/\\][^/\\]+\.png$", re.IGNORECASE)


def is_mask_name(path: str) -> bool:
    """Return whether the layout `magnetic-tile` has a mask at a path; its pictures are no PNG."""
    return _MASK.search(path) is not None


class Survey:
    """What a search came across beside pictures.

    Attributes:
        unlisted: Folders that could not be listed, each with the reason.
    """

    def __init__(self) -> None:
        """Start empty."""
        self.unlisted: dict[str, str] = {}
        self._count: Counter[str] = Counter()
        self._first: dict[str, str] = {}

    def leave_out(self, reason: str, path: str) -> None:
        """Note something that is left out; of each reason the number and the first are kept."""
        self._count[reason] += 1
        self._first.setdefault(reason, path)

    def lines(self) -> list[str]:
        """Return a line for each reason: how many were left out, and one of them."""
        return [
            f"left out {count} {_ONE[reason] if count == 1 else reason}, such as "
            f"{as_line(self._first[reason])}; name a file outright to take it"
            for reason, count in self._count.items()
        ]

    def problems(self) -> list[str]:
        """Return a line for each folder that could not be listed."""
        return [
            f"folder {as_line(folder)} cannot be listed: {reason}; what is in it is missing here"
            for folder, reason in self.unlisted.items()
        ]


def find_pictures(words: Sequence[str], survey: Survey | None = None) -> dict[Path, Path]:
    """Return every picture that files, folders and globs name, each once.

    The words' order is kept; what one folder or glob means is sorted naturally: 1, 2, 10.

    Args:
        words: A folder means the pictures in it and below; a word that is no path and holds
            `*`, `?` or `[` is a glob, in which `**` crosses folders.
        survey: Told what was left out, and which folders could not be listed.

    Returns:
        Each picture with its place below the folder that named it, as in `{a/b/c.png: b/c.png}`.

    Raises:
        DataError: A folder or glob holds no picture, or a word is empty.
    """
    survey = survey or Survey()
    pictures: dict[Path, Path] = {}
    folders: dict[Path, str] = {}
    taken: set[tuple[str, str]] = set()
    for word in words:
        found = _find(word, survey)
        if not found:
            notes = "".join(f"; {line}" for line in (*survey.problems(), *survey.lines()))
            wanted = ", ".join(sorted(SUFFIXES))
            raise DataError(f"no picture in {word}: expected files ending in {wanted}{notes}")
        for item, place in found.items():
            if item.parent not in folders:  # one folder may go by several names
                folders[item.parent] = os.path.realpath(item.parent)
            identity = (folders[item.parent], item.name)
            if identity not in taken:
                taken.add(identity)
                pictures[item] = place
    return pictures


def _find(word: str, survey: Survey) -> dict[Path, Path]:
    check_word(word)
    word = expand_home(word)
    if os.path.isdir(word):  # noqa: PTH112  (a name that is too long is no folder, and no error)
        found = sorted(map(Path, walk(word, survey)), key=natural_key)
        return {item: item.relative_to(word) for item in found}
    if is_glob(word):
        found = sorted(map(Path, find_glob(word, survey)), key=natural_key)
        return {item: Path(item.name) for item in found}
    if "://" in word and not os.path.lexists(word):
        raise DataError(f"{word} is a URL; expected a local path; `magtiles-seg batch` reads URLs")
    return {Path(word): Path(Path(word).name)}


def check_word(word: str) -> None:
    """Refuse the empty word, which would mean the working directory.

    Raises:
        DataError: It is empty.
    """
    if not word.strip():
        raise DataError("a path is empty; expected a file, folder or glob; '.' is this folder")


def expand_home(word: str) -> str:
    """Return a path with its leading `~` replaced, unless there is something of that very name."""
    return word if os.path.lexists(word) else os.path.expanduser(word)  # noqa: PTH111  (may fail)


def is_glob(word: str) -> bool:
    """Return whether a word is a pattern: it holds `*`, `?` or `[`, and there is no such file."""
    return glob.has_magic(word) and not os.path.lexists(word)


def is_picture_name(name: str) -> bool:
    """Return whether a name ends as pictures do."""
    return _suffix(name) in SUFFIXES


def photographs(folder: Path) -> list[Path]:
    """Return the pictures that lie in a folder itself, in their natural order.

    A data set has none there: its pictures lie below.
    """
    if not folder.is_dir():
        return []
    survey = Survey()
    with os.scandir(folder) as entries:
        found = [Path(entry.path) for entry in entries if _is_wanted(entry, survey)]
    return sorted((path for path in found if path.is_file()), key=natural_key)


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()  # noqa: PTH122  (called for every file of an archive)


def walk(folder: str, survey: Survey) -> Iterator[str]:
    """Yield the pictures in a folder and below, in no order, as `files.walk` finds them.

    Args:
        folder: Where to begin.
        survey: Told what was left out, and which folders could not be listed.
    """

    def is_entered(entry: os.DirEntry[str]) -> bool:
        return not is_hidden(entry.name) and not _holds_masks(entry)

    for entry in files.walk(folder, is_entered, survey.unlisted):
        if files.is_folder(entry) and _holds_masks(entry):
            survey.leave_out(MASK_FOLDERS, entry.path)
        elif _is_wanted(entry, survey):
            yield entry.path


def _holds_masks(entry: os.DirEntry[str]) -> bool:
    """Return whether a folder stands beside the pictures that its masks are of."""
    return entry.name == "masks" and os.path.isdir(f"{os.path.dirname(entry.path)}/images")  # noqa: PTH112, PTH120


def _is_wanted(entry: os.DirEntry[str], survey: Survey) -> bool:
    """Return whether what is no visible folder is a picture; tell why it is not."""
    if is_hidden(entry.name):
        if is_picture_name(entry.name) or files.is_folder(entry):
            survey.leave_out(HIDDEN, entry.path)
        return False
    if not is_picture_name(entry.name):
        if _suffix(entry.name) in _NOT_READ:
            survey.leave_out(FORMATS, entry.path)
        elif entry.is_symlink() and not os.path.exists(entry.path):  # noqa: PTH110
            survey.leave_out(BROKEN, entry.path)
        return False
    if reason := left_out(entry.path):
        survey.leave_out(reason, entry.path)
    return not reason


def left_out(path: str) -> str:
    """Return why a picture's file is no picture of a tile; empty: it is one."""
    if is_mask_name(path):
        return MASKS
    return RESULTS if is_result(path) else ""


def is_hidden(name: str) -> bool:
    """Return whether a file or folder is hidden, or what macOS packs beside the files in a zip."""
    return name.startswith(".") or name == "__MACOSX"


def find_glob(word: str, survey: Survey) -> Iterator[str]:
    """Yield the pictures that a glob matches, in no order.

    Leading folders that are there by that very name are no patterns: `shots[1]/*.png`.

    Args:
        word: With `*`, `?`, `[…]`; `**` crosses folders, as in `shots/**/*.png`.
        survey: Told what was left out, and which folders could not be listed.
    """
    parts = list(PurePath(word).parts)
    there = 0
    while there < len(parts) and os.path.lexists(PurePath(*parts[: there + 1])):
        there += 1
    root, pattern = str(PurePath(*parts[:there])), parts[there:]
    for name in _matches(root, pattern, survey):
        path = os.path.join(root, name) if there else name  # noqa: PTH118
        if is_picture_name(name) and not os.path.isdir(path):  # noqa: PTH112
            if reason := left_out(path):
                survey.leave_out(reason, path)
            else:
                yield path


def _matches(root: str, pattern: Sequence[str], survey: Survey) -> Iterable[str]:
    """Yield names below the root; `glob` itself would follow links in circles without end."""
    if "**" not in pattern:
        yield from glob.iglob(os.path.join(*pattern), root_dir=root)  # noqa: PTH118, PTH207
        return
    for path in walk(root, survey):
        name = os.path.relpath(path, root)
        if _fits(PurePath(name).parts, pattern):
            yield name


def _fits(parts: Sequence[str], pattern: Sequence[str]) -> bool:
    if not pattern:
        return not parts
    if pattern[0] == "**":
        return any(_fits(parts[skip:], pattern[1:]) for skip in range(len(parts) + 1))
    return bool(parts) and fnmatchcase(parts[0], pattern[0]) and _fits(parts[1:], pattern[1:])


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
