from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from magtiles_seg.batch import Job
from magtiles_seg.batch.local_engine import StageTimes, pictures_per_s
from magtiles_seg.batch.source import Reader, freeze
from magtiles_seg.batch.work import PartWorker
from magtiles_seg.infer.segmenter import Segmenter


@pytest.mark.parametrize(("readers", "read_s", "segment_s"), [(2, 0.08, 0.0), (8, 0.08, 0.05)])
def test_forecast_of_a_slow_store_and_of_a_slow_model_is_what_a_run_does(
    make_job: Callable[..., Job],
    monkeypatch: pytest.MonkeyPatch,
    readers: int,
    read_s: float,
    segment_s: float,
) -> None:
    job = make_job(part_rows=60, readers=readers)
    (job.out / "parts").mkdir(parents=True)
    names = [str(path) for path in Path(job.source).rglob("*[1-9].jpg")]
    freeze(names, job.listing, part_rows=60)
    read, segment = Reader.read, Segmenter.__call__

    def slow_read(self: Reader, name: str) -> bytes:
        time.sleep(read_s)
        return read(self, name)

    def slow_segment(self: Segmenter, picture: Any) -> Any:  # noqa: ANN401  (as it was)
        time.sleep(segment_s)
        return segment(self, picture)

    monkeypatch.setattr(Reader, "read", slow_read)
    monkeypatch.setattr(Segmenter, "__call__", slow_segment)
    worker = PartWorker(job)
    start = time.perf_counter()
    count, _ = worker.run(0)
    measured = count / (time.perf_counter() - start)
    table = pq.read_table(job.part_path(0)).to_pydict()
    columns = ("read_ms", "decode_ms", "segment_ms")
    times = StageTimes(**{name: sum(table[name]) / count for name in columns})
    forecast = pictures_per_s(times, workers=1, readers=readers)
    assert measured == pytest.approx(forecast, rel=0.25)


def test_forecast_is_bounded_by_the_cores() -> None:
    times = StageTimes(read_ms=1, decode_ms=10, segment_ms=40)
    assert pictures_per_s(times, workers=1, readers=2, cores=2) == 25
    assert pictures_per_s(times, workers=8, readers=2, cores=2) == 40
