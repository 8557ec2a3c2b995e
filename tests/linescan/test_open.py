from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from bright_web import bright_segmenter

from magtiles_seg.cli import build_parser, main
from magtiles_seg.commands.parser import Parser
from magtiles_seg.commands.stream import add
from magtiles_seg.errors import ConfigError, MagtilesError
from magtiles_seg.image import read_levels
from magtiles_seg.linescan.open import CameraOptions, _source, open_source, stream
from magtiles_seg.linescan.sources import ArraySource
from magtiles_seg.review.folder import ReviewFolder


class Closable(ArraySource):
    """Counts how often it is closed."""

    closed = 0

    def close(self) -> None:
        self.closed += 1


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder of three pictures of one web."""
    web = np.random.default_rng(0).integers(0, 256, (150, 60), np.uint8)
    for index, part in enumerate(np.split(web, 3)):
        cv2.imwrite(str(tmp_path / f"{index}.png"), part)
    return tmp_path


def test_stream_of_a_folder_prints_defects_and_writes_files(
    folder: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = folder / "out"
    words = ["stream", str(folder), "--model", str(model), "--threshold", "0.01"]
    code = main(
        [*words, "--mm-per-px", "0.1", "--out", str(out), "--pictures", "--strip-rows", "32"]
    )
    printed = capsys.readouterr().out
    assert code == 1
    assert "150 lines inspected" in printed
    assert "0.0 mm uninspected" in printed
    found = [json.loads(line) for line in (out / "defects.jsonl").read_text().splitlines()]
    assert found
    assert len((out / "defects.csv").read_text().splitlines()) == len(found) + 1
    (pictures,) = out.glob("pictures-*")
    assert (pictures / "web_000000000.png").exists()


def test_stream_as_json_ends_with_the_report(
    folder: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["stream", str(folder), "--model", str(model), "--json", "--threshold", "1.0"]
    assert main([*words, "--line-rate", "100000"]) == 0
    (report,) = map(json.loads, capsys.readouterr().out.splitlines())
    assert (report["kind"], report["lines"], report["defects"]) == ("report", 150, 0)


def test_stream_with_pictures_but_no_folder_is_an_error(
    folder: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["stream", str(folder), "--model", str(model), "--pictures"]) == 2
    assert "add --out DIR" in capsys.readouterr().err


def test_stream_of_synthetic_tiles_prints_defects_in_web_coordinates(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "web"
    words = ["stream", "synthetic:tiles=12,width=460,seed=2", "--out", str(out)]
    assert main(words) == 1
    assert "1,800 lines inspected" in capsys.readouterr().out
    found = [json.loads(line) for line in (out / "defects.jsonl").read_text().splitlines()]
    assert [defect["label"] for defect in found] == ["fray"]


def test_stream_whose_reader_leaves_ends_and_says_so(tmp_path: Path) -> None:
    words = ["stream", "synthetic:tiles=30,width=460", "--model", "nano", "--out", "web"]
    program = [sys.executable, "-m", "magtiles_seg", *words]
    with subprocess.Popen(
        program, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as run:
        assert run.stdout is not None
        run.stdout.readline()
        run.stdout.close()
        assert run.stderr is not None
        said = run.stderr.read()
    assert run.returncode == 2
    assert "StandardOutput failed: [Errno 32] Broken pipe" in said


def test_synthetic_source_has_the_tiles_asked_for() -> None:
    source = open_source("synthetic:tiles=4,width=460")
    assert source.width_px == 460
    assert sum(len(block.rows) for block in source) == 2 * 300


def test_synthetic_option_unknown_is_config_error() -> None:
    with pytest.raises(ConfigError, match="option 'tile=4' is unknown"):
        open_source("synthetic:tile=4")


def parsed(*words: str) -> argparse.Namespace:
    parser = Parser()
    add(parser.add_subparsers())
    return parser.parse_args(["stream", *words])


@pytest.mark.parametrize(
    ("word", "listens"),
    [
        ("9100", ("127.0.0.1", 9100)),
        ("0.0.0.0:9100", ("0.0.0.0", 9100)),
        ("[::1]:9100", ("::1", 9100)),
    ],
)
def test_metrics_listen_at_a_port_of_a_host(word: str, listens: tuple[str, int]) -> None:
    assert parsed("web", "--metrics-port", word).metrics_port == listens


def test_video_at_an_address_is_told_as_one() -> None:
    with pytest.raises(MagtilesError, match=r"is a URL; expected a local path"):
        open_source("rtsp://camera/web.mp4")


@pytest.fixture
def folders(tmp_path: Path) -> list[str]:
    picture = np.random.default_rng(0).integers(0, 256, (60, 50), np.uint8)
    for name, part in (("left", picture[:, :30]), ("right", picture[:, 22:])):
        (tmp_path / name).mkdir()
        cv2.imwrite(str(tmp_path / name / "1.png"), part)
    cv2.imwrite(str(tmp_path / "whole.png"), picture)
    return [str(tmp_path / name) for name in ("left", "right", "whole.png")]


def test_sources_side_by_side_are_the_whole_web(folders: list[str]) -> None:
    left, right, whole = folders
    source = _source(parsed(left, right, "--overlap-px", "8"))
    assert source.width_px == 50
    rows = np.concatenate([block.rows for block in source])
    source.close()
    assert (rows == cv2.imread(whole, cv2.IMREAD_GRAYSCALE)).all()


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("--overlap-px", "8"), "needs several sources"),
        (("--camera-file", "a", "--camera-file", "b"), "2 settings files are given for 1 sources"),
        (("--width", "9"), "is no camera, and options for one are given"),
        (("--timeout-s", "9"), "is no camera, and options for one are given"),
    ],
)
def test_options_that_do_not_fit_the_source_are_config_error(
    folders: list[str], words: tuple[str, ...], reason: str
) -> None:
    with pytest.raises(ConfigError, match=reason):
        _source(parsed(folders[0], *words))


def test_camera_is_set_up_by_the_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pypylon")
    monkeypatch.setenv("PYLON_CAMEMU", "1")
    words = ["--width", "320", "--height", "8", "--pixel-format", "Mono12", "--exposure-us", "99"]
    source = _source(parsed("basler:", *words, "--trigger", "Software", "--feature", "GainRaw=200"))
    camera = source._camera  # type: ignore[attr-defined]
    got = camera.Width.Value, camera.Height.Value, camera.PixelFormat.Value, camera.GainRaw.Value
    assert got == (320, 8, "Mono12", 200)
    assert camera.ExposureTime.Value == pytest.approx(99)
    assert camera.TriggerMode.Value == "On"
    source.close()


def test_source_without_options_is_opened_as_before(folders: list[str]) -> None:
    assert open_source(folders[0], CameraOptions()).width_px == 30


def test_camera_is_closed_where_the_records_cannot_be_opened(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source = Closable(np.zeros((8, 40), np.uint8))
    monkeypatch.setattr("magtiles_seg.linescan.open.open_source", lambda *_: source)
    arguments = build_parser().parse_args(["stream", "basler:", "--pictures"])
    with pytest.raises(ConfigError, match="add --out DIR"):
        stream(bright_segmenter(), arguments, tell=lambda _: None)
    assert source.closed == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--records", "parquet"], "--records needs a folder to write to: add --out DIR"),
        (["--records", ""], "--records needs a folder to write to: add --out DIR"),
        (["--rotate-mb", "0"], "--rotate-mb needs a folder to write to: add --out DIR"),
        (["--rotate-h", "1"], "--rotate-h needs a folder to write to: add --out DIR"),
        (["--out", "OUT", "--records", "xml"], "--records names 'xml'; expected some of jsonl"),
        (["--out", "OUT", "--rotate-mb", "nan"], "--rotate-mb is nan; expected more than 0, or 0"),
        (["--out", "OUT", "--rotate-h", "-1"], "--rotate-h is -1.0; expected more than 0, or 0"),
    ],
)
def test_records_that_cannot_be_kept_as_asked_are_an_error(
    folder: Path, model: Path, words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [word.replace("OUT", str(folder / "out")) for word in words]
    assert main(["stream", str(folder), "--model", str(model), *words]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("most", ["inf", "0"])
def test_records_may_grow_without_limit(folder: Path, model: Path, most: str) -> None:
    words = ["--out", str(folder / "out"), "--rotate-mb", most, "--rotate-h", most]
    assert main(["stream", str(folder), "--model", str(model), *words]) in (0, 1)
    assert (folder / "out" / "defects.jsonl").exists()


def test_stream_keeps_crops_for_review_with_their_place_and_run(
    folder: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, review = folder / "out", folder / "review"
    words = ["stream", str(folder), "--model", str(model), "--json", "--strip-rows", "32"]
    words += ["--out", str(out), "--review-score", "0.0", "--reject-score", "1.0"]
    main([*words, "--review-dir", str(review), "--review-reasons", "review"])
    *_, report = capsys.readouterr().out.splitlines()
    run = json.loads(report)["run"]
    kept = ReviewFolder(review)
    web = np.vstack([read_levels(folder / f"{n}.png") for n in range(3)])
    assert len(kept.entries()) == 5
    for entry in kept.entries():
        record, draft = kept.read(entry.name)
        assert (record["run"], record["group"], record["verdict"]) == (run, run, "review")
        y, x = record["position"]["first_line"], record["position"]["x0_px"]
        crop = read_levels(review / f"{entry.name}.png")
        assert np.array_equal(crop, web[y : y + crop.shape[0], x : x + crop.shape[1]])
        assert draft.shape == crop.shape
        assert len(record["model"]["sha256"]) == 64
    (sink,) = (s for s in json.loads(report)["sinks"] if s["name"] == str(review))
    assert (sink["delivered"], sink["error"]) == (5, None)
    words.remove("--json")
    main([*words, "--review-dir", str(review), "--review-reasons", "review"])
    told = f"{review}: {len(kept.entries())} pictures wait for review"
    assert told in capsys.readouterr().out


def test_stream_keeps_nothing_unless_a_folder_is_named(
    folder: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = set(folder.rglob("*"))
    main(["stream", str(folder), "--model", str(model), "--review-score", "0.0"])
    assert set(folder.rglob("*")) == before
    assert main(["stream", str(folder), "--model", str(model), "--review-share", "0.5"]) == 2
    assert "--review-dir" in capsys.readouterr().err


def test_stream_goes_on_where_nothing_can_be_kept(
    folder: Path, model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ReviewFolder, "add", fail)
    words = ["stream", str(folder), "--model", str(model), "--threshold", "1.0"]
    words += ["--review-score", "0.0", "--reject-score", "1.0"]
    assert main([*words, "--review-dir", str(folder / "review")]) == 0
    said = capsys.readouterr()
    assert "150 lines inspected" in said.out
    assert "No space left on device" in said.out + said.err
