"""Layouts: where a data set's files lie on disk, whatever they mean."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from magtiles_seg.errors import ConfigError, DataError

LAYOUTS = ("auto", "magnetic-tile", "folder")
FORMAT_NAMES = (
    "labelme",
    "coco",
    "yolo",
    "voc",
    "cvat",
    "label-studio",
    "masks",
    "mvtec",
    "huggingface",
)
"""What `data load` converts to the layout `folder`."""
CLASS_PREFIX = "MT_"
_EXPECTED = {
    "magnetic-tile": f"folders {CLASS_PREFIX}<Class>/Imgs",
    "folder": "folders images/ and masks/",
    "auto": f"folders {CLASS_PREFIX}<Class>/Imgs (magnetic-tile) or images/ and masks/ (folder); "
    f"for what another tool wrote, set data_load.layout to its name: {', '.join(FORMAT_NAMES)}",
}
PICTURE_SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})
MASK_SUFFIXES = PICTURE_SUFFIXES - {".jpeg", ".jpg"}  # lossy formats change the values

REVIEWED, REVIEWED_PART = "reviewed", "part.json"
"""Folder beside a data set with what came by review, and what marks each of its parts."""

_SEARCH_DEPTH = 3
_JUNK = frozenset(
    {"thumbs.db", "ehthumbs.db", "desktop.ini", "__macosx", "__pycache__", "@eadir", "lost+found"}
)
"""What systems leave in folders, in small letters, beside everything that starts with a dot."""


@dataclass(frozen=True)
class Listing:
    """What a folder holds.

    Attributes:
        directory: The folder.
        files: The files to read, by the key of their stem (see `name_key`).
        problems: One line for each file or folder that must not be left out, but cannot be read.
        left_out: Visible files with other suffixes.
    """

    directory: Path
    files: dict[str, Path]
    problems: list[str]
    left_out: list[Path]


def name_key(name: str) -> str:
    """Return what two names share that differ in case or Unicode form (NFC, NFD) alone."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def locate(root: Path, layout: str = "auto", *, called: str | None = None) -> tuple[str, Path]:
    """Return the layout and the directory of the shallowest data set in or under `root`.

    Hidden folders and those that systems leave behind are not searched.

    Args:
        root: Where to search.
        layout: One of `LAYOUTS`.
        called: What messages call `root`; None: its path.

    Raises:
        FileNotFoundError: `root` is no directory.
        ConfigError: The layout is unknown.
        DataError: There is no data set of that layout, or there are several side by side.
    """
    if layout not in LAYOUTS:
        raise ConfigError(f"unknown layout {layout!r}; expected one of {', '.join(LAYOUTS)}")
    root = Path(root)
    if not root.is_dir():
        raise FileNotFoundError(
            f"no directory {root}; fetch the data first: magtiles-seg data load"
        )
    level = [root]
    for _ in range(_SEARCH_DEPTH + 1):
        found = [
            (kind, folder)
            for folder in level
            for kind in _layouts_of(folder)
            if layout in ("auto", kind)
        ]
        if found:
            _check_alone(root, found, called)
            return found[0]
        level = _children(level)
    raise DataError(
        f"{called or root} holds no data set of layout {layout!r}; expected {_EXPECTED[layout]}"
    )


def list_files(directory: Path, suffixes: Iterable[str]) -> Listing:
    """List a folder; two files of one stem are a problem, and so is a folder of pictures in it.

    Args:
        directory: The folder; one that does not exist holds nothing.
        suffixes: Of the files to read, in small letters.
    """
    listing = Listing(directory, {}, [], [])
    for path in sorted(directory.iterdir()) if directory.is_dir() else []:
        if is_junk(path):
            continue
        if path.is_dir():
            listing.problems.extend(_nested(path))
        elif path.suffix.lower() not in suffixes:
            listing.left_out.append(path)
        else:
            listing.problems.extend(_add(listing.files, path))
    return listing


def missing(pictures: Listing, masks: Listing) -> list[str]:
    """Return one line for every picture without a mask and every mask without a picture."""
    return [
        *_missing(pictures, masks, ".png", "mask"),
        *_missing(masks, pictures, ".jpg", "picture"),
    ]


def _missing(there: Listing, wanted: Listing, suffix: str, what: str) -> Iterator[str]:
    unread = {name_key(path.stem): path for path in wanted.left_out}
    for key in there.files.keys() - wanted.files.keys():
        why = f"; {unread[key].name} is not read: save it as PNG" if key in unread else ""
        yield f"{wanted.directory / there.files[key].stem}{suffix}: {what} is missing{why}"


def _add(files: dict[str, Path], path: Path) -> Iterator[str]:
    """Enter a file under its key, or yield why it cannot be."""
    key = name_key(path.stem)
    if not path.is_file():
        yield f"{path}: no regular file; expected a picture (is it a link to nothing?)"
    elif not _is_text(path.name):
        yield f"{os.fsencode(path)!r}: the name is not valid UTF-8; rename the file"
    elif key in files:
        yield (
            f"{path}: same name as {files[key].name} beside it but for suffix or case; "
            "expected one file for each name: rename or remove one"
        )
    else:
        files[key] = path


def _nested(folder: Path) -> Iterator[str]:
    """Yield why a folder with pictures must not be passed over; one without them may be."""
    if holds_pictures(folder):
        yield (
            f"{folder}: a folder with pictures; expected all of them directly in "
            f"{folder.parent}: move them there"
        )


def holds_pictures(folder: Path) -> bool:
    """Return whether a folder or one in it holds a picture; no link back to where we are does."""
    if folder.resolve() in (folder.parent.resolve(), *folder.parent.resolve().parents):
        return False
    for _, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        if any(Path(n).suffix.lower() in PICTURE_SUFFIXES and n[0] != "." for n in names):
            return True
    return False


def is_junk(path: Path) -> bool:
    """Return whether systems left a file or folder here: hidden, or of a name that they use."""
    return path.name.startswith(".") or path.name.lower() in _JUNK


def left_layout(layout: str) -> str:
    """Return the layout that `data load` leaves: data sets of other tools become folders."""
    return "folder" if layout in FORMAT_NAMES else layout


def _is_text(name: str) -> bool:
    return not any("\ud800" <= letter <= "\udfff" for letter in name)


def _children(level: list[Path]) -> list[Path]:
    """Return the visible folders one level down, each once whatever links lead to it."""
    found: dict[Path, Path] = {}
    for parent in level:
        for child in sorted(_entries(parent)):
            if child.is_dir() and not is_junk(child) and not is_reviewed(child):
                found.setdefault(child.resolve(), child)
    return list(found.values())


def is_reviewed(folder: Path) -> bool:
    """Return whether a folder holds what came by review."""
    return folder.name == REVIEWED and any(folder.glob(f"*/{REVIEWED_PART}"))


def _layouts_of(directory: Path) -> Iterator[str]:
    entries = _entries(directory)
    if any(child.name.startswith(CLASS_PREFIX) and child.is_dir() for child in entries):
        yield "magnetic-tile"
    if (directory / "images").is_dir():
        yield "folder"


def _entries(directory: Path) -> list[Path]:
    """Return what a directory holds; nothing of one that is not ours to read (`lost+found`)."""
    try:
        return list(directory.iterdir())
    except PermissionError:
        return []


def _check_alone(root: Path, found: list[tuple[str, Path]], called: str | None) -> None:
    if len(found) > 1:
        names = ", ".join(
            f"{Path(called or root, folder.relative_to(root))} ({kind})" for kind, folder in found
        )
        raise DataError(
            f"{called or root} holds {len(found)} data sets, {names}; expected one: name its own "
            "folder as the source, and its layout"
        )
