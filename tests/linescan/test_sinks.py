from __future__ import annotations

import csv
import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from magtiles_seg.errors import ConfigError
from magtiles_seg.linescan.defects import Uninspected, WebDefect
from magtiles_seg.linescan.pages import WebPictures
from magtiles_seg.linescan.sinks import CsvSink, JsonLinesSink
from magtiles_seg.linescan.sources import LineBlock
from magtiles_seg.marking import is_result

DEFECT = WebDefect(
    label="crack",
    score=0.75,
    area_px=12,
    bbox_xyxy_px=(5, 8, 9, 14),
    centroid_xy_px=(6.5, 10.0),
    length_px=6.0,
    width_px=4.0,
    first_line=8,
    last_line=13,
)
GAP = Uninspected(first_line=20, end_line=23, reason="lost", length_mm=0.3)
OPEN_GAP = Uninspected(first_line=30, end_line=None, reason="broken off")


def test_json_lines_hold_every_field_as_soon_as_it_is_written(tmp_path: Path) -> None:
    path = tmp_path / "new" / "web.jsonl"
    sink = JsonLinesSink(path)
    for found in (DEFECT, GAP, OPEN_GAP):
        sink.write(found)
    defect, gap, open_gap = (json.loads(line) for line in path.read_text().splitlines())
    assert (defect["kind"], defect["label"], defect["bbox_xyxy_px"]) == (
        "defect",
        "crack",
        [5, 8, 9, 14],
    )
    assert (defect["first_line"], defect["last_line"], defect["complete"]) == (8, 13, True)
    assert [gap[name] for name in ("kind", "first_line", "end_line", "reason", "length_mm")] == [
        "uninspected",
        20,
        23,
        "lost",
        0.3,
    ]
    assert gap["run"] == defect["run"]
    assert [one["id"].removeprefix(gap["run"]) for one in (defect, gap)] == [
        "-00000001",
        "-00000002",
    ]
    assert open_gap["end_line"] is None
    sink.close()
    sink.close()


def test_csv_has_a_row_a_finding(tmp_path: Path) -> None:
    path = tmp_path / "web.csv"
    sink = CsvSink(path)
    for found in (DEFECT, GAP, OPEN_GAP):
        sink.write(found)
    sink.close()
    with path.open(newline="") as file:
        defect, gap, open_gap = csv.DictReader(file)
    assert (defect["kind"], defect["label"], defect["x0_px"], defect["x1_px"]) == (
        "defect",
        "crack",
        "5",
        "9",
    )
    assert (defect["first_line"], defect["last_line"], defect["area_mm2"]) == ("8", "13", "")
    assert (gap["kind"], gap["first_line"], gap["last_line"], gap["reason"]) == (
        "uninspected",
        "20",
        "22",
        "lost",
    )
    assert (open_gap["first_line"], open_gap["last_line"]) == ("30", "")


def test_web_pictures_frame_defects_over_pages_and_tint_unseen_lines(tmp_path: Path) -> None:
    sink = WebPictures(tmp_path, page_rows=10)
    for line in range(0, 55, 5):
        sink.lines(LineBlock(np.full((5, 32), 100, np.uint8), line))
        if line == 15:
            sink.write(DEFECT)
            sink.write(GAP)
    written_before_the_end = sorted(path.name for path in tmp_path.iterdir())
    sink.close()
    names = [f"web_{top:09d}.png" for top in range(0, 60, 10)]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    assert written_before_the_end == names[:3]
    pages = [cv2.imread(str(tmp_path / name)) for name in names]
    web = np.vstack([page for page in pages if page is not None])
    rows, columns = np.nonzero((web != 100).any(axis=2) & (web != 0).any(axis=2))
    framed = rows < 20
    assert (rows[framed].min(), rows[framed].max()) == (6, 15)
    assert {3, 10} <= set(columns[framed])
    assert set(rows[~framed]) == {20, 21, 22}


def test_disk_error_in_pictures_is_an_os_error(tmp_path: Path) -> None:
    sink = WebPictures(tmp_path / "gone", page_rows=4)
    (tmp_path / "gone").rmdir()
    (tmp_path / "gone").write_bytes(b"")
    sink.lines(LineBlock(np.zeros((3, 8), np.uint8), 0))
    with pytest.raises(OSError, match=r"cannot write: .*gone"):
        sink.close()


@pytest.mark.parametrize("sink", [JsonLinesSink, CsvSink])
def test_file_that_another_run_writes_to_is_refused_and_left_alone(
    tmp_path: Path, sink: type[JsonLinesSink | CsvSink]
) -> None:
    path = tmp_path / "defects"
    first = sink(path)
    first.write(DEFECT)
    before = path.read_text()
    with pytest.raises(ConfigError, match=r"another run writes to .*defects now"):
        sink(path)
    assert path.read_text() == before
    first.close()
    sink(path).close()
    assert path.read_text() == before


def test_pages_of_a_web_are_marked_as_results(tmp_path: Path) -> None:
    pictures = WebPictures(tmp_path, page_rows=16)
    pictures.lines(LineBlock(np.zeros((16, 8), np.uint8), 0))
    pictures.close()
    assert [is_result(path) for path in tmp_path.iterdir()] == [True]
