"""The curves of a run that was stopped, and goes on."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from magtiles_seg import pipeline
from magtiles_seg.config import Params, load_params
from magtiles_seg.dataset.synthetic import write_dataset

pytest.importorskip("dvclive")

RUN = {
    "architecture": "nano",
    "pretrained": "false",
    "epochs": 3,
    "pictures_per_epoch": 8,
    "batch_size": 4,
    "crop_px": 64,
    "threads": 1,
}


@pytest.fixture
def params(tmp_path: Path) -> Params:
    data = write_dataset(tmp_path / "data", tiles=12)
    wanted = [f"data_load.directory={data}", "data_load.checksums=null"]
    found = load_params(None, [*wanted, *(f"train.{name}={RUN[name]}" for name in RUN)])
    pipeline.split(found, tmp_path / "split.json")
    return found


def stopping(epoch: int) -> Any:  # noqa: ANN401 - of any items
    """Return a progress that stands for a kill at the start of an epoch."""

    def show(batches: Iterable[Any], _steps: int, title: str) -> Iterable[Any]:
        if title == f"epoch {epoch}/3":
            raise KeyboardInterrupt
        return batches

    return show


def test_curves_of_a_run_killed_while_they_were_written_are_whole_in_the_end(
    params: Params, tmp_path: Path
) -> None:
    what, curves = (params, tmp_path / "split.json", tmp_path / "run"), tmp_path / "run" / "dvclive"
    for epoch in (1, 2, 3):
        with pytest.raises(KeyboardInterrupt):
            pipeline.train(*what, progress=stopping(epoch))
        for name, half in (("metrics.json", ""), ("params.yaml", "a: [")):
            (curves / name).write_text(half)
    table = curves / "plots" / "metrics" / "loss.tsv"
    pictures = [*curves.rglob("*.png")]
    assert pictures
    pipeline.train(*what)
    for _ in range(2):  # a finished run leaves them as they are
        rows = [line.split("\t") for line in table.read_text().splitlines()]
        assert [row[0] for row in rows] == ["step", "0", "1", "2"]
        assert json.loads((curves / "metrics.json").read_text())["step"] == 2
        assert "nano" in (curves / "params.yaml").read_text()
        assert all(path.exists() for path in pictures)
        pipeline.train(*what)
