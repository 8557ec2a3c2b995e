from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from magtiles_seg.batch import Engine, Job, run_batch
from magtiles_seg.errors import BackendError

pytest.importorskip("ray")

pytestmark = [
    pytest.mark.endurance,
    # Ray's own code leaves sockets to the garbage collector and uses what Python has deprecated.
    pytest.mark.filterwarnings("default"),
]

TIMES = {"read_ms", "decode_ms", "segment_ms"}


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    import ray

    ray.init(num_cpus=3, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


def rows(job: Job) -> list[dict[str, Any]]:
    found = pq.ParquetDataset(job.out / "parts").read().to_pylist()
    return [{key: value for key, value in row.items() if key not in TIMES} for row in found]


def kill_a_worker(job: Job) -> list[int]:
    """Kill the worker that wrote the first part, as soon as it did; return what was killed."""
    killed: list[int] = []

    def watch() -> None:
        while not (written := list(job.out.glob("parts/part-*"))):
            time.sleep(0.01)
        about = pq.read_schema(written[0]).metadata[b"magtiles_seg"]
        killed.append(json.loads(about)["pid"])
        os.kill(killed[0], signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()
    return killed


@pytest.mark.usefixtures("cluster")
def test_run_ray_worker_killed_gives_the_rows_of_the_local_engine(
    make_job: Callable[..., Job], make_archive: Callable[[int], Path], tmp_path: Path
) -> None:
    source = str(make_archive(600))
    local = make_job(source=source, out=tmp_path / "local", part_rows=10, masks=True)
    run_batch(local, Engine(workers=1))
    remote = make_job(source=source, out=tmp_path / "ray", part_rows=10, masks=True)
    killed = kill_a_worker(remote)
    outcome = run_batch(remote, Engine(name="ray", workers=2))
    assert killed
    assert (outcome.pictures, outcome.errors) == (600, 30)
    assert rows(remote) == rows(local)
    for mask in (local.out / "masks").rglob("*.png"):
        assert (remote.out / mask.relative_to(local.out)).read_bytes() == mask.read_bytes()


@pytest.mark.usefixtures("cluster")
def test_run_ray_goes_on_where_the_local_engine_was_stopped(
    make_job: Callable[..., Job],
) -> None:
    job = make_job(part_rows=20)
    run_batch(job, Engine(workers=1))
    job.part_path(2).unlink()
    kept = job.part_path(0).stat().st_mtime_ns
    assert run_batch(job, Engine(name="ray", workers=1)).pictures == 60
    assert job.part_path(0).stat().st_mtime_ns == kept


@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize(("threads", "gpus"), [(4, 0.0), (1, 1.0)], ids=["more_cores", "a_gpu"])
def test_ray_worker_that_this_machine_has_no_room_for_is_refused(
    threads: int, gpus: float, tmp_path: Path
) -> None:
    from magtiles_seg.batch.ray_engine import run_ray

    job = Job(source=str(tmp_path), out=tmp_path / "out")
    words = f"one worker takes {threads} CPUs and {gpus:g} GPUs; Ray has 3 and 0 here"
    with pytest.raises(BackendError, match=words):
        run_ray(job, [0], workers=1, threads=threads, gpus=gpus, report=lambda _, __: None)


@pytest.mark.parametrize(
    ("address", "words"),
    [(None, "Ray does not start"), ("10.0.0.9:6379", r"Ray cluster 10\.0\.0\.9:6379 is not")],
)
def test_ray_that_does_not_start_is_an_error_of_ours(
    address: str | None, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    from magtiles_seg.batch import ray_engine

    def fail(**_: object) -> None:
        raise Exception("The current node timed out during startup.")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", fail)
    job = Job(source=str(tmp_path), out=tmp_path / "out")
    with pytest.raises(BackendError, match=words):
        ray_engine.run_ray(
            job, [0], workers=1, threads=1, address=address, report=lambda _, __: None
        )
