from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from magtiles_seg.jsontext import MOST_CHARS, parse_json, read_json

plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63) + 1, 2**63 - 1) | st.text(max_size=9)
    | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=12,
)  # fmt: skip


@given(value=plain)
def test_json_within_bounds_comes_back(value: object) -> None:
    assert parse_json(json.dumps(value)) == value


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[" * 100_000, "nested"),
        ('{"a":' * 100_000, "nested"),
        ("[" * 33 + "]" * 33, "nested"),
        ("NaN", "no number"),
        ("-Infinity", "no number"),
        ("1e999", "not finite"),
        (str(2**63), "beyond 64 bits"),
        ("1" * 10_000, "beyond 64 bits"),
        (r'"\ud800"', "surrogates"),
        (" " * (MOST_CHARS + 1), "characters"),
        ("{", "Expecting"),
    ],
)
def test_json_out_of_bounds_is_value_error(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parse_json(text)


def test_json_brackets_in_texts_do_not_nest() -> None:
    assert parse_json(json.dumps("[" * 500 + '"\\')) == "[" * 500 + '"\\'


def test_json_file_that_is_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    with pytest.raises(ValueError, match="no ordinary file"):
        read_json(path)


@pytest.mark.parametrize(
    "text", ['\\"' * 300_000, '["' + "a" * 500_000, '"\\' * 300_000, "\\" * 500_000]
)
def test_json_texts_that_never_end_are_refused_in_linear_time(text: str) -> None:
    with pytest.raises(ValueError, match=r"Expecting|Unterminated|Invalid"):
        parse_json(text)  # took minutes when each quote was searched to the end
