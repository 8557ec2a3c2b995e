from __future__ import annotations

import importlib
import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from magtiles_seg.batch import Job, local_engine
from magtiles_seg.batch.local_engine import run_local
from magtiles_seg.batch.source import freeze
from magtiles_seg.errors import BackendError

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
