"""What the pipeline's verbs share: pictures that parameters and manifests mean, and the card."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from magtiles_seg.dataset.fetch import source_folder
from magtiles_seg.dataset.samples import Sample, find_samples
from magtiles_seg.dataset.splits import PARTS, Split
from magtiles_seg.errors import DataError

if TYPE_CHECKING:
    from magtiles_seg.config import Params
    from magtiles_seg.evaluate.report import EvaluationResult
    from magtiles_seg.model.card import ModelCard


def samples_of(params: Params, root: Path | None = None) -> tuple[Sample, ...]:
    """Return the samples of a folder, or of the data set that `data load` brings."""
    if root is None:
        folder = source_folder(params.data_load.source)
        root = Path(params.data_load.directory) if folder is None else folder
    return find_samples(root, layout=params.data_load.layout, labels=params.data_load.labels)


def read_manifest(path: Path) -> Split:
    """Return the split of a manifest file.

    Raises:
        DataError: The file is no manifest, or was altered.
        OSError: It cannot be read.
    """
    try:
        return Split.from_json(path.read_text(encoding="utf-8"))
    except (DataError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: {error}") from error


def split_parts(manifest: Path, params: Params) -> dict[str, list[Sample]]:
    """Return the samples of each part of a split manifest.

    Raises:
        DataError: The manifest is damaged, or names pictures that the data set lacks.
    """
    split = read_manifest(manifest)
    samples = {sample.id: sample for sample in samples_of(params)}
    parts = {name: getattr(split, name) for name in PARTS}
    missing = sorted(name for part in parts.values() for name in part if name not in samples)
    if missing:
        raise DataError(
            f"{manifest} names {len(missing)} pictures that the data set lacks, {missing[0]} among "
            "them; load the data it was made from, or split again"
        )
    return {name: [samples[key] for key in part] for name, part in parts.items()}


def with_figures(card: ModelCard, result: EvaluationResult) -> ModelCard:
    """Return a card with an evaluation's figures, in place of older ones of the same protocol."""
    known = {name: value for name, value in result.figures.items() if value == value}
    name, pictures = result.protocol.name, len(result.records)
    others = [entry for entry in card.metrics if entry["protocol"] != name]
    entry = {"protocol": name, "pictures": pictures, "figures": known}
    return replace(card, metrics=(*others, entry))
