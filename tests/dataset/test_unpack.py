from __future__ import annotations

import stat
import zipfile
from pathlib import Path

import pytest

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


@pytest.mark.parametrize(
    "name", ["../evil", "a/../../evil", "/evil", "C:\\evil", "a\\..\\..\\evil", "C:evil"]
)
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
