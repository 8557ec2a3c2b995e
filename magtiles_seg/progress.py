"""How far long work is: bars on stderr, and only where that is a terminal.

tqdm draws them: one small package without dependencies, which training tools bring along anyway.
The library itself calls plain functions `(done, total)`; only the command line imports this module.
"""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from tqdm import tqdm

from magtiles_seg.names import as_line, without_secrets, working_folder

Item = TypeVar("Item")


@contextmanager
def bar(title: str, unit: str) -> Iterator[Callable[[int, int | None], None]]:
    """Give a function `(done, total)` that draws a bar; without a total it counts.

    Args:
        title: Stands before the bar.
        unit: What is counted; `"B"` is written in k, M and G.
    """
    with tqdm(desc=title, unit=unit, unit_scale=unit == "B", disable=None, leave=False) as drawn:

        def show(done: int, total: int | None = None) -> None:
            if total != drawn.total:
                drawn.reset(total)
            drawn.update(done - drawn.n)

        yield show


@contextmanager
def live() -> Iterator[Callable[[str], None]]:
    """Give a function that replaces one line of text, where stderr is a terminal."""
    with tqdm(bar_format="{desc}", disable=None, leave=False) as drawn:
        yield drawn.set_description_str


def wrap(items: Iterable[Item], count: int, title: str) -> Iterable[Item]:
    """Return the items, with a bar that moves as they are taken."""
    return tqdm(items, total=count, desc=title, disable=None)


def print_above(text: str) -> None:
    """Print a line to stdout, above a bar that may be drawn on the same terminal."""
    tqdm.write(text, file=sys.stdout)


def remark(text: str) -> None:
    """Print a line to stderr, above a bar that may be drawn there."""
    _to_stderr(f"magtiles-seg: {text}")


def complain(error: BaseException) -> None:
    """Print what went wrong to stderr."""
    note(_of_a_file(error) or str(error) or type(error).__name__)


def _of_a_file(error: BaseException) -> str:
    """Return what an error of the system means for its file; empty: it is of none."""
    if not isinstance(error, OSError):
        return ""
    if not error.filename:
        return _of_no_file(error)
    if error.filename2:
        return f"{error.filename} to {error.filename2}: {error.strerror}"
    if isinstance(error, FileNotFoundError):
        return f"there is no file {error.filename}"
    if isinstance(error, IsADirectoryError):
        return f"{error.filename} is a folder; expected a file"
    if isinstance(error, NotADirectoryError | FileExistsError):
        return f"{error.filename}: a file stands where a folder is expected"
    return f"{error.filename}: {error.strerror}"


def _of_no_file(error: OSError) -> str:
    """Return what an error of the system means that names no file; empty: its own words do."""
    if error.errno in {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)}:
        return f"the output cannot be written: {error.strerror}"
    if isinstance(error, FileNotFoundError) and working_folder() is None:
        return "the working folder is gone; change to one that is there"
    return ""


def note(text: str) -> None:
    """Print a line to stderr, without control characters and without passwords or tokens."""
    lines = (as_line(line) for line in without_secrets(text).split("\n"))
    # Further lines are indented: a name with a line end in it cannot pass for a message of its own.
    _to_stderr("magtiles-seg: " + "\n  ".join(lines))


def _to_stderr(text: str) -> None:
    """Print a line to stderr; where its disk is full or its reader gone, work goes on without."""
    with suppress(OSError):
        tqdm.write(text, file=sys.stderr)


def prepare_streams() -> None:
    r"""Let stdout and stderr print every name: what they cannot encode is written as `\udcfc`.

    One that is closed, as by `2>&-`, becomes a stream to nowhere, which Python, tqdm and libraries
    can write to like any other.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
