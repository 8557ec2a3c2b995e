from __future__ import annotations

import errno
import json
import multiprocessing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from magtiles_seg.errors import ConfigError, DataError
from magtiles_seg.files import write
from magtiles_seg.image import read_levels
from magtiles_seg.inputs import find_pictures
from magtiles_seg.review import folder as module
from magtiles_seg.review.folder import REASONS, Entry, ReviewFolder

IMAGE = np.random.default_rng(0).integers(0, 255, (40, 50)).astype(np.uint8)
DRAFT = np.pad(np.full((10, 10), 2, np.uint8), ((5, 25), (5, 35)))


def add(
    to: ReviewFolder,
    reason: str = "review",
    interest: float = 0.5,
    **facts: Any,  # noqa: ANN401
) -> str | None:
    return to.add(
        IMAGE, DRAFT, reason=reason, interest=interest, facts={"source": "a.png", **facts}
    )


def test_kept_picture_comes_back_lossless_with_its_lineage(tmp_path: Path) -> None:
    kept = ReviewFolder(tmp_path / "review")
    name = add(kept, score=0.4)
    assert name is not None
    record, draft = kept.read(name)
    assert np.array_equal(read_levels(kept.path / f"{name}.png"), IMAGE)
    assert np.array_equal(draft, DRAFT)
    assert (record["reason"], record["source"], record["score"]) == ("review", "a.png", 0.4)
    assert (record["height_px"], record["width_px"]) == IMAGE.shape
    assert list(find_pictures([str(kept.path)])) == [kept.path / f"{name}.png"]  # no draft


def test_full_folder_drops_the_least_interesting_of_the_fullest_reason(tmp_path: Path) -> None:
    kept = ReviewFolder(tmp_path, most_pictures=4)
    for interest in (0.1, 0.8, 0.3):
        add(kept, "review", interest)
    add(kept, "drift", 0.0)
    assert add(kept, "random", 0.0) is not None
    found = {(entry.reason, entry.interest) for entry in kept.entries()}
    assert found == {("review", 0.8), ("review", 0.3), ("drift", 0.0), ("random", 0.0)}
    assert add(kept, "review", 0.2) is None
    assert len(list(tmp_path.glob("*.png"))) == 8


def test_bytes_are_bounded_and_a_picture_larger_than_all_is_not_kept(tmp_path: Path) -> None:
    kept = ReviewFolder(tmp_path, most_bytes=10_000)
    for _ in range(8):
        add(kept)
    assert sum(file.stat().st_size for file in tmp_path.glob("*.*g*")) <= 10_000
    assert len(kept.entries()) > 1
    assert add(ReviewFolder(tmp_path / "small", most_bytes=100)) is None


@given(
    st.lists(st.tuples(st.sampled_from(REASONS), st.integers(0, 9), st.integers(1, 99))),
    st.integers(1, 20),
    st.integers(1, 500),
)
def test_least_leaves_what_fits_and_no_more_goes_than_must(
    given_: list[tuple[str, int, int]], pictures: int, size: int
) -> None:
    kept = [Entry(i / 9, f"{n:03d}", reason, s) for n, (reason, i, s) in enumerate(given_)]
    gone = list(module._least(kept, pictures, size))
    rest = [entry for entry in kept if entry not in gone]
    assert len(rest) <= pictures
    assert sum(entry.size_bytes for entry in rest) <= size
    if gone:
        back = [*rest, gone[-1]]
        assert len(back) > pictures or sum(entry.size_bytes for entry in back) > size
    for entry in gone:
        assert all(entry < other for other in rest if other.reason == entry.reason)


def test_torn_pictures_of_a_killed_process_are_swept_at_the_next_start(tmp_path: Path) -> None:
    kept = ReviewFolder(tmp_path)
    whole, torn = add(kept), add(kept)
    (tmp_path / f"{torn}.json").unlink()
    left = tmp_path / f".{'a' * 32}.part.png"
    left.write_bytes(b"half")
    (tmp_path / "mine.png").write_bytes(b"of the operator")
    assert [entry.name for entry in kept.entries()] == [whole]
    ReviewFolder(tmp_path).make()
    names = {path.name for path in tmp_path.iterdir()} - {".lock"}
    assert names == {f"{whole}.png", f"{whole}.draft.png", f"{whole}.json", "mine.png"}


def test_failed_write_leaves_no_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: Path, content: bytes | str, *, durable: bool = False) -> None:
        if path.suffix == ".json":
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        write(path, content, durable=durable)

    monkeypatch.setattr(module, "write", fail)
    with pytest.raises(OSError, match="No space"):
        add(ReviewFolder(tmp_path))
    assert ReviewFolder(tmp_path).entries() == []
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


def test_nothing_is_kept_on_a_disk_that_is_nearly_full(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="nothing is kept for review until") as caught:
        add(ReviewFolder(tmp_path, spare_bytes=1 << 60))
    assert caught.value.errno == errno.ENOSPC


def test_changed_picture_is_not_read(tmp_path: Path) -> None:
    kept = ReviewFolder(tmp_path)
    name = str(add(kept))
    (tmp_path / f"{name}.png").write_bytes(b"another")
    with pytest.raises(DataError, match=f"{name}.png was changed"):
        kept.read(name)
    (tmp_path / f"{name}.json").write_text(json.dumps([1]))
    with pytest.raises(DataError, match="record is damaged"):
        kept.read(name)


def test_folder_that_cannot_be_made_is_an_error_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be written to"):
        ReviewFolder(tmp_path / "file" / "review").make()


def add_many(path: Path, count: int) -> None:
    kept = ReviewFolder(path, most_pictures=7)
    for _ in range(count):
        add(kept)


def test_several_processes_keep_within_the_bound_together(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=add_many, args=(tmp_path, 6)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    kept = ReviewFolder(tmp_path, most_pictures=7)
    assert len(kept.entries()) == 7
    for entry in kept.entries():
        kept.read(entry.name)
