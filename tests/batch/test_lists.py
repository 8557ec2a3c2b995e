from __future__ import annotations

import os
from pathlib import Path

import pytest

from magtiles_seg.batch.source import local_path, read_list
from magtiles_seg.errors import DataError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "shots"
    (root / "sub").mkdir(parents=True)
    for name in ("a.png", "sub/b.png", "#1.png", " c.png", "d\\e.png", "ü.png"):
        (root / name).write_bytes(b"x")
    return root


def names(folder: Path, content: bytes) -> list[str]:
    path = folder / "list.txt"
    path.write_bytes(content)
    return [os.path.relpath(name, folder) for name in read_list(path)]


TEXT = '# what the line camera took\r\n\r\na.png\r\nsub\\b.png\r\n "sub\\b.png" \r\nü.png'


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_list_that_windows_wrote_means_the_same_files(folder: Path, encoding: str) -> None:
    assert names(folder, TEXT.encode(encoding)) == ["a.png", "sub/b.png", "sub/b.png", "ü.png"]


def test_file_of_that_very_name_comes_before_any_other_meaning(folder: Path) -> None:
    assert names(folder, b"#1.png\n c.png\nd\\e.png\n#2.png\n") == ["#1.png", " c.png", "d\\e.png"]


def test_bytes_that_are_no_utf_8_are_kept(folder: Path) -> None:
    (folder / os.fsdecode(b"latin\xfc.png")).write_bytes(b"x")
    assert [os.fsencode(name) for name in names(folder, b"latin\xfc.png\n")] == [b"latin\xfc.png"]


def test_utf_16_without_a_mark_is_refused_with_the_reason(folder: Path) -> None:
    with pytest.raises(DataError, match="UTF-16 with a byte order mark, got binary data"):
        names(folder, "a.png\r\n".encode("utf-16-le"))


def test_list_for_another_folder_is_refused_with_the_reason(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists" / "list.txt").write_text("a.png\nsub/b.png\n")
    monkeypatch.chdir(folder)
    with pytest.raises(DataError, match=r"are not relative to its folder: there is .*a\.png"):
        list(read_list(tmp_path / "lists" / "list.txt"))


def test_home_folder_is_found(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder))
    assert names(folder, b"~/a.png") == ["a.png"]


def test_folder_name_after_the_list_may_hold_windows_words(folder: Path) -> None:
    assert names(folder, b"gone\\x.png\n") == ["gone/x.png"]


def test_file_url_of_any_bytes_is_that_path() -> None:
    assert (
        os.fsencode(local_path("file:///shots/t%FCr%20%E2%82%AC.png"))
        == b"/shots/t\xfcr \xe2\x82\xac.png"
    )
    assert local_path("file:///shots/\udcfc.png") == "/shots/\udcfc.png"
