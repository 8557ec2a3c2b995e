"""One verdict a tile from the rows of a finished run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from magtiles_seg.batch import Engine, Job, run_batch
from magtiles_seg.errors import DataError
from magtiles_seg.tile import tile_score

ONE = Engine(workers=1)
BY_TENS = r"line-\d/(\d{4})"


def read(path: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = pq.ParquetDataset(path).read().to_pylist()
    return found


def test_run_batch_grouped_has_a_row_for_every_tile(make_job: Callable[..., Job]) -> None:
    job = make_job()
    outcome = run_batch(job, ONE, group_by=BY_TENS)  # 60 pictures, ten a tile, every 20th broken
    scores = {row["path"]: row["score"] for row in read(job.out / "parts")}
    tiles = read(job.out / "tiles.parquet")
    assert {row["tile"]: row["pictures"] for row in tiles} == {f"{n:04d}": 10 for n in range(6)}
    assert sorted(path for row in tiles for path in row["paths"]) == sorted(scores)
    for row in tiles:
        broken = int(row["tile"]) % 2 == 0
        assert (row["error"] == "1 of its 10 pictures have an error") is broken
        assert (row["verdict"] is None) is broken
        if not broken:
            assert row["score"] == tile_score(scores[path] for path in row["paths"])
    verdicts = Counter(row["verdict"] or "error" for row in tiles)
    assert outcome.tiles == dict(verdicts)
    assert outcome.tiles["error"] == 3


def test_run_batch_finished_is_grouped_afterwards_without_new_work(
    make_job: Callable[..., Job],
) -> None:
    job = make_job()
    first = run_batch(job, ONE)
    assert (first.tiles, (job.out / "tiles.parquet").exists()) == ({}, False)
    before = {path: path.stat().st_mtime_ns for path in (job.out / "parts").iterdir()}
    again = run_batch(job, ONE, group_by=BY_TENS)
    assert replace(again, tiles={}) == first
    assert sum(again.tiles.values()) == 6
    assert before == {path: path.stat().st_mtime_ns for path in (job.out / "parts").iterdir()}


def test_run_batch_group_by_that_fits_not_every_name_is_refused_before_work(
    make_job: Callable[..., Job],
) -> None:
    job = make_job()
    with pytest.raises(DataError, match=r"tells no tile for 40 pictures"):
        run_batch(job, ONE, group_by=r"line-1/(\d+)")
    assert not job.out.exists()
