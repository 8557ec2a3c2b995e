from __future__ import annotations

import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from filelock import FileLock
from folders import forbid
from made_screens import make_screen

from magtiles_seg import Segmenter
from magtiles_seg.batch import Engine, Job, run_batch, summarize
from magtiles_seg.dataset.synthetic import synthetic_tile
from magtiles_seg.errors import ConfigError, DataError, ModelError
from magtiles_seg.export.graph import rewrite_card
from magtiles_seg.infer.screen import Screen

ONE = Engine(workers=1)


def rows(out: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = pq.ParquetDataset(out / "parts").read().to_pylist()
    return found


def start(job: Job, *options: str) -> subprocess.Popen[bytes]:
    words = ["--part-rows", str(job.part_rows), "--model", str(job.segmenter["model"])]
    code = "import sys; from magtiles_seg.cli import main; sys.exit(main(sys.argv[1:]))"
    return subprocess.Popen(
        [sys.executable, "-c", code, "batch", job.source, "--out", str(job.out), *words, *options],
        start_new_session=True,
    )


def check_exactly_once(job: Job, pictures: int, broken: int) -> None:
    counts = Counter(row["path"] for row in rows(job.out))
    assert len(counts) == pictures
    assert set(counts.values()) == {1}
    assert sum(row["error"] is not None for row in rows(job.out)) == broken
    assert all((row["verdict"] is None) == (row["error"] is not None) for row in rows(job.out))


class Noted:
    """Keeps what a run says."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def listed(self, pictures: int) -> None: ...

    def note(self, text: str) -> None:
        self.notes.append(text)

    def done(self, pictures: int, total: int, errors: int) -> None: ...


def test_run_batch_with_broken_files_has_a_row_for_every_picture(
    make_job: Callable[..., Job],
) -> None:
    seen: list[tuple[int, int, int]] = []

    class Seen:
        def listed(self, pictures: int) -> None:
            assert pictures == 60

        def note(self, text: str) -> None:
            raise AssertionError(text)

        def done(self, pictures: int, total: int, errors: int) -> None:
            seen.append((pictures, total, errors))

    job = make_job()
    outcome = run_batch(job, ONE, Seen())
    assert (outcome.pictures, outcome.errors) == (60, 3)
    assert sum(outcome.verdicts.values()) == 57
    assert seen[0] == (0, 60, 0)
    assert seen[-1] == (60, 60, 3)
    assert [one[0] for one in seen] == sorted(one[0] for one in seen)
    check_exactly_once(job, 60, 3)


def test_run_batch_again_does_only_what_is_missing(make_job: Callable[..., Job]) -> None:
    job = make_job(part_rows=20)
    first = run_batch(job, ONE)
    job.part_path(1).unlink()
    kept = job.part_path(0).stat().st_mtime_ns
    (job.out / "parts" / ".0123456789abcdef.part.parquet").write_bytes(b"half")
    noted = Noted()
    assert run_batch(job, ONE, noted) == first == summarize(job.out)
    assert "60 pictures: it goes on; for pictures that came to the source" in noted.notes[0]
    assert job.part_path(0).stat().st_mtime_ns == kept
    assert len(list((job.out / "parts").iterdir())) == 3


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"segmenter": {"threshold": 0.9}}, r"another decision\.threshold \(was \S+ 0.5, now 0\.9"),
        ({"part_rows": 9}, "another part_rows"),
        ({"source": "."}, "another source"),
    ],
)
def test_run_batch_into_another_run_is_refused(
    make_job: Callable[..., Job], change: dict[str, Any], said: str
) -> None:
    job = make_job()
    job.out.mkdir()
    with job.open_segmenter() as segmenter:
        (job.out / "run.json").write_text(json.dumps(job.identity(segmenter)))
    change = {
        key: {**job.segmenter, **value} if key == "segmenter" else value
        for key, value in change.items()
    }
    with pytest.raises(ConfigError, match=rf"holds a run with {said}.*another --out"):
        run_batch(replace(job, **change), ONE)


def test_run_batch_with_another_model_is_refused(make_job: Callable[..., Job]) -> None:
    job = make_job()
    job.out.mkdir()
    with job.open_segmenter() as segmenter:
        found = {**job.identity(segmenter), "model_sha256": "0" * 64}
    (job.out / "run.json").write_text(json.dumps(found))
    with pytest.raises(ConfigError, match="holds a run with another model_sha256"):
        run_batch(job, ONE)


def test_run_batch_with_another_screen_or_with_one_is_refused(
    make_job: Callable[..., Job], tmp_path: Path
) -> None:
    picture = synthetic_tile(0, defect="crack", size_hw=(256, 256)).image
    screens = [make_screen(tmp_path / "one.onnx", picture), tmp_path / "other.onnx"]
    shutil.copyfile(*screens)
    rewrite_card(screens[1], replace(Screen(screens[1]).card, name="other"))
    without, one, other = (
        make_job(segmenter={"model": make_job().segmenter["model"], "threads": 1, **given})
        for given in ({}, *({"screen": screen} for screen in screens))
    )
    one.out.mkdir()
    with one.open_segmenter() as segmenter:
        (one.out / "run.json").write_text(json.dumps(one.identity(segmenter)))
    for job in (without, other):
        with pytest.raises(ConfigError, match="holds a run with another screen_sha256"):
            run_batch(job, ONE)
    flipped = replace(one, segmenter={**one.segmenter, "flips": True})
    with pytest.raises(ConfigError, match="holds a run with another flips"):
        run_batch(flipped, ONE)


def test_run_batch_into_a_run_that_does_not_say_its_part_rows_is_refused(
    make_job: Callable[..., Job],
) -> None:
    job = make_job()
    job.out.mkdir()
    with job.open_segmenter() as segmenter:
        found = job.identity(segmenter)
    del found["part_rows"]
    (job.out / "run.json").write_text(json.dumps(found))
    with pytest.raises(ConfigError, match=r"another part_rows \(was part_rows None, now"):
        run_batch(job, ONE)


def test_run_batch_beside_a_run_in_the_same_folder_is_refused(
    make_job: Callable[..., Job],
) -> None:
    job = make_job()
    job.out.mkdir()
    with FileLock(job.out / ".lock"), pytest.raises(ConfigError, match="another run writes to"):
        run_batch(job, ONE)


def test_run_batch_with_out_and_odd_files_in_the_source_sees_the_same_pictures_again(
    make_job: Callable[..., Job], make_archive: Callable[[int], Path]
) -> None:
    source = make_archive(3)
    (source / "gone.png").symlink_to("nowhere")
    os.mkfifo(source / "pipe.png")
    (source / "linked").symlink_to(source / "line-1")
    (source / os.fsdecode(b"latin\xfc.jpg")).write_bytes(
        (source / "line-1" / "00001.jpg").read_bytes()
    )
    (source / "._a.jpg").write_bytes(b"of macOS")
    first = make_job(source=str(source), out=source / "first", masks=True)
    assert run_batch(first, ONE).pictures == 6
    second, noted = replace(first, out=source / "second"), Noted()
    outcome = run_batch(second, ONE, noted)
    assert (outcome.pictures, outcome.errors) == (6, 3)
    assert any(note.startswith("left out 3 results of an earlier run") for note in noted.notes)
    errors = {Path(row["path"]).name: row["error"] for row in rows(second.out)}
    assert errors[r"latin\udcfc.jpg"] is None
    assert "No such file" in errors["gone.png"]
    assert "no regular file" in errors["pipe.png"]


def test_run_batch_of_an_empty_folder_is_refused(
    make_job: Callable[..., Job], tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"no picture in .*empty"):
        run_batch(make_job(source=str(tmp_path / "empty")), ONE)


def test_run_batch_edited_list_file_is_another_source(
    make_job: Callable[..., Job], tmp_path: Path, archive: Path
) -> None:
    names = tmp_path / "list.txt"
    names.write_text(f"{archive}/line-0/00000.jpg")
    job = make_job(source=str(names))
    run_batch(job, ONE)
    names.write_text(f"{archive}/line-1/00001.jpg")
    with pytest.raises(ConfigError, match="another source"):
        run_batch(job, ONE)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"name": "spark"}, "unknown engine 'spark'"),
        ({"workers": 0}, "workers must be at least 1"),
        ({"gpus": 0.5}, "for engine 'ray'"),
        ({"name": "ray", "gpus": -1.0}, "gpus is -1.0; expected 0 or more"),
    ],
)
def test_engine_without_sense_is_refused(words: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Engine(**words)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"part_rows": 0}, "part_rows is 0; expected a whole number, at least 1"),
        ({"part_rows": -3}, "part_rows is -3; expected a whole number, at least 1"),
        ({"readers": 0}, "readers is 0; expected a whole number, at least 1"),
        ({"patience_s": float("nan")}, "patience_s is nan; expected 0 or more seconds"),
        ({"patience_s": -1.0}, "patience_s is -1.0; expected 0 or more seconds"),
    ],
)
def test_job_without_sense_is_refused(
    make_job: Callable[..., Job], words: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        make_job(**words)


def kill_at_random(job: Job, kills: int, seed: int, *options: str) -> None:
    """Start the run so many times, kill it each time at another moment, then let it end."""
    rng = random.Random(seed)
    for _ in range(kills):
        with start(job, *options) as process:
            wait_for_parts(job, parts_of(job) + rng.randrange(4), process)
            time.sleep(rng.uniform(0, 0.1))  # somewhere within a part
            assert process.poll() is None, "the run ended before it was killed: give it more to do"
            if rng.random() < 0.5:
                os.killpg(process.pid, signal.SIGKILL)
            else:
                process.kill()  # the workers are left to notice it
    with start(job, *options) as process:
        assert process.wait(300) == 0


def parts_of(job: Job) -> int:
    return len(list(job.out.glob("parts/part-*")))


def wait_for_parts(job: Job, count: int, process: subprocess.Popen[bytes]) -> None:
    while parts_of(job) < count:
        assert process.poll() is None
        time.sleep(0.01)


def test_run_batch_killed_in_the_middle_ends_exact(make_job: Callable[..., Job]) -> None:
    job = make_job(part_rows=2)
    with start(job, "--workers", "1") as process:
        wait_for_parts(job, 1, process)
        process.kill()
    assert parts_of(job) < 30
    with start(job, "--workers", "1") as process:
        assert process.wait(120) == 0
    check_exactly_once(job, 60, 3)


@pytest.mark.parametrize("put", ["another", "damaged"])
def test_run_batch_model_replaced_before_a_worker_is_lost_ends_without_rows_of_both(
    put: str, make_job: Callable[..., Job], model: Path, tmp_path: Path
) -> None:
    used = tmp_path / "used.onnx"
    shutil.copy(model, used)
    job = make_job(segmenter={"model": used, "threads": 1}, part_rows=2)

    class Replacing:
        replaced = False

        def listed(self, pictures: int) -> None: ...

        def note(self, text: str) -> None: ...

        def done(self, pictures: int, total: int, errors: int) -> None:  # noqa: ARG002
            if pictures and not self.replaced:
                self.replaced = True
                if put == "another":
                    with Segmenter(used) as segmenter:
                        rewrite_card(used, replace(segmenter.spec.card, name="another"))
                else:
                    used.write_bytes(b"no model")
                multiprocessing.active_children()[0].kill()

    with pytest.raises(ModelError, match=r"changed since this run began|not a magtiles-seg model"):
        run_batch(job, ONE, Replacing())
    shutil.copy(model, used)
    run_batch(job, ONE)
    assert len({row["model_sha256"] for row in rows(job.out)} - {None}) == 1
    check_exactly_once(job, 60, 3)


@pytest.mark.endurance
def test_run_batch_killed_twenty_times_ends_exact(
    make_job: Callable[..., Job], make_archive: Callable[[int], Path]
) -> None:
    job = make_job(source=str(make_archive(4000)), part_rows=20)
    kill_at_random(job, 20, 0, "--workers", "2", "--masks")
    check_exactly_once(job, 4000, 200)


@pytest.fixture(scope="module")
def kept_run(archive: Path, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Job:
    """A finished run of three parts."""
    out = tmp_path_factory.mktemp("kept") / "out"
    words = {"model": model, "threads": 1}
    job = Job(source=str(archive), out=out, segmenter=words, part_rows=20, patience_s=0.0)
    run_batch(job, ONE)
    return job


@pytest.fixture
def finished(kept_run: Job, tmp_path: Path) -> Job:
    """A copy of that run."""
    shutil.copytree(kept_run.out, tmp_path / "out")
    return replace(kept_run, out=tmp_path / "out")


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("run.json", b"", "holds a damaged run"),
        ("run.json", b"[]", "holds a run with another"),
        ("run.json", b"\xff", "holds a damaged run"),
        ("listing/offsets.npy", b"", "offsets.npy is damaged"),
        ("listing/offsets.npy", b"x", "offsets.npy is damaged"),
        ("listing/names.jsonl", b"", "names.jsonl is damaged: 0 bytes; expected"),
        ("parts/part-00000000.parquet", b"x", "delete that file and start the run again"),
    ],
)
def test_run_batch_into_a_damaged_run_says_what_is_damaged(
    finished: Job, file: str, content: bytes, said: str
) -> None:
    (finished.out / "parts/part-00000001.parquet").unlink()
    (finished.out / file).write_bytes(content)
    with pytest.raises((ConfigError, DataError), match=said):
        run_batch(finished, ONE)


def test_run_batch_of_or_into_a_folder_that_cannot_be_listed_is_refused_at_once(
    make_job: Callable[..., Job], finished: Job, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    job = make_job(out=tmp_path / "new", patience_s=60.0)
    with monkeypatch.context() as patch:
        forbid(patch, Path(job.source))
        with pytest.raises(DataError, match="cannot be listed: Permission denied"):
            run_batch(job, ONE)
    assert not job.out.exists()
    forbid(monkeypatch, finished.out / "parts")
    with pytest.raises(PermissionError, match="parts"):
        run_batch(finished, ONE)


def test_worker_takes_the_threads_of_the_job_and_else_its_share_of_the_cores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("magtiles_seg.batch.run.available_cores", lambda: 16)
    job = Job(source=str(tmp_path), out=tmp_path / "out")
    assert Engine(workers=4).layout(job) == (4, 4)
    assert Engine(workers=4).layout(replace(job, segmenter={"threads": 1})) == (4, 1)
