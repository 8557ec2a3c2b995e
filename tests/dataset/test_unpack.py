from __future__ import annotations

import contextlib
import shutil
import stat
import subprocess
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from magtiles_seg.dataset import unpack as module
from magtiles_seg.dataset.unpack import unpack
from magtiles_seg.errors import DataError


def archive_of(path: Path, members: dict[str, bytes], compression: int = 0) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def test_unpack_sound_archive_writes_every_member(tmp_path: Path) -> None:
    archive = archive_of(tmp_path / "a.zip", {"top/": b"", "top/a.jpg": b"one", "b.png": b"two"})
    unpack(archive, tmp_path / "out")
    assert (tmp_path / "out/top/a.jpg").read_bytes() == b"one"
    assert (tmp_path / "out/b.png").read_bytes() == b"two"


@pytest.mark.parametrize("name", ["../evil", "a/../../evil", "/evil", "\\evil", "a\\..\\..\\evil"])
def test_unpack_path_escape_is_refused_before_anything_is_written(
    tmp_path: Path, name: str
) -> None:
    archive = archive_of(tmp_path / "a.zip", {"good": b"", name: b"evil"})
    with pytest.raises(DataError, match="leads out of the directory"):
        unpack(archive, tmp_path / "out" / "in")
    assert [entry.name for entry in tmp_path.rglob("*")] == ["a.zip"]


def test_unpack_symlink_is_refused(tmp_path: Path) -> None:
    link = zipfile.ZipInfo("link")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(link, "/etc")
        archive.writestr("link/passwd", "evil")
    with pytest.raises(DataError, match="'link': a link or special file"):
        unpack(tmp_path / "a.zip", tmp_path / "out")


def test_unpack_names_that_differ_in_case_alone_are_refused(tmp_path: Path) -> None:
    archive = archive_of(tmp_path / "a.zip", {"a.jpg": b"", "A.jpg": b""})
    with pytest.raises(DataError, match=r"'A\.jpg': twice"):
        unpack(archive, tmp_path / "out")


def test_unpack_bomb_is_refused_by_its_ratio(tmp_path: Path) -> None:
    archive = archive_of(tmp_path / "a.zip", {"zeros": bytes(80 << 20)}, zipfile.ZIP_DEFLATED)
    with pytest.raises(DataError, match="zip bomb"):
        unpack(archive, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_unpack_too_many_members_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_MEMBERS", 2)
    archive = archive_of(tmp_path / "a.zip", dict.fromkeys("abc", b""))
    with pytest.raises(DataError, match="holds 3 files; expected at most 2"):
        unpack(archive, tmp_path / "out")


def test_unpack_damaged_members_are_all_named(tmp_path: Path) -> None:
    members = {"a.jpg": b"AAAA" * 9, "b.jpg": b"BBBB" * 9, "c.jpg": b"CCCC" * 9}
    archive = archive_of(tmp_path / "a.zip", members)
    archive.write_bytes(archive.read_bytes().replace(b"AAAA", b"XXXX").replace(b"CCCC", b"YYYY"))
    with pytest.raises(DataError, match="is damaged, 2 files") as raised:
        unpack(archive, tmp_path / "out")
    assert "a.jpg: Bad CRC" in str(raised.value)
    assert "b.jpg" not in str(raised.value)


def test_unpack_truncated_archive_says_fetch_again(tmp_path: Path) -> None:
    archive = archive_of(tmp_path / "a.zip", {"a": bytes(1000)})
    archive.write_bytes(archive.read_bytes()[:500])
    with pytest.raises(DataError, match=r"no complete zip file.*fetch it again"):
        unpack(archive, tmp_path / "out")


def with_flag(archive: Path, flag: int) -> Path:
    """Set a flag of the only member, in its own header and in the directory's."""
    content = bytearray(archive.read_bytes())
    for mark, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.index(mark) + offset] |= flag
    archive.write_bytes(content)
    return archive


def with_method(archive: Path, method: int) -> Path:
    """Claim that the only member is compressed by a method."""
    content = bytearray(archive.read_bytes())
    for mark, offset in ((b"PK\x03\x04", 8), (b"PK\x01\x02", 10)):
        content[content.index(mark) + offset] = method
    archive.write_bytes(content)
    return archive


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("C:\\evil", "a colon in its name"),
        ("C:evil", "a colon in its name"),
        ("a/12:30.png", "a colon in its name"),
        ("a\nb.png", "a control or unprintable character"),
        ("n" * 256, "its name is too long: 256 bytes"),
        ("ü" * 128, "its name is too long: 256 bytes"),
        ("/".join(["n" * 200] * 6), "its name is too long: 200 bytes, its path 1200"),
        ("a/" * 40 + "b", "41 folders deep"),
        (".", "no name"),
    ],
)
def test_unpack_name_that_cannot_be_written_is_refused_with_the_true_reason(
    tmp_path: Path, name: str, reason: str
) -> None:
    archive = archive_of(tmp_path / "a.zip", {"good": b"", name: b"x"})
    with pytest.raises(DataError, match=reason):
        unpack(archive, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_unpack_backslashes_of_windows_programs_are_folders(tmp_path: Path) -> None:
    archive = archive_of(tmp_path / "a.zip", {"set\\images\\": b"", "set\\images\\a.png": b"one"})
    unpack(archive, tmp_path / "out")
    assert (tmp_path / "out/set/images/a.png").read_bytes() == b"one"


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        (("a", "a/b"), "'a': a file and a folder at once"),
        (("a/b", "A"), "'A': a file and a folder at once"),
        (("\u00fc.png", "u\u0308.png"), "twice in the archive, but for case or Unicode form"),
    ],
)
def test_unpack_members_in_each_other_s_way_are_refused(
    tmp_path: Path, members: tuple[str, ...], reason: str
) -> None:
    archive = archive_of(tmp_path / "a.zip", dict.fromkeys(members, b"x"))
    with pytest.raises(DataError, match=reason):
        unpack(archive, tmp_path / "out")


def test_unpack_one_name_twice_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a.png", b"one")
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr("a.png", b"two")
    with pytest.raises(DataError, match=r"'a\.png': twice"):
        unpack(tmp_path / "a.zip", tmp_path / "out")


def test_unpack_encrypted_archive_says_so(tmp_path: Path) -> None:
    archive = with_flag(archive_of(tmp_path / "a.zip", {"a.png": b"secret"}), 1)
    with pytest.raises(DataError, match=r"'a\.png': encrypted; pack it again without"):
        unpack(archive, tmp_path / "out")


@pytest.mark.parametrize("method", [1, 9, 99])
def test_unpack_method_that_is_not_read_is_named(tmp_path: Path, method: int) -> None:
    archive = with_method(archive_of(tmp_path / "a.zip", {"a.png": b"x" * 50}), method)
    with pytest.raises(DataError, match=f"compressed by the method {method}, which is not read"):
        unpack(archive, tmp_path / "out")


@pytest.mark.parametrize(
    "method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA], ids=str
)
def test_unpack_damage_inside_any_compression_is_named(tmp_path: Path, method: int) -> None:
    good = archive_of(tmp_path / "a.zip", {"a.png": bytes(range(256)) * 20}, method)
    unpack(good, tmp_path / "whole")
    assert (tmp_path / "whole/a.png").read_bytes() == bytes(range(256)) * 20
    content = bytearray(good.read_bytes())
    for offset in range(45, 75):
        content[offset] ^= 0xFF
    good.write_bytes(content)
    with pytest.raises(DataError, match=r"is damaged, 1 file:\n  a\.png: "):
        unpack(good, tmp_path / "out")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"<!DOCTYPE html><html>please log in", "is no zip file: it starts as a web page"),
        (b"7z\xbc\xaf\x27\x1c", 'is no zip file: it starts as b"7z'),
        (b"", "is no zip file: it starts as b''"),
        (b"PK\x05\x06" + b"\xff" * 18, "is no complete zip file"),
    ],
)
def test_unpack_what_is_no_zip_says_what_it_is(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "a.zip").write_bytes(content)
    with pytest.raises(DataError, match=said):
        unpack(tmp_path / "a.zip", tmp_path / "out")


def test_unpack_onto_a_disk_without_room_says_so_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = archive_of(tmp_path / "a.zip", {"a.png": bytes(1000)})
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=999))
    with pytest.raises(DataError, match=r"unpacks to 1000 bytes, but the disk of .* has 999 left"):
        unpack(archive, tmp_path / "out")


def test_unpack_that_cannot_write_is_a_data_error_with_the_reason(tmp_path: Path) -> None:
    archive = archive_of(tmp_path / "a.zip", {"a.png": bytes(100_000)})
    code = (
        "import resource, sys; from pathlib import Path\n"
        "from magtiles_seg.dataset.unpack import unpack, DataError\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))\n"
        "try: unpack(Path(sys.argv[1]), Path(sys.argv[2]))\n"
        "except DataError as error: print(error)\n"
    )
    words = [sys.executable, "-c", code, str(archive), str(tmp_path / "out")]
    said = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    assert said == f"cannot write {tmp_path / 'out' / 'a.png'}: File too large\n"


@settings(max_examples=150)
@given(st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=6))
def test_unpack_any_mutated_archive_is_unpacked_or_a_data_error(
    tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[int, int]]
) -> None:
    folder = tmp_path_factory.mktemp("mutated")
    archive = archive_of(
        folder / "a.zip", {"a/b.png": b"abc" * 9, "c.png": b""}, zipfile.ZIP_DEFLATED
    )
    content = bytearray(archive.read_bytes())
    for place, value in changes:
        content[place % len(content)] = value
    archive.write_bytes(content)
    with contextlib.suppress(DataError):
        unpack(archive, folder / "in" / "out")
    assert {path.name for path in folder.iterdir()} <= {"a.zip", "in"}
    assert not (folder / "in").exists() or {p.name for p in (folder / "in").iterdir()} <= {"out"}


def test_unpack_folders_as_deep_as_allowed_are_made_and_one_more_is_refused(
    tmp_path: Path,
) -> None:
    for depth, refused in ((32, False), (33, True)):
        archive = tmp_path / f"{depth}.zip"
        with zipfile.ZipFile(archive, "w") as opened:
            opened.writestr("/".join("d" * depth), "x")
        if not refused:
            unpack(archive, tmp_path / "out")
            continue
        with pytest.raises(DataError, match="33 folders deep; expected at most 32"):
            unpack(archive, tmp_path / "out")


def test_unpack_ratio_and_free_bytes_are_not_added(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_RATIO", 1)
    monkeypatch.setattr(module, "_RATIO_FREE_BYTES", 800)
    for size_bytes in (800, 801):
        archive = tmp_path / f"{size_bytes}.zip"
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as opened:
            opened.writestr("a", bytes(size_bytes))
        if size_bytes == 800:
            unpack(archive, tmp_path / "out")
            continue
        with pytest.raises(DataError, match="801 bytes; expected at most 800"):
            unpack(archive, tmp_path / "out")
