"""The samples that params name: of a folder, of the loaded data set, of the parts of a split."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from magtiles_seg.dataset.archive import check_brought, converted_from, source_folder
from magtiles_seg.dataset.layouts import left_layout
from magtiles_seg.dataset.reviewed import reviewed_samples
from magtiles_seg.dataset.samples import Sample, find_samples
from magtiles_seg.dataset.splits import PARTS, Split, note_changed
from magtiles_seg.errors import DataError
from magtiles_seg.names import counted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from magtiles_seg.config import Params


def samples_of(params: Params, root: str | os.PathLike[str] | None = None) -> tuple[Sample, ...]:
    """Return the samples of a folder, or of the data set that `load` brings.

    The latter with its reviewed parts, which `loop import` writes.

    Raises:
        FileNotFoundError, DataError: There is no such data set, it is not whole or was loaded from
            another source, or `params.data_split.group_pattern` does not fit every name in it.
        ConfigError: The pattern is invalid.
    """
    wanted, directory = params.data_load, Path(params.data_load.directory)
    if root is not None:
        return grouped(
            find_samples(Path(root), layout=layout_of(params), labels=wanted.labels), params
        )
    folder = source_folder(wanted.source)
    if folder is not None and converted_from(folder, directory):
        folder = None  # others are used where they lie
    if folder is None:
        check_brought(wanted.source, directory, listed=wanted.checksums is not None)
    root = directory if folder is None else folder
    samples = grouped(find_samples(root, layout=layout_of(params), labels=wanted.labels), params)
    reviewed = reviewed_samples(directory, wanted.labels, samples)
    return tuple(sorted((*samples, *reviewed), key=lambda sample: sample.id))


def grouped(samples: tuple[Sample, ...], params: Params) -> tuple[Sample, ...]:
    """Return the samples with the groups that `data_split.group_pattern` names, where it is set.

    Raises:
        DataError: The pattern does not fit every name.
        ConfigError: It is invalid.
    """
    from magtiles_seg.dataset.grouping import regrouped

    pattern = params.data_split.group_pattern
    return samples if pattern is None else tuple(regrouped(samples, pattern))


def layout_of(params: Params) -> str:
    """Return the layout that `load` leaves: data sets of other tools become folders."""
    return left_layout(params.data_load.layout)


def read_split(manifest: str | os.PathLike[str]) -> Split:
    """Return the split of a manifest file.

    Raises:
        DataError: The file is no manifest, or was altered.
        FileNotFoundError: There is none.
        OSError: It cannot be read.
    """
    try:
        return Split.from_json(Path(manifest).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(
            f"no split manifest at {manifest}; draw the split first: magtiles-seg data split"
        ) from None
    except (DataError, UnicodeDecodeError) as error:
        raise DataError(f"{manifest}: {error}") from error


def split_parts(
    manifest: str | os.PathLike[str],
    params: Params,
    *,
    note: Callable[[str], object] | None = None,
) -> dict[str, list[Sample]]:
    """Return the samples of each part of a split manifest.

    Args:
        manifest: The file.
        params: Where the data set is.
        note: Told when the data set is not what the split was drawn from; None: not looked at.

    Raises:
        FileNotFoundError: There is no such manifest or data set.
        DataError: The manifest is damaged, or names pictures that the data set lacks.
    """
    drawn, samples = read_split(manifest), samples_of(params)
    parts = parts_of(drawn, samples, manifest)
    if note is not None:
        for line in note_changed([drawn], samples):
            note(line)
    return parts


def parts_of(
    drawn: Split, samples: Iterable[Sample], manifest: str | os.PathLike[str]
) -> dict[str, list[Sample]]:
    """Return those of some samples that are in each part of a split.

    Args:
        drawn: The split.
        samples: Of its data set.
        manifest: Where it was read from, for the message.

    Raises:
        DataError: It names pictures that are not among the samples.
    """
    known = {sample.id: sample for sample in samples}
    parts = {name: getattr(drawn, name) for name in PARTS}
    missing = sorted(name for part in parts.values() for name in part if name not in known)
    if missing:
        raise DataError(
            f"{manifest} names {counted(len(missing), 'picture')} that the data set lacks, "
            f"{missing[0]} among them; load the data it was made from, or split again"
        )
    return {name: [known[key] for key in part] for name, part in parts.items()}
