"""The pictures of an archive, frozen on disk: sorted, each once, in parts of equal size.

A part is the unit of work. Which pictures it holds never changes, whatever is added to the archive
meanwhile: that is what makes a resumed run exact. Names lie in one file, a line each as JSON; a
second one holds the byte at which each part begins, so that any worker reads its part alone.
"""

from __future__ import annotations

import heapq
import json
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from itertools import islice
from pathlib import Path

import numpy as np

from magtiles_seg.names import without_secrets

_NAMES, _OFFSETS = "names.jsonl", "offsets.npy"
_RUN = 500_000  # names that are sorted in memory at once: some 100 MB


class Listing:
    """A frozen listing. Cheap to send to another process: it holds a path."""

    def __init__(self, folder: Path) -> None:
        """Open what `freeze` wrote.

        Raises:
            FileNotFoundError: There is none.
        """
        self.folder = folder
        offsets = np.load(folder / _OFFSETS, mmap_mode="r")
        self.pictures = int(offsets[0])
        self.parts = len(offsets) - 2
        """How many parts there are; they are numbered from 0."""

    def names(self, part: int) -> list[str]:
        """Return the pictures of one part, in order."""
        start, end = np.load(self.folder / _OFFSETS, mmap_mode="r")[part + 1 : part + 3]
        with (self.folder / _NAMES).open("rb") as file:
            file.seek(int(start))
            return [json.loads(line) for line in file.read(int(end - start)).splitlines()]


def freeze(
    names: Iterable[str],
    folder: Path,
    *,
    part_rows: int,
    progress: Callable[[int], None] | None = None,
    run: int = _RUN,
) -> Listing:
    """Write a listing, whole or not at all, in memory that does not grow with it.

    Args:
        names: In any order; one that comes twice is kept once.
        folder: Replaced.
        part_rows: Pictures of a part; the last may have fewer.
        progress: Told how many names have come.
        run: Names that are sorted in memory at once.
    """
    fresh = folder.with_name(folder.name + ".new")
    shutil.rmtree(fresh, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    fresh.mkdir(mode=0o700)
    secrets = _Secrets()
    names = map(secrets.watch, names)
    runs = list(_sorted_runs(names, fresh, run, progress))
    with ExitStack() as stack:
        files = [stack.enter_context(path.open("rb")) for path in runs]
        offsets = _write_names(heapq.merge(*files), fresh / _NAMES, part_rows)
    for path in runs:
        path.unlink()
    np.save(fresh / _OFFSETS, np.array(offsets, dtype=np.int64))
    if not secrets.seen:
        fresh.chmod(stat.S_IMODE(folder.parent.stat().st_mode))
    shutil.rmtree(folder, ignore_errors=True)
    fresh.replace(folder)
    return Listing(folder)


class _Secrets:
    """Watches names go by: a listing with passwords or tokens in it stays its owner's alone."""

    def __init__(self) -> None:
        self.seen = False

    def watch(self, name: str) -> str:
        self.seen = self.seen or ("://" in name and without_secrets(name) != name)
        return name


def _sorted_runs(
    names: Iterable[str], folder: Path, run: int, progress: Callable[[int], None] | None
) -> Iterator[Path]:
    """Write sorted runs of names, a file each, and yield the files."""
    lines = (f"{json.dumps(name)}\n".encode() for name in names)
    count = 0
    while chunk := sorted(islice(lines, run)):
        count += len(chunk)
        if progress:
            progress(count)
        path = folder / f"run-{count}"
        with path.open("wb") as file:
            file.writelines(chunk)
        yield path


def _write_names(lines: Iterable[bytes], path: Path, part_rows: int) -> list[int]:
    """Write sorted lines, each once; return their number, where each part begins, and the end."""
    begins: list[int] = []
    count = position = 0
    last = b""
    with path.open("wb") as file:
        for line in lines:
            if line == last:
                continue
            if count % part_rows == 0:
                begins.append(position)
            file.write(line)
            count, position, last = count + 1, position + len(line), line
    return [count, *begins, position]
