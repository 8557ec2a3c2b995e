"""Files of records: appended, mended, rotated, and kept through a full disk."""

from __future__ import annotations

import csv
import json
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from magtiles_seg.errors import ConfigError
from magtiles_seg.linescan.defects import Uninspected, WebDefect
from magtiles_seg.linescan.journal import Journal
from magtiles_seg.linescan.messages import Arrivals
from magtiles_seg.linescan.pages import WebPictures
from magtiles_seg.linescan.parquet import ParquetSink
from magtiles_seg.linescan.sinks import (
    CsvSink,
    JsonLinesSink,
    RecordFile,
    Rotation,
    Sink,
)
from magtiles_seg.linescan.sources import LineBlock

resource = pytest.importorskip("resource")  # not on Windows

EMPTY = LineBlock(rows=np.empty((0, 8), np.uint8), start_line=0)
KINDS: dict[type[RecordFile], str] = {
    JsonLinesSink: "jsonl",
    CsvSink: "csv",
    ParquetSink: "parquet",
}
EVERY_KIND = pytest.mark.parametrize("kind", KINDS, ids=KINDS.values())


def defect(line: int) -> WebDefect:
    return WebDefect(
        label="crack",
        score=0.75,
        area_px=12,
        bbox_xyxy_px=(5, line, 9, line + 6),
        centroid_xy_px=(6.5, 10.0),
        length_px=6.0,
        width_px=4.0,
        first_line=line,
        last_line=line + 5,
    )


def path_of(folder: Path, kind: type[RecordFile]) -> Path:
    return folder / f"defects.{KINDS[kind]}"


def lines_of(folder: Path) -> list[int]:
    """Return the first lines of all records in a folder, in the files' order."""
    found: list[int] = []
    live_last = sorted(folder.glob("defects*"), key=lambda path: (path.stem == "defects", path))
    for path in live_last:
        if path.suffix == ".jsonl":
            found += [json.loads(line)["first_line"] for line in path.read_text().splitlines()]
        elif path.suffix == ".csv":
            with path.open(newline="") as file:
                found += [int(row["first_line"]) for row in csv.DictReader(file)]
        elif path.suffix == ".parquet":
            found += pq.read_table(path)["first_line"].to_pylist()
    return found


@contextmanager
def full_disk(left_bytes: int) -> Iterator[None]:
    """Let no file of this process outgrow a size: the system cuts writes short, then refuses."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (left_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@EVERY_KIND
def test_second_run_appends_under_its_own_run(tmp_path: Path, kind: type[RecordFile]) -> None:
    for run in ("a", "b"):
        sink = kind(path_of(tmp_path, kind), run=run)
        sink.write(defect(10))
        sink.close()
        sink.close()
    assert lines_of(tmp_path) == [10, 10]
    text = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert b"a-00000001" in text
    assert b"b-00000001" in text


@pytest.mark.parametrize("tail", [b'{"kind": "def', b"crack,0.7", b"\0" * 700, b"x\0\0\n\0"])
@EVERY_KIND
def test_torn_end_of_a_file_is_cut_off_at_the_next_start(
    tmp_path: Path, kind: type[RecordFile], tail: bytes
) -> None:
    first = kind(path_of(tmp_path / "first", kind), run="a")
    first.write(defect(10))
    (tmp_path / first.live.name).write_bytes(first.live.read_bytes() + tail)
    first.close()
    told: list[str] = []
    other = kind(path_of(tmp_path, kind), run="b", note=told.append)
    other.write(defect(20))
    other.close()
    assert lines_of(tmp_path) == [10, 20]
    assert [line.split(": ", 1)[1] for line in told] == [
        f"{len(tail)} bytes of a torn last line were cut off"
    ]


def test_csv_torn_in_its_header_gets_a_whole_one(tmp_path: Path) -> None:
    path = tmp_path / "defects.csv"
    path.write_bytes(b"kind,lab")
    sink = CsvSink(path)
    sink.write(defect(10))
    sink.close()
    assert lines_of(tmp_path) == [10]


def test_csv_of_an_older_version_is_put_away_untouched(tmp_path: Path) -> None:
    old = b"kind,label,score\ndefect,crack,0.5\n"
    path, told = tmp_path / "defects.csv", list[str]()
    path.write_bytes(old)
    sink = CsvSink(path, note=told.append)
    sink.write(defect(10))
    sink.close()
    (aside,) = tmp_path.glob("defects-before-*.csv")
    assert aside.read_bytes() == old
    assert aside.name in told[0]


def test_json_lines_of_an_older_version_are_appended_to(tmp_path: Path) -> None:
    path = tmp_path / "defects.jsonl"
    path.write_text('{"kind": "defect", "first_line": 3}\n')
    sink = JsonLinesSink(path, rotation=Rotation(most_bytes=1))
    sink.write(defect(10))
    sink.close()
    assert lines_of(tmp_path) == [3, 10]
    assert len(list(tmp_path.glob("defects-before-*.jsonl"))) == 1


@EVERY_KIND
def test_file_is_rotated_by_size_and_nothing_is_lost_or_out_of_order(
    tmp_path: Path, kind: type[RecordFile]
) -> None:
    sink = kind(path_of(tmp_path, kind), run="a", rotation=Rotation(most_bytes=2000, most_s=None))
    for line in range(100):
        sink.write(defect(line))
    sink.close()
    assert lines_of(tmp_path) == list(range(100))
    sealed = sorted(tmp_path.glob(f"defects-*.{KINDS[kind]}"))
    assert len(sealed) >= 5
    assert sealed[0].stem == "defects-a-00000001"
    assert not list(tmp_path.glob("*.open"))


@EVERY_KIND
def test_file_is_rotated_by_time_even_if_nothing_is_found(
    tmp_path: Path, kind: type[RecordFile], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    monkeypatch.setattr("magtiles_seg.linescan.sinks.time.monotonic", lambda: clock[0])
    sink = kind(path_of(tmp_path, kind), run="a", rotation=Rotation(most_s=60))
    sink.write(defect(1))
    clock[0] = 59.0
    sink.lines(EMPTY)
    assert not list(tmp_path.glob("defects-*"))
    clock[0] = 61.0
    sink.lines(EMPTY)
    assert list(tmp_path.glob("defects-a-00000001*"))
    monkeypatch.undo()
    sink.close()


@pytest.mark.parametrize("kind", [JsonLinesSink, CsvSink])
def test_age_of_a_file_counts_on_over_a_new_start(tmp_path: Path, kind: type[RecordFile]) -> None:
    path = path_of(tmp_path, kind)
    first = kind(path, run="a")
    first.write(defect(1))
    first.close()
    yesterday = (datetime.now(UTC) - timedelta(hours=25)).isoformat(timespec="milliseconds")
    at = next(word for word in re.findall(r"[\d-]+T[\d:.]+Z", path.read_text(encoding="utf-8")))
    path.write_text(path.read_text(encoding="utf-8").replace(at, yesterday), encoding="utf-8")
    second = kind(path, run="b")
    second.write(defect(2))
    second.close()
    assert (tmp_path / f"defects-a-00000001{path.suffix}").exists()
    assert lines_of(tmp_path) == [1, 2]


def test_arrival_of_a_finding_is_that_of_the_block_with_its_last_line() -> None:
    arrivals, rows = Arrivals(), np.empty((6, 8), np.uint8)
    for start_line, arrived_s in ((0, 1.0), (6, 2.0), (12, 3.0)):
        arrivals.lines(LineBlock(rows, start_line, arrived_s))
    assert [arrivals.of(defect(line)) for line in (0, 1, 6, 7)] == [1.0, 2.0, 2.0, 3.0]


@EVERY_KIND
@settings(max_examples=15)
@given(sizes=st.lists(st.integers(0, 400), max_size=6), lines=st.integers(1, 30))
def test_full_disk_is_an_alarm_and_every_line_is_written_when_there_is_room(
    tmp_path_factory: pytest.TempPathFactory,
    kind: type[RecordFile],
    sizes: list[int],
    lines: int,
) -> None:
    folder, told = tmp_path_factory.mktemp("disk"), list[str]()
    sink = kind(path_of(folder, kind), run="a", note=told.append)
    sink._tried_s = float("-inf")
    room = sink.live.stat().st_size
    for line in range(lines):
        if line < len(sizes):
            room += sizes[line]
            with full_disk(room):
                sink._error = None
                sink.write(defect(line))
        else:
            sink._error = None
            sink.write(defect(line))
    sink.close()
    assert lines_of(folder) == list(range(lines))
    assert sink.state.delivered == lines
    assert sink.state.waiting == 0


@EVERY_KIND
def test_records_that_somebody_removes_or_renames_are_begun_anew(
    tmp_path: Path, kind: type[RecordFile]
) -> None:
    told: list[str] = []
    folder = tmp_path / "out"
    sink = kind(path_of(folder, kind), note=told.append)
    sink.write(defect(0))
    sink.live.rename(tmp_path / "renamed")
    sink.write(defect(1))
    shutil.rmtree(folder)
    sink.write(defect(2))
    sink.write(defect(3))
    sink.close()
    assert lines_of(folder) == [2, 3]
    assert [line.split(": ")[-1] for line in told] == ["a new one is begun"] * 2
    assert sink.state.delivered == 4


@pytest.mark.parametrize("kind", [JsonLinesSink, CsvSink])
def test_removed_records_are_begun_anew_with_a_whole_line_and_named_by_it(
    tmp_path: Path, kind: type[RecordFile], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("magtiles_seg.linescan.sinks._RETRY_S", 0.0)
    sink = kind(path_of(tmp_path, kind), run="R", rotation=Rotation(most_bytes=600))
    sink.write(defect(0))
    with full_disk(left_bytes=sink.live.stat().st_size + 50):
        sink.write(defect(1))  # in part
    sink.live.unlink()
    while not (put_away := list(tmp_path.glob("defects-*"))):
        sink.write(defect(2))
    sink.close()
    assert put_away[0].stem == "defects-R-00000003"
    assert set(lines_of(tmp_path)) == {2}
    assert sink.state.dropped == 1


@EVERY_KIND
def test_state_tells_of_a_full_disk_and_of_what_was_dropped(
    tmp_path: Path, kind: type[RecordFile], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("magtiles_seg.linescan.sinks._MOST_WAITING", 3)
    monkeypatch.setattr("magtiles_seg.linescan.sinks._RETRY_S", 0.0)
    told: list[str] = []
    sink = kind(path_of(tmp_path, kind), run="a", note=told.append)
    with full_disk(sink.live.stat().st_size + 10):
        for line in range(5):
            sink.write(defect(line))
        state = sink.state
        assert (state.error, state.waiting, state.dropped) == ("File too large", 3, 2)
        assert state.alarm is not None
        assert "File too large (3 waiting, 2 dropped)" in state.alarm
    sink.lines(EMPTY)
    assert (sink.state.error, sink.state.waiting, sink.state.dropped) == (None, 0, 2)
    sink.close()
    assert lines_of(tmp_path) == [0, 1, 2]
    assert ["kept" in told[0], "written again; 2 findings" in told[1]] == [True, True]


@EVERY_KIND
def test_disk_that_stays_full_is_an_error_at_the_end_and_damages_nothing(
    tmp_path: Path, kind: type[RecordFile], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("magtiles_seg.linescan.sinks._LAST_TRY_S", 0.0)
    path = path_of(tmp_path, kind)
    sink = kind(path, run="a")
    sink.write(defect(1))
    with full_disk(sink.live.stat().st_size + 10):
        sink.write(defect(2))
        with pytest.raises(OSError, match="1 findings could not be written: File too large"):
            sink.close()
    kind(path, run="b").close()
    assert lines_of(tmp_path) == [1]


def test_parquet_left_half_way_is_finished_once_at_the_next_start(tmp_path: Path) -> None:
    path = tmp_path / "defects.parquet"
    first = ParquetSink(path, run="a")
    first.write(defect(1))
    lines = first.live.read_bytes()
    first.close()
    part = tmp_path / "defects-a-00000001.parquet.open"
    part.write_bytes(lines)  # killed behind the Parquet file, before its lines were deleted
    (tmp_path / "defects-z-00000001.parquet.open").write_bytes(lines)  # and before its Parquet
    (tmp_path / ".0.part.parquet").write_bytes(b"PAR1")  # and in the midst of it
    ParquetSink(path, run="b").close()
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "defects-a-00000001.parquet",
        "defects-z-00000001.parquet",
    ]
    assert lines_of(tmp_path) == [1, 1]


@pytest.mark.parametrize("value", [0, -1, float("nan")])
def test_rotation_at_nothing_is_config_error(value: float) -> None:
    with pytest.raises(ConfigError, match="most_s is"):
        Rotation(most_s=value)


def test_journal_of_a_killed_run_gives_the_gap_from_its_settled_line(tmp_path: Path) -> None:
    file = JsonLinesSink(tmp_path / "defects.jsonl", run="a")
    killed = Journal(tmp_path, "a", [file], every_s=0.01)
    assert killed.gap is None
    killed.begin()
    killed.settle(500)
    state = {"settled_line": 0}
    while state["settled_line"] < 500:
        state = json.loads((tmp_path / "run.json").read_text())
    content = (tmp_path / "run.json").read_text()
    killed.close()
    (tmp_path / "run.json").write_text(content)  # as it stood when it was killed
    gap = Journal(tmp_path, "b").gap
    assert gap is not None
    assert (gap.first_line, gap.end_line, gap.reason, gap.after_run) == (
        500,
        None,
        "not running",
        "a",
    )
    assert gap.since is not None
    assert gap.until is not None
    assert gap.since <= gap.until


def test_journal_sweeps_what_a_kill_left_of_its_file(tmp_path: Path) -> None:
    (tmp_path / ".0123.part.json").write_text("{")
    (tmp_path / "mine.json").write_text("{}")
    journal = Journal(tmp_path, "a")
    journal.begin()
    journal.close()
    assert sorted(path.name for path in tmp_path.glob("*")) == ["mine.json", "run.json"]


def test_journal_does_not_settle_lines_whose_findings_wait_for_the_disk(tmp_path: Path) -> None:
    file = JsonLinesSink(tmp_path / "defects.jsonl", run="a")
    journal = Journal(tmp_path, "a", [file], every_s=1000)
    journal.begin()
    with full_disk(300):
        file.write(defect(1))
        file.write(defect(2))
        journal.settle(100)
        journal._save()
        assert json.loads((tmp_path / "run.json").read_text())["settled_line"] == 0
    file._error = None
    file.lines(EMPTY)
    journal._save()
    assert json.loads((tmp_path / "run.json").read_text())["settled_line"] == 100
    journal.close()
    file.close()


def test_journal_of_a_web_that_ended_leaves_no_gap(tmp_path: Path) -> None:
    journal = Journal(tmp_path, "a")
    journal.begin()
    journal.settle(None)
    journal.close()
    assert Journal(tmp_path, "b").gap is None


def test_journal_that_is_damaged_is_told_and_everything_before_is_unknown(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{")
    told: list[str] = []
    journal = Journal(tmp_path, "b", note=told.append)
    assert journal.gap is not None
    assert journal.gap.first_line == 0
    assert journal.gap.after_run is None
    assert "is damaged" in told[0]


def test_folder_in_use_by_another_run_is_refused(tmp_path: Path) -> None:
    first = Journal(tmp_path, "a")
    with pytest.raises(ConfigError, match="another run writes to"):
        Journal(tmp_path, "b")
    first.abandon()
    Journal(tmp_path, "b").abandon()


def test_pictures_that_a_full_disk_refuses_are_counted_and_later_ones_written(
    tmp_path: Path,
) -> None:
    pictures: WebPictures = WebPictures(tmp_path, page_rows=8)
    sink: Sink = pictures
    noise = np.random.default_rng(0).integers(0, 255, (64, 64), np.uint8)
    with full_disk(100):
        sink.lines(LineBlock(noise[:32], 0))
        assert pictures.state.dropped == 1
        assert pictures.state.error is not None
    sink.lines(LineBlock(noise[32:], 32))
    sink.close()
    state = pictures.state
    assert (state.dropped, state.error) == (1, None)
    assert len(list(tmp_path.glob("web_*.png"))) == 7


def gap_rows(write: Callable[[Sink], None], folder: Path) -> list[dict[str, object]]:
    sink = JsonLinesSink(folder / "defects.jsonl", run="b")
    write(sink)
    sink.close()
    return [json.loads(line) for line in (folder / "defects.jsonl").read_text().splitlines()]


def test_gap_since_an_earlier_run_is_a_record_with_its_times(tmp_path: Path) -> None:
    gap = Uninspected(first_line=5, end_line=None, reason="not running", since="x", until="y")
    (row,) = gap_rows(lambda sink: sink.write(replace(gap, after_run="a")), tmp_path)
    assert (row["since"], row["until"], row["after_run"], row["run"]) == ("x", "y", "a", "b")
