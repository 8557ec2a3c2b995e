from __future__ import annotations

import io
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("gradio")

from magtiles_seg.demo.files import Folder, Full, Limits, safe_name
from magtiles_seg.demo.visitors import Sessions, Visitor

ONE, OTHER = Visitor("a" * 43), Visitor("b" * 43)
LIMITS = Limits(bytes=1000, files=10, visitor_bytes=500, visitor_files=3)


@pytest.fixture
def folder() -> Iterator[Folder]:
    opened = Folder(LIMITS)
    yield opened
    opened.close()


def store(folder: Folder, size: int, owner: Visitor = ONE, name: str = "a.png") -> str:
    (stored,) = folder.store([(name, io.BytesIO(bytes(size)))], owner)
    return stored


def drawn(folder: Folder, name: str, size: int, age_s: float = 0) -> Path:
    path = folder.path / name
    path.write_bytes(bytes(size))
    os.utime(path, (time.time() - age_s,) * 2)
    return path


def test_upload_belongs_to_its_visitor_and_to_the_first_page_that_takes_it(folder: Folder) -> None:
    name = store(folder, 10)
    assert folder.take(name, OTHER, "s") is None
    path = folder.take(name, ONE, "s")
    assert path is not None
    assert path.read_bytes() == bytes(10)
    assert folder.take(name, ONE, "s") == path
    assert folder.take(name, ONE, "another") is None


def test_visitor_without_cookies_owns_what_such_visitors_uploaded(folder: Folder) -> None:
    name = store(folder, 10, Visitor("c" * 43, is_new=True))
    assert folder.find(name, Visitor("d" * 43, is_new=True))
    assert folder.find(name, Visitor("c" * 43))
    assert folder.find(name, ONE) is None


def test_path_of_the_server_is_hidden_from_answers(folder: Folder) -> None:
    text = f'"{folder.path}/a.png" "/file={folder.path}/a.png"'.encode()
    assert folder.hidden(text) == b'"files/a.png" "/file=files/a.png"'


def test_visitor_beyond_his_share_loses_his_own_oldest_and_no_one_elses(folder: Folder) -> None:
    others = store(folder, 100, OTHER)
    mine = [store(folder, 200) for _ in range(3)]
    small = [store(folder, 1) for _ in range(3)]
    assert folder.find(others, OTHER)
    assert [bool(folder.find(name, ONE)) for name in mine] == [False, False, False]
    assert all(folder.find(name, ONE) for name in small)


def test_sweep_removes_the_old_and_then_the_oldest_until_the_rest_fits(folder: Folder) -> None:
    ancient = drawn(folder, "ancient", 1, age_s=4000)
    files = [drawn(folder, f"{index}", 300, age_s=100 - index) for index in range(5)]
    folder.sweep()
    assert not ancient.exists()
    assert [path.exists() for path in files] == [False, False, True, True, True]


def test_sweep_bounds_the_number_of_files(folder: Folder) -> None:
    files = [drawn(folder, f"{index}", 1, age_s=100 - index) for index in range(15)]
    folder.sweep()
    assert [path.exists() for path in files] == [False] * 5 + [True] * 10


def test_sweep_leaves_room_for_what_is_arriving_and_keeps_the_pages_own(folder: Folder) -> None:
    own = drawn(folder, "own", 100, age_s=9000)
    folder.keep_present()
    gone: set[str] = set()
    folder.on_removal = gone.update
    file = drawn(folder, "file", 600)
    with folder.arriving() as tell:
        tell(400)
        folder.sweep()
    assert (own.exists(), file.exists()) == (True, False)
    assert gone == {str(file)}


def test_arriving_uploads_are_bounded_together_and_forgotten_when_they_end(folder: Folder) -> None:
    with folder.arriving() as tell, folder.arriving() as also:
        tell(400)
        with pytest.raises(Full):
            also(400)
    with folder.arriving() as tell:
        tell(500)


def test_folder_is_gone_after_its_end() -> None:
    folder = Folder()
    store(folder, 10)
    folder.close()
    assert not folder.path.exists()


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("tile 1 (a).png", "tile 1 (a).png"),
        ("../../etc/passwd", "passwd"),
        ("C:\\pictures\\a.bmp", "a.bmp"),
        (".hidden", "hidden"),
        ("", "picture"),
        ("..", "picture"),
        ("a\0b\n.png", "a_b_.png"),
        ("plåt.tiff", "plåt.tiff"),
    ],
)
def test_name_of_an_upload_is_a_plain_one(given: str, kept: str) -> None:
    assert safe_name(given) == kept


def test_long_name_keeps_its_suffix() -> None:
    name = safe_name("é" * 500 + ".png")
    assert name.endswith("é.png")
    assert len(name.encode()) <= 120


def test_session_is_whose_who_names_it_first_until_it_makes_room() -> None:
    forgotten: list[str] = []
    sessions = Sessions(forgotten.append)
    assert sessions.admits("s", ONE)
    assert not sessions.admits("s", OTHER)
    assert not any(sessions.admits(name, ONE) for name in ("", "a/b", "x" * 65, None, 3))
    for index in range(600):
        sessions.admits(f"n{index}", OTHER)
    assert forgotten[0] == "s"
    assert sessions.admits("s", OTHER)
