"""What the records of a line PC hold that is killed, stopped or loses its power at any moment."""

from __future__ import annotations

import csv
import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import line_child
import pyarrow.parquet as pq
import pytest

PICTURES, RATE = 60, 2000.0  # 3840 lines, two seconds
CHILD = [sys.executable, str(Path(line_child.__file__))]
Row = dict[str, Any]


def options(out: Path, *more: str) -> list[str]:
    return ["--out", str(out), "--records", "jsonl,csv,parquet", "--strip-rows", "32", *more]


def run_once(web: Path, out: Path, sent: signal.Signals | None, after_s: float) -> int:
    """Run a stream and send a signal some time after its records were begun."""
    pace = () if sent is None else ("--line-rate", str(RATE))
    child = subprocess.Popen(
        [*CHILD, str(web), *options(out, *pace)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    if sent is not None:
        while not (out / "run.json").exists():
            assert child.poll() is None, child.stderr and child.stderr.read()
            time.sleep(0.01)
        time.sleep(after_s)
        child.send_signal(sent)
    child.communicate(timeout=60)
    return child.returncode


def read_back(out: Path) -> dict[str, list[Row]]:
    """Return the rows of each format; a damaged file is an error here."""
    lines = [
        json.loads(line)
        for path in sorted(out.glob("defects*.jsonl"))
        for line in path.read_text().splitlines()
    ]
    rows: list[Row] = []
    for path in sorted(out.glob("defects*.csv")):
        with path.open(newline="") as file:
            rows += csv.DictReader(file, strict=True)
    for row in rows:
        assert None not in row
        assert None not in row.values()
        row["first_line"] = int(row["first_line"])
        row["last_line"] = int(row["last_line"]) if row["last_line"] else None
    tables = [pq.read_table(path) for path in sorted(out.glob("*.parquet"))]
    assert not list(out.glob("*.open"))
    return {
        "jsonl": lines,
        "csv": rows,
        "parquet": [row for table in tables for row in table.to_pylist()],
    }


def defects(rows: list[Row], run: str) -> list[tuple[int, int]]:
    found = [row for row in rows if row["run"] == run and row["kind"] == "defect"]
    return sorted((row["first_line"], row["last_line"]) for row in found)


def check_moment(folder: Path, sent: signal.Signals, after_s: float) -> None:
    """Interrupt a run, start another, and hold the records of both against the web."""
    web, out = folder / "web", folder / "out"
    drawn = line_child.draw_web(web, PICTURES)
    code = run_once(web, out, sent, after_s)
    stopped = json.loads((out / "run.json").read_text())
    run_once(web, out, None, 0)
    second = json.loads((out / "run.json").read_text())["run"]
    for rows in read_back(out).values():
        assert len({row["id"] for row in rows}) == len(rows)
        assert defects(rows, second) == drawn
        gaps = [row for row in rows if row.get("reason") == "not running"]
        if stopped["ended"] == "end":
            assert not gaps
            assert defects(rows, stopped["run"]) == drawn
            continue
        (gap,) = gaps
        assert gap["after_run"] == stopped["run"]
        assert gap["since"] <= gap["until"]
        known = defects(rows, stopped["run"])
        unseen = [gap["first_line"]]
        unseen += [row["first_line"] for row in rows if row.get("reason") == "interrupted"]
        assert set(known) >= {one for one in drawn if one[1] < min(unseen)}
        if sent != signal.SIGKILL:
            assert code in (-sent, 130)
            ends = [row["first_line"] for row in rows if row.get("reason") == "interrupted"]
            begun = [one for one in drawn if one[0] < ends[0]]
            assert [first for first, _ in known] == [first for first, _ in begun]
        else:
            assert set(known) <= set(drawn)


SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)


@pytest.mark.parametrize("sent", SIGNALS, ids=lambda sent: sent.name)
def test_interrupted_stream_keeps_what_it_found_and_the_next_run_reports_the_gap(
    tmp_path: Path, sent: signal.Signals
) -> None:
    check_moment(tmp_path, sent, 1.4)


@pytest.mark.endurance
@pytest.mark.parametrize("moment", range(50))
def test_stream_interrupted_at_a_random_moment_loses_no_finished_defect(
    tmp_path: Path, moment: int
) -> None:
    chance = random.Random(moment)
    check_moment(tmp_path, SIGNALS[moment % 3], chance.uniform(0, 2.2))
