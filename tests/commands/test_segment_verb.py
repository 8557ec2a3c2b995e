"""`segment` on folders as people have them: in whole processes where the terminal matters."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from magtiles_seg import cli
from magtiles_seg.dataset.synthetic import synthetic_tile
from magtiles_seg.tile import tile_score

NEVER = ("--reject-score", "1")


@pytest.fixture
def shots(tmp_path: Path) -> Path:
    folder = tmp_path / "shots"
    folder.mkdir()
    Image.fromarray(synthetic_tile(3, size_hw=(64, 64)).image).save(folder / "a.png")
    return folder


def run(*words: object) -> int:
    return cli.main([str(word) for word in words])


def start(*words: object, **environment: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "magtiles_seg", *map(str, words)],
        capture_output=True,
        check=False,
        timeout=120,
        env={**os.environ, **environment},
    )


@pytest.mark.parametrize("out", [".", "masks"])
def test_segment_into_its_own_source_sees_the_same_pictures_each_time(
    shots: Path, out: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for again in range(3):
        assert run("segment", shots, "--out", shots / out, "--json", *NEVER) == 0
        said = capsys.readouterr()
        assert [json.loads(line)["source"] for line in said.out.splitlines()] == [
            str(shots / "a.png")
        ]
        assert ("left out 4 results of an earlier run" in said.err) is (again > 0)
    assert len(list(shots.rglob("*.png"))) == 5


def test_segment_that_would_overwrite_a_user_s_mask_is_refused_before_any_work(
    shots: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (shots / "a_mask.png").write_bytes((shots / "a.png").read_bytes())
    before = sorted(path.read_bytes() for path in shots.iterdir())
    assert run("segment", shots, "--out", shots) == 2
    out, err = capsys.readouterr()
    assert (out, "a_mask.png would be overwritten" in err) == ("", True)
    assert sorted(path.read_bytes() for path in shots.iterdir()) == before


def test_segment_of_a_picture_that_got_damaged_takes_its_older_result_away(
    shots: Path, tmp_path: Path
) -> None:
    assert run("segment", shots, "--out", tmp_path / "out", *NEVER) == 0
    (shots / "a.png").write_bytes(b"\x89PNG no more")
    assert run("segment", shots, "--out", tmp_path / "out", *NEVER) == 2
    assert list((tmp_path / "out").iterdir()) == []


def test_segment_tells_which_older_results_are_of_pictures_that_are_gone(
    shots: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.open(shots / "a.png").save(shots / "b.png")
    run("segment", shots, "--out", tmp_path / "out")
    (shots / "b.png").unlink()
    capsys.readouterr()
    run("segment", shots, "--out", tmp_path / "out")
    assert "1 older results are of pictures that are gone, such as" in capsys.readouterr().err
    assert (tmp_path / "out" / "b_result.json").exists()


@pytest.mark.parametrize("verb", ["segment", "stream", "batch"])
def test_out_that_is_a_file_or_below_one_is_refused(
    shots: Path, tmp_path: Path, verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("mine")
    for out in (tmp_path / "file", tmp_path / "file" / "deeper"):
        assert run(verb, shots, "--out", out) == 2
        assert "cannot be the output folder" in capsys.readouterr().err
    assert (tmp_path / "file").read_text() == "mine"


def test_out_that_is_empty_is_a_misspelt_command_line(
    shots: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        run("segment", shots, "--out", "")
    assert "argument --out: is empty" in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["segment", "batch", "stream"])
def test_empty_word_is_refused(
    verb: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(verb, "", "--out", tmp_path / "out") == 2
    assert "a path is empty" in capsys.readouterr().err


def test_full_disk_ends_the_run_and_names_the_file(
    shots: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(_path: Path, _content: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    assert run("segment", shots, "--out", tmp_path / "out") == 2
    err = capsys.readouterr().err
    assert "cannot write: No space left on device" in err
    assert "a_mask.png" in err
    assert list((tmp_path / "out").iterdir()) == []


def test_folder_without_permission_is_named_and_the_exit_code_is_2(
    shots: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from folders import forbid

    (shots / "closed").mkdir()
    forbid(monkeypatch, shots / "closed")
    assert run("segment", shots, *NEVER) == 2
    out, err = capsys.readouterr()
    assert "a.png: accept" in out
    assert "closed cannot be listed: Permission denied" in err


def test_broken_link_and_pipe_are_named_and_the_others_go_on(
    shots: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (shots / "b.png").symlink_to("nowhere")
    os.mkfifo(shots / "c.png")
    assert run("segment", shots, *NEVER) == 2
    out, err = capsys.readouterr()
    assert out.count("accept") == 1
    assert "b.png" in err
    assert "c.png' is no regular file" in err


NAMES = (b"a.png", "prüf.png".encode(), b"latin\xfc.png", b"two\nlines.png", b"-x.png")


@pytest.fixture
def odd(shots: Path) -> Path:
    for name in NAMES:
        (shots / os.fsdecode(name)).write_bytes((shots / "a.png").read_bytes())
    return shots


@pytest.mark.parametrize("encoding", ["utf-8:strict", "ascii", "latin-1"])
def test_terminal_that_cannot_say_a_name_gets_it_escaped(odd: Path, encoding: str) -> None:
    done = start("segment", odd, "--out", odd / "out", *NEVER, PYTHONIOENCODING=encoding)
    assert done.returncode == 0, done.stderr
    assert done.stderr == b""
    assert done.stdout.count(b": accept, score") == len(NAMES)
    assert b"latin\\udcfc.png" in done.stdout
    assert b"two\\nlines.png" in done.stdout
    assert len(list((odd / "out").iterdir())) == 5 * len(NAMES)


def test_json_of_any_name_is_utf_8_without_lone_surrogates(odd: Path) -> None:
    (odd / os.fsdecode(b"bad\xfc.png")).write_bytes(b"no picture")
    done = start("segment", odd, "--json", "--out", odd / "out", *NEVER)
    assert done.returncode == 2
    lines = [*done.stdout.decode().splitlines()]
    lines += [path.read_text("utf-8") for path in (odd / "out").glob("*.json")]
    assert len(lines) == 2 * len(NAMES) + 1
    for line in lines:
        answer = json.loads(line)
        assert json.loads(json.dumps(answer, ensure_ascii=False).encode()) == answer
    assert rf"{odd}/latin\udcfc.png" in [json.loads(line)["source"] for line in lines]


def test_name_that_begins_with_a_dash_is_given_behind_two(
    odd: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(odd)
    assert run("segment", *NEVER, "--", "-x.png") == 0


def test_two_runs_into_one_folder_leave_whole_results(shots: Path, tmp_path: Path) -> None:
    words = [sys.executable, "-m", "magtiles_seg", "segment", *[str(shots / "a.png")]]
    words += ["--out", str(tmp_path / "out")]
    runs = [
        subprocess.Popen([*words, "--threshold", value], stdout=subprocess.DEVNULL)
        for value in ("0.0", "1.0")
    ]
    assert all(one.wait(120) < 2 for one in runs)
    (manifest,) = (tmp_path / "out").glob("*.json")
    mask = np.asarray(Image.open(tmp_path / "out" / "a_mask.png"))
    assert np.count_nonzero(mask) == json.loads(manifest.read_text())["defect_area_px"]


def test_evaluate_of_a_data_set_with_a_name_that_is_no_utf8_names_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for kind in ("images", "masks"):
        (tmp_path / "data" / kind).mkdir(parents=True)
    tile = synthetic_tile(3, defect="crack", size_hw=(64, 64))
    name = os.fsdecode(b"latin\xfc.png")
    Image.fromarray(tile.image).save(tmp_path / "data" / "images" / name)
    Image.fromarray(tile.mask).save(tmp_path / "data" / "masks" / name)
    assert run("evaluate", tmp_path / "data", "--out", tmp_path / "out") == 2
    assert (
        r"latin\xfc.png': the name is not valid UTF-8; rename the file" in capsys.readouterr().err
    )


@pytest.fixture
def exposures(tmp_path: Path) -> Path:
    """Two tiles, three pictures of each."""
    folder = tmp_path / "exposures"
    folder.mkdir()
    for tile, defect in (("p1", None), ("p2", "blowhole")):
        for light in range(3):
            drawn = synthetic_tile(4, defect=defect, size_hw=(96, 128)).image
            lit = np.clip(drawn.astype(int) + 6 * light, 0, 255).astype(np.uint8)
            Image.fromarray(lit).save(folder / f"{tile}_light{light}.png")
    return folder


def test_segment_group_by_gives_a_verdict_and_files_a_tile(
    exposures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("segment", exposures, "--group-by", r"(\w+)_light\d", "--out", tmp_path / "out")
    run(*words, "--json")
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(answer["name"], answer["pictures"]) for answer in answers] == [("p1", 3), ("p2", 3)]
    for answer in answers:
        scores = [one["score"] for one in answer["exposures"]]
        assert answer["score"] == tile_score(scores)
        written = json.loads((tmp_path / "out" / f"{answer['name']}.tile.json").read_text())
        assert written.pop("overlay")["left_out"] == []
        assert written == answer
    assert len(list((tmp_path / "out").glob("*_result.json"))) == 6
    assert run(*words, *NEVER) == 0
    said = capsys.readouterr().out
    assert "tile p1: accept" in said
    assert "3 pictures together" in said


def test_segment_group_by_exits_by_the_tiles_alone(exposures: Path) -> None:
    """One false alarm of three: its own picture would be rejected, its tile is not."""
    scores = []
    from magtiles_seg import Segmenter

    with Segmenter() as segmenter:
        scores = sorted(segmenter(path).score for path in exposures.glob("p1_*"))
    words = ("segment", exposures / "p1_*.png", "--reject-score", f"{scores[2]:.9f}")
    assert run(*words) in (0, 1)
    between = f"{(scores[1] + scores[2]) / 2:.9f}"
    assert run("segment", exposures / "p1_*.png", "--reject-score", between) == 1
    grouped = ("--group-by", r"(\w+)_light\d", "--reject-score", between)
    assert run("segment", exposures / "p1_*.png", *grouped) == 0


def test_segment_tile_with_a_damaged_picture_has_no_verdict_and_no_older_one(
    exposures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    words = ("segment", exposures, "--group-by", r"(\w+)_light\d", "--out", out, *NEVER)
    assert run(*words) == 0
    (exposures / "p1_light1.png").write_bytes(b"broken")
    capsys.readouterr()
    assert run(*words, "--json") == 2
    said = capsys.readouterr()
    assert "tile p1 has no verdict: 1 of its 3 pictures" in said.err
    lines = [json.loads(line) for line in said.out.splitlines()]
    assert [line.get("name") for line in lines] == [None, "p1", "p2"]
    assert "1 of its 3 pictures" in lines[1]["error"]
    assert not (out / "p1.tile.json").exists()
    assert (out / "p2.tile.json").exists()


def test_segment_group_by_that_fits_no_name_is_refused_before_any_work(
    exposures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("segment", exposures, "--group-by", r"(\w+)_lamp", "--out", tmp_path / "out") == 2
    assert "tells no tile for 6 pictures, such as" in capsys.readouterr().err
    assert not list((tmp_path / "out").glob("*"))
