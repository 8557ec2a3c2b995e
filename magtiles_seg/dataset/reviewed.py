"""Reviewed parts: labelled pictures that came from a line, as additions to a data set.

They lie in `reviewed/` of the data directory, a folder for each import; nothing changes it later:

| file | |
|---|---|
| `images/NAME.png` | the pictures, as they were kept |
| `masks/NAME.png` | class indices, by the labels of part.json |
| `part.json` | date, labels, and of each picture its checksums, group and lineage |

Where a picture stands in several parts, the latest counts. They are trained on and nothing else.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from magtiles_seg.dataset.layouts import REVIEWED, REVIEWED_PART
from magtiles_seg.dataset.masks import UInt8Array
from magtiles_seg.dataset.samples import Sample
from magtiles_seg.dataset.splits import committed_folds
from magtiles_seg.errors import DataError
from magtiles_seg.files import encode_png, sha256_of, write_json
from magtiles_seg.labels import FREE
from magtiles_seg.names import counted

_SCHEMA_VERSION = 1


@dataclass(frozen=True, eq=False, kw_only=True)
class Reviewed:
    """A picture that somebody labelled.

    Attributes:
        name: Unique among all reviewed ones; its id in the data set.
        image_path: The picture.
        sha256: Of its file.
        target: (H, W) uint8, class indices.
        group: Name of what it shares with others of the same part or web.
        joins: Id of a picture of the data set that shows the same part; None: a part of its own.
        lineage: What was kept with it, as JSON values.
    """

    name: str
    image_path: Path
    sha256: str
    target: UInt8Array
    group: str
    joins: str | None
    lineage: Mapping[str, Any]

    @property
    def mask_png(self) -> bytes:
        """The mask's file."""
        return encode_png(self.target)


@dataclass(frozen=True, kw_only=True)
class Part:
    """An import, as its part.json has it.

    Attributes:
        folder: Where it lies.
        created: When, UTC.
        labels: Class names by index, background first.
        pictures: By name: `sha256`, `mask_sha256`, `class`, `group`, `joins`, `lineage`.
    """

    folder: Path
    created: str
    labels: tuple[str, ...]
    pictures: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


def read_parts(directory: Path) -> list[Part]:
    """Return the reviewed parts of a data directory, oldest first.

    Raises:
        DataError: A part.json is damaged.
    """
    return sorted(_parts(directory), key=lambda part: (part.created, part.folder.name))


def _parts(directory: Path) -> Iterator[Part]:
    for path in (directory / REVIEWED).glob(f"*/{REVIEWED_PART}"):
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if content["schema_version"] != _SCHEMA_VERSION:
                raise DataError(
                    f"{path}: schema version {content['schema_version']!r:.40}; expected "
                    f"{_SCHEMA_VERSION}: import it again by this version"
                )
            pictures = content["pictures"]
            for one in pictures.values():
                _ = (one["sha256"], one["mask_sha256"], one["class"], one["group"], one["joins"])
            yield Part(
                folder=path.parent,
                created=str(content["created"]),
                labels=tuple(content["labels"]),
                pictures=pictures,
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            if isinstance(error, DataError):
                raise
            raise DataError(f"{path} is damaged: {error!r:.200}; import it again") from error


def latest(parts: Sequence[Part]) -> dict[str, Part]:
    """Return the part that counts for each picture."""
    return {name: part for part in parts for name in part.pictures}


def reviewed_samples(
    directory: Path, labels: Sequence[str], samples: Sequence[Sample]
) -> tuple[Sample, ...]:
    """Return the reviewed pictures of a data directory, sorted by id.

    Args:
        directory: `data_load.directory`.
        labels: Class names by index, background first; classes may have been added at the end.
        samples: The data set that they are added to.

    Raises:
        DataError: A part is damaged, of other labels, or its picture has the name of another.
    """
    counted = latest(read_parts(directory))
    if not counted:
        return ()
    base = {sample.id: sample for sample in samples}
    for part in counted.values():
        _check_labels(part, labels)
    twice = sorted(base.keys() & counted.keys())
    if twice:
        raise DataError(
            f"{directory / REVIEWED} holds {twice[0]}, as the data set itself does; remove one"
        )
    numbers = _group_numbers(counted, base)
    return tuple(
        Sample(
            name,
            part.pictures[name]["class"],
            part.folder / "images" / f"{name}.png",
            part.folder / "masks" / f"{name}.png",
            numbers[name],
            indexed_mask=True,
            train_only=True,
        )
        for name, part in sorted(counted.items())
    )


def _check_labels(part: Part, labels: Sequence[str]) -> None:
    if part.labels != tuple(labels[: len(part.labels)]):
        raise DataError(
            f"{part.folder} has the labels {', '.join(part.labels)}; expected them to be the first "
            f"of data_load.labels ({', '.join(labels)}): add classes at the end, or import again"
        )


def _group_numbers(counted: Mapping[str, Part], base: Mapping[str, Sample]) -> dict[str, int]:
    """Return each picture's group: that of the picture it joins, or one that nobody else has."""
    taken = [-1, *(sample.group for sample in base.values()), *committed_folds()]
    facts = {name: part.pictures[name] for name, part in counted.items()}
    joined = {one["group"]: one["joins"] for one in facts.values() if one["joins"] in base}
    own = sorted({one["group"] for one in facts.values()} - joined.keys())
    number = {group: max(taken) + 1 + index for index, group in enumerate(own)}
    number |= {group: base[name].group for group, name in joined.items()}
    return {name: number[one["group"]] for name, one in facts.items()}


def verify_parts(directory: Path) -> None:
    """Make sure that every file of the reviewed parts is the one that was imported.

    Raises:
        DataError: Files are missing or were changed; names them.
    """
    problems = []
    for part in read_parts(directory):
        for name, facts in sorted(part.pictures.items()):
            for kind, key in (("images", "sha256"), ("masks", "mask_sha256")):
                path = part.folder / kind / f"{name}.png"
                if not path.is_file():
                    problems.append(f"{path}: missing")
                elif sha256_of(path) != facts[key]:
                    problems.append(f"{path}: was changed since it was imported")
    if problems:
        lines = "\n  ".join(problems[:20])
        raise DataError(
            f"{directory / REVIEWED} is not as it was imported, {counted(len(problems), 'file')}:\n"
            f"  {lines}\nbring them back, or remove the whole part and import it again"
        )


def write_part(
    directory: Path,
    pictures: Sequence[Reviewed],
    labels: Sequence[str],
    *,
    created: str,
    origin: Mapping[str, Any],
) -> Path:
    """Write a part, whole or not at all, and return its folder.

    Args:
        directory: `data_load.directory`.
        pictures: At least one.
        labels: Class names by index, background first.
        created: The time, UTC, ISO 8601.
        origin: Where they were imported from, as JSON values.

    Raises:
        OSError: It cannot be written.
    """
    rows = {one.name: _row(one, labels) for one in sorted(pictures, key=lambda one: one.name)}
    content = {"labels": list(labels), "pictures": rows}
    sha256 = sha256_of(json.dumps(content, sort_keys=True).encode())
    version = sha256_of(f"{created} {sha256}".encode())  # a label may be changed, and changed back
    folder = directory / REVIEWED / f"{created[:10]}-{version[:12]}"
    stage = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(stage, ignore_errors=True)
    try:
        for kind in ("images", "masks"):
            (stage / kind).mkdir(parents=True)
        for one in pictures:
            shutil.copyfile(one.image_path, stage / "images" / f"{one.name}.png")
            (stage / "masks" / f"{one.name}.png").write_bytes(one.mask_png)
        head = {"schema_version": _SCHEMA_VERSION, "created": created, "sha256": sha256}
        write_json(stage / REVIEWED_PART, {**head, "origin": dict(origin), **content})
        stage.rename(folder)
    finally:
        shutil.rmtree(stage, ignore_errors=True)
    return folder


def _row(one: Reviewed, labels: Sequence[str]) -> dict[str, Any]:
    counts = np.bincount(one.target[one.target < len(labels)].ravel(), minlength=2)[1:]
    return {
        "sha256": one.sha256,
        "mask_sha256": sha256_of(one.mask_png),
        "class": labels[int(counts.argmax()) + 1] if counts.any() else FREE,
        "group": one.group,
        "joins": one.joins,
        "lineage": dict(one.lineage),
    }
