from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from magtiles_seg.names import as_line, as_text, counted, natural_key, without_secrets

NAMES = st.text(st.characters(codec=None, exclude_characters="\0"), max_size=12)


def test_natural_key_sorts_numbers_as_numbers() -> None:
    names = ["1.png", "2.png", "010.png", "10.png", "a1b2.png", "a1b10.png", "a/2", "a/10", "b/1"]
    expected = [
        "1.png", "2.png", "010.png", "10.png", "a/2", "a/10", "a1b2.png", "a1b10.png", "b/1",
    ]  # fmt: skip
    assert sorted(names, key=natural_key) == expected


@given(st.lists(NAMES))
def test_natural_key_orders_any_names_in_one_way(names: list[str]) -> None:
    backwards = names[::-1]
    assert sorted(names, key=natural_key) == sorted(backwards, key=natural_key)
    paths = sorted(map(Path, names), key=natural_key)
    assert paths == sorted(map(Path, backwards), key=natural_key)


@given(st.lists(st.integers(0, 10**30)))
def test_natural_key_of_numbers_is_their_order(numbers: list[int]) -> None:
    assert sorted(map(str, numbers), key=natural_key) == list(map(str, sorted(numbers)))


@given(st.binary(max_size=40))
def test_as_text_of_any_file_name_is_utf_8_and_json(name: bytes) -> None:
    text = as_text(os.fsdecode(name))
    assert json.loads(json.dumps(text, ensure_ascii=False).encode()) == text
    assert as_text(text) == text


@given(NAMES)
def test_as_line_of_any_name_is_one_printable_line(name: str) -> None:
    assert as_line(name).isprintable()


def test_as_line_escapes_what_moves_the_cursor_and_bytes_that_are_no_utf_8() -> None:
    assert as_line("a\nb\x1b[2J ü " + os.fsdecode(b"\xfc")) == "a\\nb\\x1b[2J ü \\udcfc"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://me:pw@host/a.png", "http://***@host/a.png"),
        ("ftp://me:p@w@host:21/a", "ftp://***@host:21/a"),
        ("https://h/a?X-Amz-Signature=abc&x=1#y", "https://h/a?X-Amz-Signature=***&x=1#y"),
        ("'https://h/a?access_token=abc' failed", "'https://h/a?access_token=***' failed"),
        ("https://h/a?sig=abc", "https://h/a?sig=***"),
        ("s3://bucket/me@home/a.png", "s3://bucket/me@home/a.png"),
        ("mail me@host", "mail me@host"),
    ],
)
def test_without_secrets_keeps_the_address_alone(text: str, shown: str) -> None:
    assert without_secrets(text) == shown


def test_counted_knows_one_from_many() -> None:
    assert [counted(number, "picture") for number in (0, 1, 2)] == [
        "0 pictures",
        "1 picture",
        "2 pictures",
    ]
