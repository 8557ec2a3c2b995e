"""Tests of `magtiles_seg.files`."""

from __future__ import annotations

import errno
import hashlib
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from magtiles_seg.errors import MagtilesError
from magtiles_seg.files import encode_png, sha256_of, staged, staged_folder, write, write_json


def test_write_into_a_missing_folder_makes_it(tmp_path: Path) -> None:
    write(tmp_path / "a" / "b.txt", "ü\r\n")

    assert (tmp_path / "a" / "b.txt").read_bytes() == "ü\r\n".encode()
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["b.txt"]


def test_write_a_name_that_utf_8_does_not_hold_escapes_it(tmp_path: Path) -> None:
    write(tmp_path / "report.md", "tile_\udcff.png")

    assert (tmp_path / "report.md").read_text(encoding="utf-8") == "tile_\\udcff.png"


def test_write_over_a_file_replaces_it(tmp_path: Path) -> None:
    write(tmp_path / "b", b"old and longer")
    write(tmp_path / "b", b"new")

    assert (tmp_path / "b").read_bytes() == b"new"


def test_staged_error_inside_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    write(tmp_path / "model.onnx", b"old")

    with pytest.raises(ZeroDivisionError), staged(tmp_path / "model.onnx") as part:
        part.write_bytes(bytes(1 // (part.write_bytes(b"half") - 4)))

    assert (tmp_path / "model.onnx").read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


def test_staged_path_has_the_suffix_and_is_not_the_name(tmp_path: Path) -> None:
    with staged(tmp_path / "line.engine") as part:
        part.write_bytes(b"plan")
        assert part.suffix == ".engine"
        assert part.parent == tmp_path
        assert not (tmp_path / "line.engine").exists()


def test_staged_killed_half_way_leaves_the_old_file(tmp_path: Path) -> None:
    write(tmp_path / "a.json", b"old")
    code = (
        "import os, sys\nfrom pathlib import Path\nfrom magtiles_seg.files import staged\n"
        "with staged(Path(sys.argv[1])) as part:\n"
        "    part.write_bytes(b'half')\n    os.kill(os.getpid(), 9)\n"
    )

    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "a.json")], check=False)

    assert done.returncode == -9
    assert (tmp_path / "a.json").read_bytes() == b"old"


def test_write_durable_is_on_the_disk_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, flushed = tmp_path / "model.onnx", []

    def flush(descriptor: int) -> None:
        flushed.append((os.fstat(descriptor).st_size, path.exists()))

    monkeypatch.setattr(os, "fsync", flush)
    write(path, b"whole", durable=True)
    write(path, b"quick")

    assert flushed == [(len(b"whole"), False)]


def test_write_that_fails_names_the_file_asked_for(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()

    with pytest.raises(OSError, match="cannot write: ") as caught:
        write(tmp_path / "folder", b"content")

    assert caught.value.filename == str(tmp_path / "folder")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_staged_full_disk_names_the_file_whatever_library_wrote(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="cannot write: No space left on device") as caught:  # noqa: SIM117
        with staged(tmp_path / "table.parquet"):
            raise OSError(errno.ENOSPC, "Error writing bytes to file")  # as Arrow says it
    assert caught.value.filename == str(tmp_path / "table.parquet")


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError(errno.ENOENT, "No such file", "another"),
        ConnectionResetError(errno.ECONNRESET, "reset"),
    ],
)
def test_staged_error_of_something_else_in_the_block_stays_as_it_is(
    tmp_path: Path, error: OSError
) -> None:
    with pytest.raises(OSError, match=r"No such file|reset") as caught, staged(tmp_path / "a"):
        raise error
    assert caught.value is error


@pytest.mark.parametrize("path", [".", "/"])
def test_write_to_a_folder_without_a_name_is_an_error_of_the_disk(path: str) -> None:
    with pytest.raises(IsADirectoryError, match="cannot write: Is a directory"):
        write(path, "text")


def test_two_writers_of_one_name_do_not_share_a_part(tmp_path: Path) -> None:
    with staged(tmp_path / "a") as one, staged(tmp_path / "a") as other:
        one.write_bytes(b"1")
        other.write_bytes(b"2")

    assert one != other
    assert (tmp_path / "a").read_bytes() == b"1"  # the outer block ends last


def test_write_json_number_that_is_not_finite_is_refused_and_the_old_file_stays(
    tmp_path: Path,
) -> None:
    write_json(tmp_path / "a.json", {"score": 0.5})

    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "a.json", {"score": float("nan")})

    assert json.loads((tmp_path / "a.json").read_text()) == {"score": 0.5}


@pytest.mark.parametrize("size", [0, 5, (1 << 20) + 1])
def test_sha256_of_a_file_is_that_of_its_bytes(tmp_path: Path, size: int) -> None:
    data = bytes(size)
    (tmp_path / "a").write_bytes(data)

    assert sha256_of(tmp_path / "a") == sha256_of(data) == hashlib.sha256(data).hexdigest()


def test_encode_png_rgb_keeps_the_order_of_the_channels() -> None:
    picture = np.array([[[255, 0, 0], [0, 0, 255]]], np.uint8)

    read = cv2.imdecode(np.frombuffer(encode_png(picture), np.uint8), cv2.IMREAD_COLOR_RGB)

    assert np.array_equal(np.asarray(read), picture)


def test_encode_png_grey_is_lossless() -> None:
    picture = np.arange(256, dtype=np.uint8).reshape(8, 32)

    read = cv2.imdecode(np.frombuffer(encode_png(picture), np.uint8), cv2.IMREAD_UNCHANGED)

    assert np.array_equal(np.asarray(read), picture)


def test_staged_folder_moves_all_in_and_an_error_leaves_it_empty(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(FileNotFoundError), staged_folder(out) as stage:
        (stage / "a").write_text("half") and (stage / "b").read_text()
    assert list(out.iterdir()) == []
    with staged_folder(out, last="a") as stage:
        (stage / "sub").mkdir()
        for name in ("a", "b", "sub/c"):
            (stage / name).write_text(name)
    found = sorted(path.relative_to(out).as_posix() for path in out.rglob("*"))
    assert found == ["a", "b", "sub", "sub/c"]


def test_staged_folder_full_disk_names_the_folder_and_leaves_it_empty(tmp_path: Path) -> None:
    def fill() -> None:
        with staged_folder(tmp_path / "out") as part:
            (part / "a").touch()
            raise OSError(errno.ENOSPC, "No space left on device")  # as a write says it

    with pytest.raises(OSError, match=r"cannot write: .*out'") as caught:
        fill()
    assert caught.value.errno == errno.ENOSPC
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize(
    ("module", "read", "name"),
    [
        ("magtiles_seg.image", "read_image", "tile.png"),
        ("magtiles_seg.infer.segmenter", "Segmenter", "model.onnx"),
        ("magtiles_seg.model.checkpoint", "load_checkpoint", "model.safetensors"),
        ("magtiles_seg.dataset.unpack", "unpack", "set.zip"),
    ],
)
def test_file_that_git_lfs_has_not_fetched_is_named_as_such(
    module: str, read: str, name: str, tmp_path: Path
) -> None:
    if name == "model.safetensors":
        pytest.importorskip("torch")
    pointer = tmp_path / name
    pointer.write_text(
        f"version https://git-lfs.github.com/spec/v1\noid sha256:{'a' * 64}\nsize 12345\n"
    )
    places = (pointer, tmp_path / "out") if read == "unpack" else (pointer,)
    with pytest.raises(MagtilesError, match=r"is a Git LFS pointer, .*: git lfs pull"):
        getattr(importlib.import_module(module), read)(*places)
