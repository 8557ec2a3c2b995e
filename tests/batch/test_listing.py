from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from magtiles_seg.batch.source import Listing, freeze

NAMES = st.lists(st.text(st.characters(codec=None), min_size=1, max_size=4), max_size=40)


@settings(max_examples=60)
@given(names=NAMES, part_rows=st.integers(1, 9), run=st.integers(1, 9))
def test_freeze_any_names_come_back_once_in_full_parts(
    names: list[str], part_rows: int, run: int
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        listing = freeze(names, Path(folder) / "listing", part_rows=part_rows, run=run)
        parts = [listing.names(part) for part in range(listing.parts)]
    found = [name for part in parts for name in part]
    assert len(found) == listing.pictures == len(set(names))
    assert set(found) == set(names)
    assert all(len(part) == part_rows for part in parts[:-1])
    assert all(parts)


def test_freeze_order_of_arrival_does_not_matter(tmp_path: Path) -> None:
    names = [f"{n:03d}" for n in range(50)]
    one = freeze(names, tmp_path / "a", part_rows=8, run=7)
    other = freeze(reversed(names), tmp_path / "b", part_rows=8, run=11)
    assert [one.names(n) for n in range(7)] == [other.names(n) for n in range(7)]
    assert one.names(0) == names[:8]


def test_freeze_leaves_no_sorted_runs_behind(tmp_path: Path) -> None:
    freeze(["b", "a"], tmp_path / "listing", part_rows=1, run=1)
    assert sorted(path.name for path in tmp_path.rglob("*")) == [
        "listing", "names.jsonl", "offsets.npy",
    ]  # fmt: skip


def test_listing_that_was_never_frozen_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"offsets\.npy"):
        Listing(tmp_path)
