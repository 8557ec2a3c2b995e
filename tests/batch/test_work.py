from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest

from magtiles_seg import image
from magtiles_seg.batch import Job
from magtiles_seg.batch import work as module
from magtiles_seg.batch.parquet import SCHEMA
from magtiles_seg.batch.source import freeze
from magtiles_seg.batch.work import PartWorker
from magtiles_seg.infer.segmenter import Segmenter
from magtiles_seg.review.settings import ReviewSettings


def worker(job: Job) -> PartWorker:
    (job.out / "parts").mkdir(parents=True)
    freeze(map(str, Path(job.source).rglob("*.jpg")), job.listing, part_rows=job.part_rows)
    return PartWorker(job)


def rows(job: Job, part: int = 0) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = pq.read_table(job.part_path(part)).to_pylist()
    return found


def test_run_rows_say_what_the_segmenter_says(make_job: Callable[..., Job], model: Path) -> None:
    job = make_job(masks=True)
    assert worker(job).run(0) == (7, 1)
    assert pq.read_schema(job.part_path(0)).equals(SCHEMA)
    broken, *good = rows(job)
    assert broken["verdict"] is None
    assert "damaged" in broken["error"] or "cannot be decoded" in broken["error"]
    with Segmenter(model, threads=1) as segmenter:
        for row in good:
            result = segmenter(row["path"])
            assert row["sha256"] == hashlib.sha256(Path(row["path"]).read_bytes()).hexdigest()
            assert (row["verdict"], row["score"]) == (result.verdict, result.score)
            assert (row["height_px"], row["width_px"]) == result.mask.shape
            assert [d["area_px"] for d in row["defects"]] == [d.area_px for d in result.defects]
            assert row["mask_sha256"] == hashlib.sha256(result.mask.tobytes()).hexdigest()
            mask = cv2.imread(str(job.out / row["mask_path"]), cv2.IMREAD_UNCHANGED)
            assert mask is not None
            assert np.array_equal(mask, result.mask * 255)
            assert row["model_sha256"] == segmenter.spec.sha256
            assert row["error"] is None
            assert min(row["read_ms"], row["decode_ms"], row["segment_ms"]) > 0


def test_run_careful_gives_the_same_rows(make_job: Callable[..., Job]) -> None:
    job = make_job()
    part_worker = worker(job)
    part_worker.run(1)
    eager = rows(job, 1)
    part_worker.run(1, careful=True)
    for one, other in zip(eager, rows(job, 1), strict=True):
        for key in one.keys() - {"read_ms", "decode_ms", "segment_ms"}:
            assert one[key] == other[key]


def test_run_does_not_try_what_is_given_as_unreadable(make_job: Callable[..., Job]) -> None:
    job = make_job()
    assert worker(job).run(0, unreadable={3: "it kills"}) == (7, 2)
    assert rows(job)[3]["error"] == "it kills"
    assert rows(job)[3]["sha256"] is None


def test_run_full_disk_is_waited_out_and_leaves_no_half_part(
    make_job: Callable[..., Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make_job(patience_s=1.0)
    tries: list[int] = []

    def fsync(_: int) -> None:
        tries.append(len(list((job.out / "parts").glob("part-*"))))
        if len(tries) < 3:
            raise OSError(28, "No space left on device")

    part_worker = worker(job)
    monkeypatch.setattr("os.fsync", fsync)
    part_worker.run(0)
    assert tries == [0, 0, 0]
    assert [path.name for path in (job.out / "parts").iterdir()] == ["part-00000000.parquet"]


def test_run_disk_that_stays_full_raises(
    make_job: Callable[..., Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fsync(_: int) -> None:
        raise OSError(28, "No space left on device")

    job = make_job()
    part_worker = worker(job)
    monkeypatch.setattr("os.fsync", fsync)
    with pytest.raises(OSError, match="No space left"):
        part_worker.run(0)
    assert not list((job.out / "parts").iterdir())


def test_fetched_ahead_is_bounded(
    make_job: Callable[..., Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make_job(part_rows=60, readers=2)
    part_worker = worker(job)
    read: list[int] = []
    original = image.read_image

    def counted(data: bytes) -> Any:  # noqa: ANN401  (an array)
        read.append(1)
        return original(data)

    ahead: list[int] = []
    monkeypatch.setattr(module, "read_image", counted)
    part_worker.run(0, announce=lambda place: ahead.append(len(read) - place))
    assert len(ahead) == 60
    assert max(ahead) <= 2 * 2 + 1


def test_run_keeps_unsure_pictures_for_review(make_job: Callable[..., Job], model: Path) -> None:
    segmenter = {"model": model, "threads": 1, "review_score": 0.0, "reject_score": 1.0}
    job = make_job(segmenter=segmenter)
    review = ReviewSettings(directory=job.out.parent / "review", reasons=("review",))
    worker(replace(job, review=review)).run(0)
    kept = review.folder()
    records = [kept.read(entry.name)[0] for entry in kept.entries()]
    assert {record["source"] for record in records} == {
        row["path"] for row in rows(job) if row["error"] is None
    }
    assert {record["run"] for record in records} == {review.run}
