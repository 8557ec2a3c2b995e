"""The review folder: a bounded number of pictures, each with a draft of its label and its lineage.

| file | |
|---|---|
| `NAME.png` | the picture, lossless |
| `NAME.draft.png` | the model's classes, (H, W) uint8 indices, as a first draft of a label |
| `NAME.json` | why, when, where and by which model; written last: where it stands, all is whole |

NAME is time, reason, interest in per mille and a random part: a listing tells what is kept. When
the folder is full, the reason that holds the most pictures loses its least interesting one, of
equals the oldest. Of pictures kept at random the interest is random: what stays is a fair draw of
all the time since the folder was begun.
"""

from __future__ import annotations

import errno
import json
import os
import re
import secrets
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from magtiles_seg.errors import ConfigError, DataError
from magtiles_seg.files import encode_png, sha256_of, write
from magtiles_seg.marking import encode_result
from magtiles_seg.names import timestamp

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

REASONS = ("review", "disagreement", "drift", "random")
"""Why a picture is kept, in the order in which they are asked."""

SCHEMA_VERSION = 1

_NAME = re.compile(
    rf"(?P<at>\d{{8}}T\d{{9}}Z)-(?P<reason>{'|'.join(REASONS)})-(?P<interest>\d{{4}})-[0-9a-f]{{8}}"
)
_SUFFIXES = (".json", ".draft.png", ".png")  # what makes a picture whole goes first
_LEFT = re.compile(r"\.[0-9a-f]{32}\.part\.(png|json)")
_SPARE_BYTES = 200_000_000
"""So much of the disk is left to what must be written: records come before pictures."""

_LOCK, _LOCK_S = ".lock", 30.0


@dataclass(frozen=True, order=True)
class Entry:
    """A picture of the folder, as its name tells.

    Attributes:
        interest: 0..1; what is least interesting goes first.
        name: Begins with its time.
        reason: One of `REASONS`.
        size_bytes: Of its files.
    """

    interest: float
    name: str
    reason: str
    size_bytes: int


class ReviewFolder:
    """A folder that several processes may add to at once."""

    def __init__(
        self,
        path: Path,
        *,
        most_pictures: int = 1000,
        most_bytes: int = 1_000_000_000,
        spare_bytes: int = _SPARE_BYTES,
    ) -> None:
        """Name a folder; it is made when something is added.

        Args:
            path: The folder.
            most_pictures: It never holds more.
            most_bytes: Nor more bytes.
            spare_bytes: Nothing is added while the disk has less free.
        """
        self.path = Path(path)
        self._most_pictures, self._most_bytes = most_pictures, most_bytes
        self._spare_bytes = spare_bytes

    def make(self) -> None:
        """Make the folder.

        Raises:
            ConfigError: It cannot be made or written to.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            with self._alone():
                self._sweep()
        except OSError as error:
            raise ConfigError(
                f"the review folder {self.path} cannot be written to: {error.strerror or error}; "
                "name another one, or leave it out"
            ) from error

    def add(
        self,
        image: NDArray[np.uint8],
        draft: NDArray[np.uint8],
        *,
        reason: str,
        interest: float,
        facts: Mapping[str, Any],
    ) -> str | None:
        """Keep a picture, whole or not at all.

        Args:
            image: (H, W) uint8.
            draft: (H, W) uint8, class indices into `facts["labels"]`.
            reason: One of `REASONS`.
            interest: 0..1.
            facts: Its lineage, JSON values.

        Returns:
            Its name, or None: all that is kept is more interesting.

        Raises:
            OSError: The disk is full, or the folder cannot be written.
        """
        now = datetime.now(UTC)
        name = (
            f"{now:%Y%m%dT%H%M%S}{now.microsecond // 1000:03d}Z-{reason}-"
            f"{round(1000 * min(max(interest, 0.0), 1.0)):04d}-{secrets.token_hex(4)}"
        )
        picture, mask = encode_png(image), encode_result(draft)
        record = {
            "schema_version": SCHEMA_VERSION,
            "at": timestamp(now),
            "reason": reason,
            "interest": round(interest, 4),
            "sha256": sha256_of(picture),
            "draft_sha256": sha256_of(mask),
            "height_px": image.shape[0],
            "width_px": image.shape[1],
            **facts,
        }
        text = json.dumps(record, indent=1, allow_nan=False) + "\n"
        size = len(picture) + len(mask) + len(text)
        self.path.mkdir(parents=True, exist_ok=True)
        with self._alone():
            if not self._make_room(Entry(interest, name, reason, size)):
                return None
            try:
                for suffix, content in ((".png", picture), (".draft.png", mask), (".json", text)):
                    write(self.path / f"{name}{suffix}", content, durable=True)
            except BaseException:
                self._remove([name])
                raise
        return name

    def entries(self) -> list[Entry]:
        """Return what is kept, oldest first."""
        sizes: dict[str, int] = {}
        whole: dict[str, re.Match[str]] = {}
        for file in _files(self.path):
            name, _, suffix = file.name.partition(".")
            match = _NAME.fullmatch(name)
            if match and f".{suffix}" in _SUFFIXES:
                sizes[name] = sizes.get(name, 0) + file.stat().st_size
                if suffix == "json":
                    whole[name] = match
        return [
            Entry(int(match["interest"]) / 1000, name, match["reason"], sizes[name])
            for name, match in sorted(whole.items())
        ]

    def read(self, name: str) -> tuple[dict[str, Any], NDArray[np.uint8]]:
        """Return `record` and `draft` of a picture.

        Raises:
            DataError: As those.
        """
        record = self.record(name)
        return record, self.draft(name, record)

    def record(self, name: str) -> dict[str, Any]:
        """Return the lineage of a picture.

        Raises:
            DataError: It cannot be read, or is none.
        """
        where = self.path / f"{name}.json"
        try:
            record: dict[str, Any] = json.loads(where.read_bytes())
            _ = (record["sha256"] + "", record["draft_sha256"] + "")
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise DataError(f"{where}: the picture's record is damaged: {error}") from error
        return record

    def draft(self, name: str, record: Mapping[str, Any]) -> NDArray[np.uint8]:
        """Return the draft of a picture, after its files have been checked against its lineage.

        Raises:
            DataError: A file is missing or is not the one that was kept.
        """
        from magtiles_seg.image import read_levels

        picture, draft = self.path / f"{name}.png", self.path / f"{name}.draft.png"
        wanted = ((picture, record["sha256"]), (draft, record["draft_sha256"]))
        try:
            changed = [path.name for path, sha256 in wanted if sha256_of(path) != sha256]
        except OSError as error:
            raise DataError(f"{self.path / name}: cannot be read: {error}") from error
        if changed:
            raise DataError(f"{self.path}: {', '.join(changed)} was changed since it was kept")
        return read_levels(draft)

    def remove(self, names: Iterable[str]) -> None:
        """Remove pictures; those that are gone already are no error.

        Raises:
            OSError: The folder cannot be written.
        """
        with self._alone():
            self._remove(names)

    def _remove(self, names: Iterable[str]) -> None:
        for name in names:
            for suffix in _SUFFIXES:
                (self.path / f"{name}{suffix}").unlink(missing_ok=True)

    def _make_room(self, new: Entry) -> bool:
        """Remove what has to go for a picture; False: it is itself what would go."""
        kept = [*self.entries(), new]
        gone = list(_least(kept, self._most_pictures, self._most_bytes))
        if new in gone:
            return False
        free = shutil.disk_usage(self.path).free
        if free < self._spare_bytes + new.size_bytes:
            raise OSError(
                errno.ENOSPC,
                f"the disk has {free / 1e6:.0f} MB left; nothing is kept for review until there "
                f"are {self._spare_bytes / 1e6:.0f} MB",
                str(self.path),
            )
        self._remove(entry.name for entry in gone)
        return True

    def _sweep(self) -> None:
        """Remove what processes that were killed while writing have left; the lock is held."""
        whole = {entry.name for entry in self.entries()}
        for file in list(_files(self.path)):
            name = file.name.partition(".")[0]
            if _LEFT.fullmatch(file.name) or (_NAME.fullmatch(name) and name not in whole):
                Path(file.path).unlink(missing_ok=True)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Hold the folder's lock, which the system frees when this process ends, however."""
        from filelock import FileLock, Timeout

        try:
            with FileLock(self.path / _LOCK, timeout=_LOCK_S):
                yield
        except Timeout as error:
            raise OSError(f"{self.path} was held by other processes for {_LOCK_S:g} s") from error


def _files(path: Path) -> Iterator[os.DirEntry[str]]:
    if path.is_dir():
        with os.scandir(path) as found:
            yield from found


def _least(kept: list[Entry], most_pictures: int, most_bytes: int) -> Iterator[Entry]:
    """Yield what has to go until the rest is within the bounds."""
    rest = sorted(kept)
    counts = Counter(entry.reason for entry in rest)
    size = sum(entry.size_bytes for entry in rest)
    while rest and (len(rest) > most_pictures or size > most_bytes):
        fullest = max(REASONS, key=lambda reason: counts[reason])
        least = next(entry for entry in rest if entry.reason == fullest)
        rest.remove(least)
        counts[fullest] -= 1
        size -= least.size_bytes
        yield least
