from __future__ import annotations

import hashlib
import json
import re
import shutil
import zipfile
from pathlib import Path

import pytest

from magtiles_seg.config import load_params
from magtiles_seg.dataset.archive import fetch
from magtiles_seg.dataset.checksums import check_files, read_checksums
from magtiles_seg.dataset.formats.convert import Wanted
from magtiles_seg.dataset.layouts import locate
from magtiles_seg.dataset.splits import committed_folds
from magtiles_seg.dataset.synthetic import write_dataset
from magtiles_seg.dataset.tiles import group_tiles
from magtiles_seg.errors import ConfigError, DataError
from magtiles_seg.labels import LABELS
from magtiles_seg.pipeline import load, split

PROJECT = Path(__file__).parents[2]
TOP = "tiles-main"
BESIDE = ("MT_Free/Imgs/exp1_num_999000.jpg", "MT_Free/Imgs/exp1_num_999000.png")


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Every file of a small data set, by its path below the root."""
    folder = tmp_path_factory.mktemp("drawn")
    write_dataset(folder, tiles=12, seed=3)
    return content_of(locate(folder)[1])


def write_list(path: Path, files: dict[str, bytes]) -> Path:
    lines = [f"{hashlib.sha256(files[name]).hexdigest()}  {name}\n" for name in sorted(files)]
    path.write_text("".join(lines))
    return path


def pack(path: Path, files: dict[str, bytes], *, year: int = 2020) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(zipfile.ZipInfo(f"{TOP}/{name}", (year, 1, 1, 0, 0, 0)), content)
    return path


def content_of(folder: Path) -> dict[str, bytes]:
    paths = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def test_fetch_whole_archive_leaves_out_what_is_not_listed(
    drawn: dict[str, bytes], tmp_path: Path
) -> None:
    listed = write_list(tmp_path / "list", drawn)
    more = {**drawn, **dict.fromkeys(BESIDE, b"extra"), "LICENSE": b"x"}
    pack(tmp_path / "part.zip", drawn)
    pack(tmp_path / "whole.zip", dict(reversed(more.items())), year=1999)
    for name in ("part", "whole"):
        fetch(str(tmp_path / f"{name}.zip"), tmp_path / name, checksums=listed)
    part, whole = content_of(tmp_path / "part"), content_of(tmp_path / "whole")
    assert part == whole  # the receipt too: DVC sees one data set
    assert {f"{TOP}/{name}" for name in drawn} | {".fetched.json"} == part.keys()


def test_load_of_whole_and_partial_archive_gives_one_split(
    drawn: dict[str, bytes], tmp_path: Path
) -> None:
    listed = write_list(tmp_path / "list", drawn)
    more = {**drawn, **dict.fromkeys(BESIDE, b"extra")}
    splits = []
    for name, files in {"part": drawn, "whole": more}.items():
        source = pack(tmp_path / f"{name}.zip", files)
        values = {"source": source, "checksums": listed, "directory": tmp_path / name}
        words = [f"data_load.{key}={value}" for key, value in values.items()]
        params = load_params(None, [*words, "data_split.folds=2"])
        load(params)
        splits.append(split(params).to_json())
    assert splits[0] == splits[1]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda files, name: files.pop(name), "{}: missing"),
        (lambda files, name: files.update({name: b"other"}), "{}: has the SHA-256 d9298a"),
    ],
)
def test_fetch_archive_that_differs_names_the_file_and_leaves_the_former_data(
    drawn: dict[str, bytes], tmp_path: Path, change: object, said: str
) -> None:
    listed = write_list(tmp_path / "list", drawn)
    data = tmp_path / "data"
    fetch(str(pack(tmp_path / "good.zip", drawn)), data)
    before = content_of(data)
    files, name = dict(drawn), min(drawn)
    change(files, name)  # type: ignore[operator]
    with pytest.raises(DataError, match=re.escape(said.format(name))) as caught:
        fetch(str(pack(tmp_path / "bad.zip", files)), data, checksums=listed)
    assert "bad.zip is not the data set that data_load.checksums lists, 1 problem:" in str(
        caught.value
    )
    assert content_of(data) == before


def test_fetch_again_finds_a_file_that_was_changed_meanwhile(
    drawn: dict[str, bytes], tmp_path: Path
) -> None:
    listed = write_list(tmp_path / "list", drawn)
    source = str(pack(tmp_path / "good.zip", drawn))
    root = fetch(source, tmp_path / "data", checksums=listed)
    assert fetch(source, tmp_path / "data", checksums=listed) == root
    (root / min(drawn)).write_bytes(b"other")
    with pytest.raises(DataError, match="has the SHA-256"):
        fetch(source, tmp_path / "data", checksums=listed)


def test_fetch_folder_with_a_picture_beside_the_listed_is_refused_and_kept(
    drawn: dict[str, bytes], tmp_path: Path
) -> None:
    listed = write_list(tmp_path / "list", drawn)
    root = tmp_path / "mine"
    for name, content in {**drawn, "README.md": b"x"}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    assert fetch(str(root), tmp_path / "data", checksums=listed) == root
    (root / BESIDE[0]).write_bytes(b"x")
    with pytest.raises(DataError, match=r"exp1_num_999000\.jpg: not listed; remove it"):
        fetch(str(root), tmp_path / "data", checksums=listed)
    assert (root / BESIDE[0]).is_file()


def test_fetch_other_data_set_says_whose_list_it_is(
    drawn: dict[str, bytes], tmp_path: Path
) -> None:
    source = str(pack(tmp_path / "mine.zip", drawn))
    with pytest.raises(DataError, match=r"none of the 2290 files .* data_load\.checksums=null"):
        fetch(source, tmp_path / "data", checksums=PROJECT / "dataset.sha256")


def test_fetch_synthetic_tiles_are_not_compared(tmp_path: Path) -> None:
    fetch("synthetic:tiles=2", tmp_path, checksums=PROJECT / "dataset.sha256")


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize(
    "wanted", [Wanted(LABELS, ("*=background",)), Wanted(LABELS, None, "skip", "masks")]
)
def test_fetch_refuses_a_list_of_files_that_are_converted(
    tmp_path: Path, wanted: Wanted, zipped: bool
) -> None:
    files = {"images/a.png": b"", "masks/a.png": b""}
    source, listed = pack(tmp_path / "mine.zip", files), write_list(tmp_path / "list", files)
    if not zipped:
        source = tmp_path / TOP
        shutil.unpack_archive(tmp_path / "mine.zip", tmp_path)
    with pytest.raises(ConfigError, match="lists files that are used as they are"):
        fetch(str(source), tmp_path / "data", checksums=listed, wanted=wanted)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "lists no file"),
        ("abc  a.png\n", "line 1: expected a SHA-256"),
        (f"{'a' * 64}  ../a.png\n", "line 1: expected .* a path inside"),
        (f"{'a' * 64}  /a.png\n", "line 1: expected .* a path inside"),
        (f"{'a' * 64}  a//b.png\n", "line 1: expected .* a path inside"),
        (f"{'a' * 64}  a.png\n{'b' * 64} *a.png\n", r"line 2: a\.png stands there twice"),
    ],
)
def test_read_checksums_of_something_else_names_the_line(
    tmp_path: Path, text: str, said: str
) -> None:
    (tmp_path / "list").write_text(text)
    with pytest.raises(ConfigError, match=said):
        read_checksums(tmp_path / "list")


def test_read_checksums_missing_list_names_the_parameter(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"data_load\.checksums=null"):
        read_checksums(tmp_path / "list")


def test_check_files_many_problems_are_counted_not_all_shown(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"")
    listed = {f"{n}.png": "0" * 64 for n in range(50)} | {"a.png": hashlib.sha256().hexdigest()}
    with pytest.raises(DataError, match=r"50 problems:\n(  .*\n){20}  and 30 more\n"):
        check_files(tmp_path, listed, source="x")


def test_committed_list_gives_the_committed_tiles_and_folds() -> None:
    listed = read_checksums(PROJECT / "dataset.sha256")
    pictures = [name for name in listed if name.endswith(".jpg")]
    nums = [int(name.rpartition("_")[2].removesuffix(".jpg")) for name in pictures]
    assert len(pictures) == 1145
    assert all(name.replace(".jpg", ".png") in listed for name in pictures)
    assert set(group_tiles(nums)) == committed_folds().keys()


def test_committed_split_is_of_the_listed_pictures() -> None:
    text = (PROJECT / "results/pictures.csv").read_text().splitlines()[1:]
    listed = {Path(name).stem for name in read_checksums(PROJECT / "dataset.sha256")}
    scored = {row.split(",")[0] for row in text}
    assert scored <= listed
    assert json.loads((PROJECT / "results/metrics.json").read_text())["pictures"] == len(scored)
