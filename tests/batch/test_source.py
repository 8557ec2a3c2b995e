from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from magtiles_seg.batch import source as module
from magtiles_seg.batch import stores
from magtiles_seg.batch.source import Reader, list_names, resolve
from magtiles_seg.errors import DataError, ImageError

fsspec = pytest.importorskip("fsspec")

FILES = ("a.jpg", "b/c.PNG", "b/d/e.tif", "b/notes.txt")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in FILES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    return tmp_path


@pytest.fixture
def memory() -> Iterator[str]:
    system = fsspec.filesystem("memory")
    for name in FILES:
        system.pipe(f"/shots/{name}", name.encode())
    yield "memory://shots"
    system.rm("/shots", recursive=True)


def names(source: str) -> list[str]:
    return sorted(list_names(source, patience_s=0))


def test_list_names_of_a_folder_are_the_pictures_below_it(folder: Path) -> None:
    assert names(str(folder)) == [str(folder / name) for name in FILES[:3]]


def test_list_names_of_a_glob_are_the_pictures_that_match(folder: Path) -> None:
    assert names(f"{folder}/b/**/*") == [str(folder / name) for name in FILES[1:3]]


def test_list_names_of_one_picture_is_that_picture(folder: Path) -> None:
    assert names(str(folder / "a.jpg")) == [str(folder / "a.jpg")]


def test_list_names_of_a_list_file_are_relative_to_its_folder(folder: Path) -> None:
    (folder / "list.txt").write_text("a.jpg\n\nb/c.PNG\ns3://bucket/x.png\n/abs/y\n# a.jpg\n")
    expected = ["/abs/y", str(folder / "a.jpg"), str(folder / "b/c.PNG"), "s3://bucket/x.png"]
    assert names(str(folder / "list.txt")) == expected


def test_list_names_of_a_binary_list_file_is_refused(folder: Path) -> None:
    (folder / "list.bin").write_bytes(b"\x00\x01")
    with pytest.raises(DataError, match=r"no list of pictures.*got binary data"):
        names(str(folder / "list.bin"))


def test_list_names_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"there is no source .*none: expected a folder"):
        list_names(str(tmp_path / "none"), patience_s=0)


def test_list_names_under_a_url_are_its_pictures(memory: str) -> None:
    assert names(memory) == [f"memory:///shots/{name}" for name in FILES[:3]]


def test_list_names_of_an_unknown_protocol_names_it() -> None:
    with pytest.raises(DataError, match="unknown protocol nowhere://"):
        names("nowhere://bucket")


def test_resolve_makes_a_path_absolute_and_leaves_a_url(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")
    assert resolve("shots/*.png") == "/shots/*.png"
    assert resolve("s3://bucket/shots") == "s3://bucket/shots"


def test_read_returns_the_bytes_of_file_and_url(folder: Path, memory: str) -> None:
    reader = Reader(str(folder), patience_s=0)
    assert reader.read(str(folder / "a.jpg")) == b"a.jpg"
    assert reader.read(f"{memory}/b/c.PNG") == b"b/c.PNG"


def test_read_one_missing_picture_is_an_image_error(folder: Path, memory: str) -> None:
    reader = Reader(str(folder), patience_s=60)
    with pytest.raises(ImageError, match=r"gone\.jpg' cannot be read: No such file"):
        reader.read(str(folder / "gone.jpg"))
    with pytest.raises(ImageError, match=r"gone\.jpg' cannot be read"):
        reader.read(f"{memory}/gone.jpg")


def test_read_a_pipe_does_not_wait_for_a_writer(folder: Path) -> None:
    os.mkfifo(folder / "pipe.png")
    with pytest.raises(ImageError, match="no regular file"):
        Reader(str(folder), patience_s=0).read(str(folder / "pipe.png"))


def test_read_a_huge_file_is_refused_unread(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_FILE_BYTES", 4)
    with pytest.raises(ImageError, match="has 5 bytes; expected at most 4"):
        Reader(str(folder), patience_s=0).read(str(folder / "a.jpg"))


def test_read_from_an_unmounted_folder_ends_the_run_not_the_picture(folder: Path) -> None:
    reader = Reader(str(folder), patience_s=0)
    folder.rename(folder.with_name("elsewhere"))
    folder.mkdir()  # a mount point without its disk
    with pytest.raises(DataError, match=r"cannot be read after 0 s.*done stays done") as e:
        reader.read(str(folder / "a.jpg"))
    assert not isinstance(e.value, ImageError)


class Store:
    """A store that is gone for some calls, then answers."""

    def __init__(self, errors: list[Exception]) -> None:
        self.errors = errors

    def cat_file(self, path: str) -> bytes:
        if self.errors:
            raise self.errors.pop(0)
        return path.encode()


class ClientError(Exception):
    def __init__(self, code: str) -> None:
        self.response = {"Error": {"Code": code}}


class RefusedError(PermissionError):
    """What s3fs makes of a refusal, with the store's code in its cause."""

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.__cause__ = ClientError(code)


def test_read_waits_out_a_store_that_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store([ConnectionError("gone"), TimeoutError("slow"), RefusedError("ExpiredToken")])
    monkeypatch.setattr(stores, "open_store", lambda url: (store, url.partition("://")[2]))
    assert Reader("s3://bucket", patience_s=60).read("s3://bucket/a.png") == b"bucket/a.png"


def test_read_from_a_store_that_stays_away_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store([ConnectionError("refused")] * 9)
    monkeypatch.setattr(stores, "open_store", lambda url: (store, url.partition("://")[2]))
    with pytest.raises(DataError, match=r"s3://bucket/a\.png cannot be read .*: refused") as e:
        Reader("s3://bucket", patience_s=0).read("s3://bucket/a.png")
    assert not isinstance(e.value, ImageError)


def test_read_a_forbidden_object_is_an_image_error(monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store([RefusedError("AccessDenied")])
    monkeypatch.setattr(stores, "open_store", lambda url: (store, url.partition("://")[2]))
    with pytest.raises(ImageError, match="AccessDenied"):
        Reader("s3://bucket", patience_s=60).read("s3://bucket/a.png")
