"""List files: a path or URL a line, as any system and any program writes them.

| line | |
|---|---|
| a path | relative to the list's folder |
| a URL | as it is |
| empty, or it begins with `#` | skipped |

UTF-8 and UTF-16, with or without a byte order mark (UTF-16 needs it); other bytes are kept as they
are, as file names may be any bytes. Of what Windows adds (line ends, blanks, quotes, backslashes)
a name is freed only where there is no file of that very name.
"""

from __future__ import annotations

import os
from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Iterator
from pathlib import Path

from magtiles_seg.batch.stores import is_url
from magtiles_seg.errors import DataError
from magtiles_seg.inputs import SUFFIXES, expand_home
from magtiles_seg.names import as_line


def read_list(path: Path) -> Iterator[str]:
    """Yield what each line names: an absolute path, or a URL.

    Raises:
        DataError: It is no list of pictures, or its paths are relative to another folder.
    """
    with path.open("rb") as file:
        wide = file.read(2) in (BOM_UTF16_LE, BOM_UTF16_BE)
    encoding, errors = ("utf-16", "surrogatepass") if wide else ("utf-8-sig", "surrogateescape")
    checked = False
    with path.open(encoding=encoding, errors=errors, newline="\n") as lines:
        for line in lines:
            name = _name(line.rstrip("\n"), path)
            if name is None:
                continue
            if not checked and not is_url(name):
                checked = True
                _check_folder(name, path)
            yield name


def _name(line: str, path: Path) -> str | None:
    """Return what a line names, or None: nothing."""
    if "\0" in line:
        raise DataError(
            f"{path} is no list of pictures: expected one path or URL a line, in UTF-8, or in "
            f"UTF-16 with a byte order mark, got binary data; pictures end in "
            f"{', '.join(sorted(SUFFIXES))}"
        )
    text = line.strip()
    bare = text.strip('"')
    if is_url(bare):
        return local_path(bare)
    meant = expand_home(bare.replace("\\", "/"))
    if not text or (text[0] == "#" and not os.path.lexists(path.parent / line)):
        return None
    if line != meant:
        for name in (line, text, bare):
            if os.path.lexists(path.parent / name):
                return os.path.normpath(path.parent / name)
    return os.path.normpath(path.parent / meant)


def local_path(url: str) -> str:
    """Return a URL as it is, but the path that a `file://` URL means."""
    if not url.startswith("file://"):
        return url
    from urllib.parse import unquote_to_bytes, urlsplit

    return os.fsdecode(unquote_to_bytes(os.fsencode(urlsplit(url).path)))


def _check_folder(name: str, path: Path) -> None:
    """Look at the first path: a list that was written for another folder would find nothing."""
    here = os.path.normpath(Path.cwd() / os.path.relpath(name, path.parent))
    if not os.path.lexists(name) and os.path.lexists(here):
        raise DataError(
            f"the paths in {path} are not relative to its folder: there is {as_line(here)}, but no "
            f"{as_line(name)}; move the list there, or write absolute paths"
        )
