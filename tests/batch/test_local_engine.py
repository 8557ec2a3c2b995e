from __future__ import annotations

import importlib
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from magtiles_seg.batch import Job, local_engine
from magtiles_seg.batch.local_engine import StageTimes, pictures_per_s, run_local
from magtiles_seg.batch.source import Reader, freeze
from magtiles_seg.batch.work import PartWorker
from magtiles_seg.errors import BackendError
from magtiles_seg.infer.segmenter import Segmenter

DEADLY = """
import os
from magtiles_seg.batch import local_engine, work
from magtiles_seg.image import read_image

serve = local_engine._serve

def read(data):
    if data == b"deadly":
        os._exit(9)
    return read_image(data)

def deadly(job, threads, pipe):
    work.read_image = read
    serve(job, threads, pipe)

def stillborn(job, threads, pipe):
    os._exit(9)

def recorded(job, threads, pipe):
    part, unreadable, careful = pipe.recv()
    with open(os.environ["TRIES"], "a") as file:
        file.write(f"{careful} {dict(unreadable)}\\n")
    pipe.send(("at", 0))
    if not unreadable:
        os._exit(9)
    pipe.send(("done", (1, 1)))
    pipe.recv()
"""


@pytest.fixture
def deadly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:  # noqa: ANN401  (a module)
    """Import a module that worker processes can import too."""
    (tmp_path / "deadly_worker.py").write_text(DEADLY)
    monkeypatch.syspath_prepend(tmp_path)
    return importlib.import_module("deadly_worker")


def prepare(job: Job, names: list[Path]) -> int:
    (job.out / "parts").mkdir(parents=True)
    return freeze(map(str, names), job.listing, part_rows=job.part_rows).parts


def rows(job: Job) -> dict[str, Any]:
    found = pq.ParquetDataset(job.out / "parts").read().to_pylist()
    assert len({row["path"] for row in found}) == len(found)
    return {Path(row["path"]).name: row for row in found}


def test_run_local_replaces_a_worker_that_is_killed(
    make_job: Callable[..., Job], archive: Path
) -> None:
    job = make_job()
    parts = prepare(job, list(archive.rglob("*.jpg")))
    killed: list[int] = []

    def report(done: int, _: int) -> None:
        if done > 10 and not killed:
            pid = multiprocessing.active_children()[0].pid
            assert pid is not None
            killed.append(pid)
            os.kill(pid, signal.SIGKILL)

    run_local(job, range(parts), workers=2, threads=1, report=report)
    assert killed
    assert len(rows(job)) == 60


def test_run_local_worker_that_is_killed_between_two_parts_is_replaced(
    make_job: Callable[..., Job], archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make_job()
    parts = prepare(job, list(archive.rglob("*.jpg")))
    give, given = local_engine._Worker.give, []

    def give_to_the_dead(worker: Any, task: Any) -> None:  # noqa: ANN401  (private types)
        given.append(task.part)
        if len(given) == 2:
            worker.process.kill()
            worker.process.join()
        give(worker, task)

    monkeypatch.setattr(local_engine._Worker, "give", give_to_the_dead)
    run_local(job, range(parts), workers=1, threads=1, report=lambda *_: None)
    assert len(given) == parts + 1
    assert len(rows(job)) == 60


def test_run_local_picture_that_kills_its_worker_becomes_a_row(
    make_job: Callable[..., Job],
    tmp_path: Path,
    archive: Path,
    deadly: Any,  # noqa: ANN401  (a module)
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names = [*archive.rglob("*[1-9].jpg")][:9]
    (tmp_path / "bad.jpg").write_bytes(b"deadly")
    job = make_job()
    parts = prepare(job, [*names, tmp_path / "bad.jpg"])
    monkeypatch.setattr(local_engine, "_serve", deadly.deadly)
    run_local(job, range(parts), workers=1, threads=1, report=lambda *_: None)
    found = rows(job)
    assert len(found) == 10
    errors = {name: row["error"] for name, row in found.items() if row["error"]}
    assert errors == {"bad.jpg": "its worker was lost twice over it: exit code 9"}


def test_run_local_part_is_tried_twice_at_full_pace_before_it_is_done_with_care(
    make_job: Callable[..., Job],
    tmp_path: Path,
    archive: Path,
    deadly: Any,  # noqa: ANN401  (a module)
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    job = make_job()
    prepare(job, list(archive.rglob("*.jpg"))[:1])
    monkeypatch.setenv("TRIES", str(tmp_path / "tries"))
    monkeypatch.setattr(local_engine, "_serve", deadly.recorded)
    run_local(job, [0], workers=1, threads=1, report=lambda *_: None)
    assert (tmp_path / "tries").read_text().splitlines() == [
        "False {}",
        "False {}",
        "True {}",
        "True {0: 'its worker was lost twice over it: exit code 9'}",
    ]


def test_run_batch_from_a_script_without_a_main_guard_does_the_work_once(
    archive: Path, model: Path, tmp_path: Path
) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "from pathlib import Path\n"
        "from magtiles_seg.batch import Engine, Job, run_batch\n"
        "print('begun', flush=True)\n"
        f"job = Job(source={str(archive)!r}, out=Path({str(tmp_path / 'out')!r}),\n"
        f"          segmenter={{'model': {str(model)!r}, 'threads': 1}})\n"
        "print(run_batch(job, Engine(workers=1)).pictures)\n"
    )
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout.split() == ["begun", "60"]


def test_run_local_workers_that_never_start_end_the_run(
    make_job: Callable[..., Job],
    archive: Path,
    deadly: Any,  # noqa: ANN401  (a module)
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    job = make_job()
    prepare(job, list(archive.rglob("*.jpg")))
    monkeypatch.setattr(local_engine, "_serve", deadly.stillborn)
    with pytest.raises(BackendError, match=r"5 workers were lost .* exit code 9"):
        run_local(job, [0], workers=1, threads=1, report=lambda *_: None)


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
