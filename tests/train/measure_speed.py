"""How fast training on a CPU is, one thread: crops a second with drawing, and a validation.

    python tests/train/measure_speed.py DATA SPLIT 64 [precision=fp32 patch_share=0 …]

DATA is the folder with the pictures, SPLIT what `data split` wrote. It prints wall and processor
seconds; the latter hardly depend on what else the machine does. It runs in a checkout of 0.1.0 as
well: to compare two, run them in turn. Not part of pytest.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
import yaml

from magtiles_seg.config import TrainParams
from magtiles_seg.dataset.samples import find_samples
from magtiles_seg.train import loop

WARM_UP_STEPS = 4
EPOCH = 640
_PARTS = ("train", "validation")


class Clock:
    """Takes the time at what `train` shows: the batches of an epoch, and what follows it."""

    def __init__(self) -> None:
        self.marks: list[tuple[float, float]] = []

    def mark(self, *_: object) -> None:
        self.marks.append((time.perf_counter(), time.process_time()))

    log_metric = log_image = lambda *_: None
    next_step = mark

    def batches(self, batches: Iterable[Any], *_: object) -> Iterator[Any]:
        for number, batch in enumerate(batches):
            if number == WARM_UP_STEPS:
                self.mark()
            yield batch
        self.mark()


def main(data: str, manifest: str, crops: str, *settings: str) -> None:
    torch.set_num_threads(1)
    values = {key: yaml.safe_load(text) for key, text in (each.split("=") for each in settings)}
    steps = int(crops) // 8 + WARM_UP_STEPS
    params = TrainParams(epochs=1, pictures_per_epoch=8 * steps, threads=1, **values)
    samples = {sample.id: sample for sample in find_samples(Path(data))}
    split = json.loads(Path(manifest).read_text(encoding="utf-8"))
    training, held_out = ([samples[name] for name in split[part]] for part in _PARTS)
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        loop.train(training, held_out, params, Path(folder), progress=clock.batches, logger=clock)
    for kind, (start, end, validated) in zip(
        ("wall", "processor"), zip(*clock.marks, strict=True), strict=True
    ):
        crop_s, validation_s = (end - start) / int(crops), validated - end
        rate = EPOCH / (EPOCH * crop_s + validation_s)
        sys.stdout.write(
            f"{kind}: {1000 * crop_s:.1f} ms a crop, {validation_s:.1f} s a validation, "
            f"{rate:.2f} crops/s in an epoch of {EPOCH}\n"
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
