from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
import zipfile
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from subprocess import PIPE
from threading import Thread

import numpy as np
import pytest
from PIL import Image

from magtiles_seg.config import load_params
from magtiles_seg.dataset.archive import check_brought, fetch, note_folder, source_folder, verify
from magtiles_seg.dataset.formats.convert import Wanted
from magtiles_seg.dataset.from_params import samples_of
from magtiles_seg.dataset.samples import find_samples
from magtiles_seg.errors import ConfigError, DataError
from magtiles_seg.files import sha256_of
from magtiles_seg.labels import LABELS


def encoded(kind: str, size_wh: tuple[int, int] = (64, 48)) -> bytes:
    """Return a picture of noise as JPEG, or a mask without a defect as PNG."""
    highest = 255 if kind == "jpeg" else 1
    pixels = np.random.default_rng(0).integers(0, highest, size_wh[::-1], dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    path = tmp_path / "tiles.zip"
    with zipfile.ZipFile(path, "w") as opened:
        for num in (1000, 1010, 1020, 2000):
            opened.writestr(f"set-master/MT_Free/Imgs/exp1_num_{num}.jpg", encoded("jpeg"))
            opened.writestr(f"set-master/MT_Free/Imgs/exp1_num_{num}.png", encoded("png"))
    return path


def test_fetch_zip_unpacks_once(archive: Path, tmp_path: Path) -> None:
    root = fetch(str(archive), tmp_path / "data")
    assert root == tmp_path / "data" / "set-master"
    assert len(find_samples(tmp_path / "data")) == 4
    before = (root / "MT_Free/Imgs/exp1_num_1000.jpg").stat()
    assert fetch(str(archive), tmp_path / "data") == root
    assert (root / "MT_Free/Imgs/exp1_num_1000.jpg").stat() == before


def test_fetch_deleted_data_comes_again(archive: Path, tmp_path: Path) -> None:
    shutil.rmtree(fetch(str(archive), tmp_path / "data"))
    assert verify(fetch(str(archive), tmp_path / "data"))


def test_fetch_other_source_replaces_what_was_fetched_before(archive: Path, tmp_path: Path) -> None:
    fetch(str(archive), tmp_path / "data")
    fetch("synthetic:tiles=1,seed=3", tmp_path / "data")
    assert not (tmp_path / "data" / "set-master").exists()
    assert len(find_samples(tmp_path / "data")) == 6


def test_fetch_foreign_files_in_the_way_are_kept(archive: Path, tmp_path: Path) -> None:
    mine = tmp_path / "data" / "set-master" / "mine"
    mine.parent.mkdir(parents=True)
    mine.touch()
    with pytest.raises(DataError, match="already holds set-master, not fetched"):
        fetch(str(archive), tmp_path / "data")
    assert mine.exists()


def test_fetch_archive_with_a_receipt_of_its_own_deletes_nothing_later(
    archive: Path, tmp_path: Path
) -> None:
    with zipfile.ZipFile(archive, "a") as opened:
        opened.writestr(".fetched.json", '{"key": "x", "entries": ["mine"]}')
        opened.writestr(".lock", "")
    fetch(str(archive), tmp_path / "data")
    (tmp_path / "data" / "mine").touch()
    fetch("synthetic:tiles=1,seed=3", tmp_path / "data")
    assert (tmp_path / "data" / "mine").exists()
    assert not (tmp_path / "data" / "set-master").exists()


def test_fetch_folder_is_used_where_it_lies(archive: Path, tmp_path: Path) -> None:
    root = fetch(str(archive), tmp_path / "data")
    assert fetch(str(tmp_path / "data"), tmp_path / "unused") == root
    assert not (tmp_path / "unused").exists()


def test_fetch_wrong_checksum_writes_nothing(archive: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"SHA-256 .*; expected 00ff"):
        fetch(str(archive), tmp_path / "data", sha256="00ff" * 16)
    assert not (tmp_path / "data").exists()
    assert fetch(str(archive), tmp_path / "data", sha256=sha256_of(archive).upper())


def test_fetch_archive_without_a_data_set_leaves_nothing(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as opened:
        opened.writestr("readme.txt", "nothing here")
    with pytest.raises(DataError, match=r"x\.zip holds no data set of layout 'auto'"):
        fetch(str(tmp_path / "x.zip"), tmp_path / "data")
    assert list((tmp_path / "data").iterdir()) == []


@pytest.mark.parametrize("zipped", [False, True])
def test_fetch_of_two_layouts_takes_the_one_that_is_wanted(
    archive: Path, tmp_path: Path, zipped: bool
) -> None:
    with zipfile.ZipFile(archive, "a") as opened:
        opened.writestr("set-master/images/a.png", encoded("png"))
    source = archive
    if not zipped:
        source = tmp_path / "folder"
        shutil.unpack_archive(archive, source)
    root = fetch(str(source), tmp_path / "data", wanted=Wanted(LABELS, layout="folder"))
    assert root.name == "set-master"
    with pytest.raises(DataError, match="holds 2 data sets"):
        fetch(str(source), tmp_path / "other", wanted=Wanted(LABELS))


def test_fetch_without_the_wanted_layout_names_it_and_what_is_expected(
    archive: Path, tmp_path: Path
) -> None:
    wanted = Wanted(LABELS, layout="folder")
    with pytest.raises(DataError, match=r"layout 'folder'; expected folders images/ and masks/$"):
        fetch(str(archive), tmp_path / "data", wanted=wanted)


@pytest.mark.parametrize("kind", ["zip", "folder", "synthetic"])
def test_fetch_refuses_a_class_map_that_would_change_nothing(
    archive: Path, tmp_path: Path, kind: str
) -> None:
    shutil.unpack_archive(archive, tmp_path / "folder")
    source = {"zip": archive, "folder": tmp_path / "folder", "synthetic": "synthetic:tiles=1"}[kind]
    wanted = Wanted(LABELS, class_map=("blowhole=background",))
    with pytest.raises(ConfigError, match="class_map is set, but the classes of"):
        fetch(str(source), tmp_path / "data", wanted=wanted)


def test_fetch_missing_source_is_file_not_found(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="expected a URL, a zip file, a folder"):
        fetch("nowhere.zip", tmp_path)


@pytest.mark.parametrize("source", ["synthetic:tile=4", "synthetic:tiles=many", "synthetic:4"])
def test_fetch_synthetic_unknown_option_is_a_config_error(source: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="expected synthetic:tiles=50,seed=0"):
        fetch(source, tmp_path)


def test_fetch_url_downloads_checks_and_unpacks(archive: Path, tmp_path: Path) -> None:
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    handler = partial(Quiet, directory=str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        url = f"http://127.0.0.1:{server.server_port}/{archive.name}"
        done: list[int] = []
        try:
            with pytest.raises(DataError, match="SHA-256"):
                fetch(url, tmp_path / "data", sha256="0" * 64)
            root = fetch(
                url,
                tmp_path / "data",
                sha256=sha256_of(archive),
                progress=lambda here, _: done.append(here),
            )
        finally:
            server.shutdown()
            thread.join()
    assert done[-1] == archive.stat().st_size
    assert len(verify(root)) == 4
    assert sorted(p.name for p in (tmp_path / "data").iterdir()) == [".fetched.json", "set-master"]
    assert fetch(url, tmp_path / "data", sha256=sha256_of(archive)) == root


def test_verify_names_every_bad_file_at_once(archive: Path, tmp_path: Path) -> None:
    imgs = fetch(str(archive), tmp_path / "data") / "MT_Free" / "Imgs"
    assert len(verify(tmp_path / "data")) == 4
    for name, kept in (("exp1_num_1000.jpg", -50), ("exp1_num_1010.png", 20)):
        (imgs / name).write_bytes((imgs / name).read_bytes()[:kept])
    (imgs / "exp1_num_1020.png").unlink()
    (imgs / "exp1_num_2000.png").write_bytes(encoded("png", (48, 64)))
    seen: list[int] = []
    with pytest.raises(DataError, match="4 problems") as raised:
        verify(tmp_path / "data", progress=lambda done, _: seen.append(done))
    for part in (
        "exp1_num_1000.jpg' ",
        "exp1_num_1010.png' ",
        "exp1_num_1020.png: mask is missing",
        "exp1_num_2000.png: mask is 48 x 64 px, its picture 64 x 48 px",
    ):
        assert part in str(raised.value)
    assert seen == [1, 2, 3]


@pytest.mark.realdata
def test_real_data_is_complete_and_grouped_as_described(tmp_path: Path) -> None:
    from collections import Counter

    from magtiles_seg.dataset.leakage import leaks
    from magtiles_seg.dataset.samples import load_mask
    from magtiles_seg.dataset.splits import make_split
    from magtiles_seg.dataset.tiles import EMPTY_MASKS, SUSPECT_FREE

    if "MAGTILES_DATA" not in os.environ:
        pytest.skip("MAGTILES_DATA names no copy of the real data")
    samples = verify(fetch(os.environ["MAGTILES_DATA"], tmp_path))
    counts = Counter(sample.label for sample in samples)
    most = {"free": 952, "blowhole": 115, "uneven": 103, "break": 85, "crack": 57, "fray": 32}
    assert set(counts) == set(most)
    assert all(counts[label] <= most[label] for label in most)
    empty = {s.id for s in samples if s.label != "free" and not load_mask(s, rule="gt0").any()}
    assert empty == EMPTY_MASKS & {sample.id for sample in samples}
    suspect = {sample.label for sample in samples if sample.num in SUSPECT_FREE}
    assert suspect <= {"free"}
    for fold in range(5):
        split = make_split(samples, fold=fold)
        assert leaks(split, samples).clean
        assert {s.label for s in samples if s.id in set(split.test)} == set(most)
    if len(samples) == 1145:
        assert len({sample.group for sample in samples}) == 171


def test_note_of_folder_changes_with_its_content_alone(archive: Path, tmp_path: Path) -> None:
    root = fetch(str(archive), tmp_path / "data")
    note = tmp_path / "noted" / "folder.json"
    note_folder(note.parent, find_samples(root))
    before = note.read_text()
    note_folder(note.parent, find_samples(root))
    assert note.read_text() == before
    (root / "MT_Free" / "Imgs" / "exp1_num_1000.jpg").write_bytes(encoded("jpeg", (64, 40)))
    note_folder(note.parent, find_samples(root))
    assert note.read_text() != before


def test_folder_that_was_loaded_and_is_not_named_again_is_told(tmp_path: Path) -> None:
    note_folder(tmp_path / "data", ())
    with pytest.raises(DataError, match=r"used where it lies; name it here too"):
        check_brought("https://example.com/data.zip", tmp_path / "data")


LOAD = """
import sys, time
from pathlib import Path
from magtiles_seg.dataset import archive
write = archive.write_dataset
def slowly(to, **options):
    print("writing", flush=True)
    while not Path(sys.argv[2]).exists():
        time.sleep(0.01)
    return write(to, **options)
archive.write_dataset = slowly
def waiting(text):
    print(text, flush=True)
root = archive.fetch("synthetic:tiles=1,seed=0", Path(sys.argv[1]), waiting=waiting)
print(len(archive.verify(root)), flush=True)
"""


def start_load(directory: Path, go: Path) -> subprocess.Popen[str]:
    """Start a process that loads data; it writes nothing before the file `go` is there."""
    return subprocess.Popen(
        [sys.executable, "-c", LOAD, str(directory), str(go)], stdout=PIPE, text=True
    )


def test_fetch_by_two_processes_at_once_is_done_by_one(tmp_path: Path) -> None:
    go = tmp_path / "go"
    first = start_load(tmp_path / "data", go)
    assert first.stdout is not None
    assert first.stdout.readline() == "writing\n"
    others = [start_load(tmp_path / "data", go) for _ in range(2)]
    for process in others:
        assert process.stdout is not None
        assert "another process is loading data into" in process.stdout.readline()
    go.touch()
    assert [process.communicate(timeout=60)[0] for process in (first, *others)] == ["6\n"] * 3
    assert [first.returncode, *(process.returncode for process in others)] == [0, 0, 0]
    left = {path.name for path in (tmp_path / "data").iterdir() if path.name.startswith(".")}
    assert left == {".fetched.json"}


def test_fetch_after_a_process_that_was_killed_starts_afresh(tmp_path: Path) -> None:
    process = start_load(tmp_path / "data", tmp_path / "never")
    assert process.stdout is not None
    assert process.stdout.readline() == "writing\n"
    process.kill()
    process.communicate()
    assert len(verify(fetch("synthetic:tiles=1,seed=0", tmp_path / "data"))) == 6
    assert not (tmp_path / "data" / ".incoming").exists()


def test_fetch_killed_between_receipt_and_move_is_repeated(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", killed)
        with pytest.raises(KeyboardInterrupt):
            fetch(str(archive), tmp_path / "data")
    assert len(verify(fetch(str(archive), tmp_path / "data"))) == 4


def test_fetch_foreign_files_in_the_way_keep_the_data_that_was_there(
    archive: Path, tmp_path: Path
) -> None:
    fetch("synthetic:tiles=1,seed=3", tmp_path / "data")
    (tmp_path / "data" / "set-master").mkdir()
    with pytest.raises(DataError, match="already holds set-master"):
        fetch(str(archive), tmp_path / "data")
    assert len(find_samples(tmp_path / "data")) == 6


def test_fetch_into_what_is_no_directory_is_a_data_error(archive: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"cannot write to .*file"):
        fetch(str(archive), tmp_path / "file")


@pytest.mark.parametrize(
    ("source", "sha256", "said"),
    [
        ("synthetic:", "0" * 64, "but the source 'synthetic:' is none"),
        (".", "0" * 64, "but the source '.' is none"),
        ("x.zip", "00ff", "expected 64 hexadecimal digits"),
        ("x.zip", "", "expected 64 hexadecimal digits"),
        ("x.zip", "z" * 64, "expected 64 hexadecimal digits"),
    ],
)
def test_fetch_checksum_that_cannot_be_checked_is_a_config_error(
    tmp_path: Path, source: str, sha256: str, said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        fetch(source, tmp_path / "data", sha256=sha256)


def test_source_folder_of_the_home_is_found(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    root = fetch(str(archive), tmp_path / "data")
    assert source_folder("~/data") == tmp_path / "data"
    assert fetch("~/data", tmp_path / "unused") == root
    assert source_folder(str(archive)) is None


def test_fetch_receipt_that_is_hostile_is_no_receipt(archive: Path, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for text in ("[" * 100_000, '{"key": 1, "entries": ["../x"]}', "null", "\x00"):
        (tmp_path / "data" / ".fetched.json").write_text(text)
        shutil.rmtree(tmp_path / "data" / "set-master", ignore_errors=True)
        assert fetch(str(archive), tmp_path / "data")


def test_data_of_another_path_than_the_source_names_is_refused(
    archive: Path, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    check_brought("anything", data)  # nothing was loaded
    fetch(str(archive), data)
    for source in (str(archive), "gone.zip"):
        check_brought(source, data)
    with pytest.raises(
        DataError, match=r"loaded from a zip, another source than 'synthetic:'; corr"
    ):
        check_brought("synthetic:", data)
    with pytest.raises(DataError, match=r"another source than 'clth', which is not there; correct"):
        check_brought("clth", data)


def test_data_of_another_synthetic_source_are_refused_and_in_place_of_a_url_told(
    tmp_path: Path,
) -> None:
    data, told = tmp_path / "data", list[str]()
    fetch("synthetic:tiles=1", data)
    check_brought("synthetic:seed=0,tiles=1", data, note=told.append)
    with pytest.raises(
        DataError, match="loaded from synthetic:tiles=1,seed=0, another source than"
    ):
        check_brought("synthetic:tiles=2", data, note=told.append)
    assert not told
    check_brought("https://x/y.zip", data, note=told.append)
    assert "not loaded from data_load.source, 'https://x/y.zip', but from synthetic:" in told[0]
    with pytest.warns(UserWarning, match="not loaded from"):
        samples_of(load_params(None, [f"data_load.directory={data}"]))


@pytest.mark.parametrize("key", ["https://x/y.zip sha256=None", "checksums=ab"])
def test_data_of_another_url_are_refused_unless_checksums_say_what_they_are(
    key: str, tmp_path: Path
) -> None:
    (tmp_path / ".fetched.json").write_text(json.dumps({"key": key, "entries": []}))
    check_brought("https://x/y.zip", tmp_path)
    if key.startswith("checksums="):
        check_brought("https://x/z.zip", tmp_path)
        with pytest.warns(UserWarning, match=r"but from the files that data_load.checksums listed"):
            check_brought("https://x/z.zip", tmp_path, listed=False)
    else:
        with pytest.raises(DataError, match=r"loaded from https://x/y\.zip, another source than"):
            check_brought("https://x/z.zip", tmp_path)


def test_converted_folder_is_known_by_its_name_where_it_is_gone(tmp_path: Path) -> None:
    (tmp_path / "line").mkdir()
    (tmp_path / "line" / "a.png").write_bytes(encoded("png"))
    wanted = Wanted(("background", "defect"), None, "sound", "labelme")
    fetch(tmp_path / "line", tmp_path / "data", wanted=wanted)
    (tmp_path / "line").rename(tmp_path / "moved")
    check_brought("elsewhere/line", tmp_path / "data")
    params = load_params(
        None,
        [
            f"data_load.source={tmp_path / 'lin'}",
            f"data_load.directory={tmp_path / 'data'}",
            "data_load.labels=[background, defect]",
        ],
    )
    with pytest.raises(DataError, match=r"data was loaded from .*, another source than .*lin'"):
        samples_of(params)
