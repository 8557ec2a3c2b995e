"""Runs: directories with a split manifest and the model that was trained on it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from magtiles_seg.dataset.samples import Sample
from magtiles_seg.dataset.splits import Split
from magtiles_seg.errors import DataError

MODEL_NAMES = ("model.onnx", "model.safetensors")
"""What the model of a run may be called; the first that is there is taken."""


@dataclass(frozen=True)
class Run:
    """A model and the split that it was trained on."""

    directory: Path
    model: Path
    split: Split

    def part(self, name: str, samples: Mapping[str, Sample]) -> list[Sample]:
        """Return the samples of a part of the split.

        Raises:
            DataError: The data lacks a picture of it.
        """
        ids = getattr(self.split, name)
        missing = [id_ for id_ in ids if id_ not in samples]
        if missing:
            raise DataError(
                f"{self.directory / 'split.json'} names {len(missing)} pictures that the data set "
                f"lacks, {missing[0]} among them; load the data that it was made from"
            )
        return [samples[id_] for id_ in ids]


def find_runs(directories: Iterable[Path]) -> tuple[Run, ...]:
    """Return the runs of some directories, in the order given.

    Raises:
        DataError: A directory lacks its split or its model.
    """
    runs = []
    for directory in directories:
        models = [directory / name for name in MODEL_NAMES if (directory / name).is_file()]
        manifest = directory / "split.json"
        if not models or not manifest.is_file():
            raise DataError(
                f"{directory} is no run: expected split.json and {' or '.join(MODEL_NAMES)} in it"
            )
        text = manifest.read_text(encoding="utf-8")
        runs.append(Run(directory, models[0], Split.from_json(text)))
    return tuple(runs)
