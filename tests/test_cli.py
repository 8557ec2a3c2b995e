from __future__ import annotations

import argparse
import json
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import IO

import numpy as np
import pytest
from PIL import Image

import magtiles_seg
from magtiles_seg import cli
from magtiles_seg.cli import build_parser
from magtiles_seg.commands import options
from magtiles_seg.dataset.synthetic import synthetic_tile
from magtiles_seg.files import Lock
from magtiles_seg.model.bundled import BUNDLED_MODELS
from magtiles_seg.serve.settings import Settings, described

ALWAYS = ("--reject-score", "0")
NEVER = ("--reject-score", "1")


@pytest.fixture
def tile(tmp_path: Path) -> Path:
    path = tmp_path / "tile.png"
    image = synthetic_tile(3, defect="blowhole", size_hw=(96, 80)).image
    Image.fromarray(image).save(path)
    return path


@pytest.fixture
def folder(tmp_path: Path, tile: Path) -> Path:
    root = tmp_path / "shots"
    (root / "monday").mkdir(parents=True)
    for name in ("a.png", "b.PNG", "monday/a.png"):
        (root / name).write_bytes(tile.read_bytes())
    (root / "notes.txt").write_text("no picture", encoding="utf-8")
    return root


def run(*words: object) -> int:
    return cli.main([str(word) for word in words])


def test_segment_of_accepted_tile_exits_0_and_prints_its_verdict(
    tile: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("segment", tile, *NEVER) == 0
    assert capsys.readouterr().out.startswith(f"{tile}: accept, score 0.")


def test_segment_of_rejected_tile_exits_1(tile: Path) -> None:
    assert run("segment", tile, *ALWAYS) == 1


def test_segment_of_tile_to_be_reviewed_exits_1(
    tile: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("segment", tile, *NEVER, "--review-score", "0") == 1
    assert "review" in capsys.readouterr().out


def test_segment_with_json_prints_the_library_s_own_answer(
    tile: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run("segment", tile, "--json", "--threshold", "0.3", "--mm-per-px", "0.05")
    answer = json.loads(capsys.readouterr().out)
    expected = magtiles_seg.segment(tile, threshold=0.3, mm_per_px=0.05).to_dict()
    assert answer.pop("model")["sha256"] == expected.pop("model")["sha256"]
    assert answer == json.loads(json.dumps(expected))


def test_segment_with_out_writes_the_mask_at_the_picture_s_size(tile: Path, tmp_path: Path) -> None:
    run("segment", tile, "--out", tmp_path / "out", "--threshold", "0.3")
    mask = np.asarray(Image.open(tmp_path / "out" / "tile_mask.png"))
    assert np.array_equal(mask > 0, magtiles_seg.segment(tile, threshold=0.3).mask > 0)
    assert (tmp_path / "out" / "tile_overlay.png").exists()


def test_segment_of_folder_keeps_its_tree_in_out(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("segment", folder, *NEVER, "--json", "--out", tmp_path / "out") == 0
    lines = capsys.readouterr().out.splitlines()
    sources = [json.loads(line)["source"] for line in lines]
    assert sources == [str(folder / name) for name in ("a.png", "b.PNG", "monday/a.png")]
    results = sorted((tmp_path / "out").rglob("*_result.json"))
    places = [str(path.relative_to(tmp_path / "out")) for path in results]
    assert places == ["a_result.json", "b_result.json", "monday/a_result.json"]


def test_segment_of_glob_takes_what_it_matches(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("segment", folder / "**" / "a.*", *NEVER) == 0
    assert len([line for line in capsys.readouterr().out.splitlines() if line[0] != " "]) == 2


def test_segment_of_damaged_picture_among_good_ones_goes_on_and_exits_2(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "aa.png").write_bytes(b"\x89PNG no more")
    assert run("segment", folder, *ALWAYS, "--json") == 2
    out, err = capsys.readouterr()
    answers = [json.loads(line) for line in out.splitlines()]
    assert [("error" in answer) for answer in answers] == [False, True, False, False]
    assert err.count("\n") == 1
    assert "aa.png" in err


def test_segment_of_missing_file_exits_2_with_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("segment", tmp_path / "gone.png") == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("magtiles-seg: ")
    assert "gone.png" in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("word", ["", "*.png"])
def test_segment_of_nothing_exits_2_and_says_what_was_expected(
    tmp_path: Path, word: str, capsys: pytest.CaptureFixture[str]
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    assert run("segment", empty / word) == 2
    assert "expected files ending in .bmp" in capsys.readouterr().err


def test_segment_of_same_names_into_one_folder_exits_2_before_any_work(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures = (folder / "a.png", folder / "monday" / "a.png")
    assert run("segment", *pictures, "--out", tmp_path / "out") == 2
    assert "would be written to the same files" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_segment_of_names_that_differ_by_suffix_keeps_the_suffix(
    folder: Path, tmp_path: Path
) -> None:
    Image.open(folder / "a.png").save(folder / "a.bmp")
    run("segment", folder / "a.*", "--out", tmp_path / "out")
    names = sorted(path.name for path in (tmp_path / "out").glob("*_mask.png"))
    assert names == ["a.bmp_mask.png", "a.png_mask.png"]


def test_segment_with_threshold_out_of_range_exits_2(
    tile: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("segment", tile, "--threshold", "3") == 2
    assert "threshold is 3.0; expected a number from 0 to 1" in capsys.readouterr().err


def test_segment_with_foreign_model_exits_2(
    tile: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "foreign.onnx").write_bytes(b"no model")
    assert run("segment", tile, "--model", tmp_path / "foreign.onnx") == 2
    assert "foreign.onnx" in capsys.readouterr().err


def test_info_with_json_names_version_runtime_and_card(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("info", "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["magtiles-seg"] == magtiles_seg.__version__
    assert "onnxruntime" in facts["runtimes"]
    assert facts["card"]["labels"] == list(magtiles_seg.LABELS)
    assert facts["bundled_models"].keys() == BUNDLED_MODELS.keys()
    told = facts["bundled_models"]["lite0"]
    assert told["protocol"].startswith("T, of 5 networks")
    assert 0.9 < told["auroc"] < 1 < told["megabytes"] < 12


def test_info_with_two_onnxruntimes_installed_warns(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("importlib.metadata.version", lambda _: "1.32.0")
    assert run("info") == 0
    assert "overwrite each other's files: pip uninstall" in capsys.readouterr().out


def test_synthetic_data_is_loaded_split_and_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("data", "load", "--set", "data_load.source=synthetic:tiles=20,seed=1") == 0
    assert "120 pictures of 20 tiles, all whole" in capsys.readouterr().out
    with pytest.warns(UserWarning, match="not loaded from data_load.source, .* synthetic:tiles=20"):
        assert run("data", "split") == 0
    Path("params.yaml").write_text("data_load: {source: 'synthetic:tiles=20,seed=1'}")
    assert run("data", "check", "data/split.json") == 0
    random = ("--set", "data_split.rule=random", "--out", "data/random.json")
    assert run("data", "split", *random) == 0
    assert run("data", "check", "data/random.json") == 1


def test_evaluate_on_a_random_split_says_so_everywhere_and_never_t(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("data", "synth", "data", "--tiles", 8) == 0
    rule = ("--set", "data_split.folds=2", "--set", "data_split.rule=random")
    assert run("data", "split", *rule) == 0
    assert run("evaluate", "--protocol", "T", "--out", "out", "--json", "all.json") == 0
    for path in ("out/metrics.json", "all.json"):
        written = json.loads(Path(path).read_text(encoding="utf-8"))
        said = (written["protocol"], written["split_rule"], written["leaky_split"])
        assert said == ("native/random", "random", True)
    report = Path("out/report.md").read_text(encoding="utf-8")
    assert report.startswith("## Protocol native/random: not protocol T: the split's rule is rand")
    assert "- LEAKY: this split puts exposures of one tile" in report
    assert report.strip() in capsys.readouterr().out


def test_folder_as_source_is_split_where_it_lies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    source = ("--set", "data_load.source=mine")
    assert run("data", "synth", "mine", "--tiles", "10") == 0
    assert run("data", "load", *source) == 0
    assert run("data", "split", *source, "--out", "split.json") == 0
    assert run("data", "check", "split.json", *source, "--json") == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["clean"] is True


def test_split_of_other_data_is_refused_by_train(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("torch")
    monkeypatch.chdir(tmp_path)
    assert run("data", "synth", "data", "--tiles", "12") == 0
    assert run("data", "split") == 0
    for path in list(Path("data").glob("MT_Free/Imgs/exp1_*")):
        path.unlink()
    assert run("train") == 2
    assert "names 6 pictures that the data set lacks, exp1_num_" in capsys.readouterr().err


def test_train_into_a_folder_where_one_trains_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("torch")
    monkeypatch.chdir(tmp_path)
    assert run("data", "synth", "data", "--tiles", "12") == 0
    assert run("data", "split") == 0
    Path("runs/train").mkdir(parents=True)
    with Lock(Path("runs/train/.lock")):
        assert run("train", "--restart") == 2
    assert "another training in runs/train is under way" in capsys.readouterr().err
    assert not any(path.is_dir() for path in Path("runs/train").iterdir())


def test_train_into_the_folder_of_another_run_leaves_its_parameters_as_they_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("torch")
    from magtiles_seg.model.checkpoint import write_tensors

    monkeypatch.chdir(tmp_path)
    assert run("data", "synth", "data", "--tiles", "12") == 0
    assert run("data", "split") == 0
    write_tensors(Path("runs/train/model.safetensors"), {}, {"training": {"architecture": "small"}})
    kept = Path("runs/train/dvclive/params.yaml")
    kept.parent.mkdir()
    kept.write_text("architecture: small\n", encoding="utf-8")
    assert run("train", "--set", "train.architecture=nano") == 2
    assert "is of a run with other architecture" in capsys.readouterr().err
    assert kept.read_text(encoding="utf-8") == "architecture: small\n"
    assert [path.name for path in kept.parent.iterdir()] == ["params.yaml"]


def test_synth_writes_tiles_that_evaluate_scores(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("data", "synth", tmp_path / "tiles", "--tiles", "4", "--seed", "2") == 0
    figures = tmp_path / "figures" / "metrics.json"
    assert run("evaluate", tmp_path / "tiles", "--json", figures) == 0
    assert json.loads(figures.read_text(encoding="utf-8"))["pictures"] == 24
    assert "| figure |" in capsys.readouterr().out


@pytest.mark.slow
def test_train_export_and_evaluate_on_synthetic_tiles_end_in_a_model_that_segments(
    tmp_path: Path, tile: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torch")
    monkeypatch.chdir(tmp_path)
    small = (
        "architecture=nano pretrained=false epochs=1 pictures_per_epoch=8 batch_size=4 crop_px=64"
    )
    settings = [word for item in small.split() for word in ("--set", f"train.{item}")]
    assert run("data", "synth", "data", "--tiles", 30) == 0
    assert run("data", "split", "--set", "data_split.validation_fraction=0.4") == 0
    assert run("train", *settings) == 0
    assert "nano" in Path("runs/train/dvclive/params.yaml").read_text(encoding="utf-8")
    checkpoint = Path("runs/train/model.safetensors")
    split = ("--split", "data/split.json")
    assert run("export", "--model", checkpoint, *split, "--out", "out/model.onnx") == 0
    assert run("evaluate", "--model", "out/model.onnx", "--json", "metrics.json") == 0
    assert json.loads(Path("metrics.json").read_text(encoding="utf-8"))["protocol"] == "T"
    assert run("segment", tile, "--model", "out/model.onnx") in (0, 1)


def test_unknown_parameter_exits_2_with_the_nearest_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("data", "load", "--set", "data_load.sorce=x") == 2
    assert "did you mean 'data_load.source'?" in capsys.readouterr().err


def test_evaluate_without_data_exits_2_and_says_how_to_get_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("evaluate", tmp_path / "nowhere") == 2
    assert "magtiles-seg data load" in capsys.readouterr().err


def test_train_without_torch_names_the_install_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def missing(_name: str) -> object:
        raise ModuleNotFoundError("No module named 'torch'", name="torch")

    monkeypatch.setattr(options, "import_module", missing)
    assert run("train") == 2
    assert "needs torch" in (err := capsys.readouterr().err)
    assert "pip install 'magtiles-seg[train]'" in err


@pytest.mark.parametrize(
    "words", [("segment",), ("segmant", "x"), ("segment", "x", "--threshold", "y")]
)
def test_misspelt_command_line_exits_2_with_usage(
    words: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        run(*words)
    assert "usage: magtiles-seg" in capsys.readouterr().err


@pytest.mark.parametrize("words", [(), ("data",)])
def test_command_without_a_verb_shows_its_help_and_exits_2(
    words: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*words) == 2  # 0 would say that a tile was accepted
    assert "show this help message" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("segmnt", "x"), "'segmnt' is none of segment, batch"),
        (("segmnt", "x"), "did you mean 'segment'?"),
        (("data", "splt"), "did you mean 'split'?"),
        (("segment", "x", "--thrshold", "0.3"), "did you mean '--threshold'?"),
        (("segment", "x", "--thrshold=0.3"), "did you mean '--threshold'?"),
        (("stream", "x", "--when-full", "blok"), "did you mean 'block'?"),
        (("demo", "--port", "99999"), "expected a port from 0 to 65535, got '99999'"),
        (("demo", "--port", "-1"), "expected a port"),
    ],
)
def test_misspelt_word_gets_the_nearest_one(
    words: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        run(*words)
    assert said in capsys.readouterr().err


def test_serve_help_has_a_sentence_for_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    about = described(Settings)
    assert set(about) == {entry.name for entry in fields(Settings)}
    with pytest.raises(SystemExit, match="0"):
        run("serve", "--help")
    help_text = " ".join(capsys.readouterr().out.split())
    assert "Largest picture, checked before it is decoded." in help_text
    assert "None" not in help_text


def test_info_is_a_table_of_one_fact_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("info") == 0
    lines = capsys.readouterr().out.splitlines()
    assert all(len(line) < 200 and "{" not in line for line in lines)
    (threshold,) = (line for line in lines if line.startswith("    threshold"))
    with magtiles_seg.Segmenter() as segmenter:
        assert float(threshold.split()[1]) == round(segmenter.decision.threshold, 4)


@pytest.mark.parametrize(
    ("words", "verb"),
    [
        (("train",), "data split"),
        (("evaluate",), "data split"),
        (("data", "split"), "data load"),
        (("evaluate", "--model", "runs/model.onnx", "."), "export"),
        (("segment", "x.png", "--model", "runs/train/model.safetensors"), "train"),
    ],
)
def test_missing_file_names_the_verb_that_makes_it(
    words: tuple[str, ...],
    verb: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if words == ("train",):
        pytest.importorskip("torch")
    monkeypatch.chdir(tmp_path)
    assert run(*words) == 2
    assert f"magtiles-seg {verb}" in capsys.readouterr().err


@pytest.mark.parametrize(
    "verb",
    ["segment", "info", "train", "evaluate", "export", *(f"data {v}" for v in ("load", "split"))],
)
def test_help_of_a_verb_ends_in_examples_that_parse(
    verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="0"):
        run(*verb.split(), "--help")
    assert f"magtiles-seg {verb}" in capsys.readouterr().out.split("examples:")[1]


def test_help_of_every_option_names_its_default() -> None:
    missing = []
    parsers: list[argparse.ArgumentParser] = [build_parser()]
    for parser in parsers:  # grows
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                parsers += action.choices.values()
            elif action.default and action.default != argparse.SUPPRESS:
                text = action.help or ""
                missing += [] if "default" in text else [(parser.prog, action.option_strings)]
    assert len(parsers) > 20
    assert not missing


def test_warning_is_printed_in_its_words_alone(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text("train: {kind_weight: 0.1}\n", encoding="utf-8")
    ran = subprocess.run(
        [sys.executable, "-m", "magtiles_seg", "data", "split"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    first = ran.stderr.splitlines()[0]
    assert first.startswith("magtiles-seg: train.kind_weight is now train.class_weight")
    assert ".py" not in ran.stderr


@pytest.mark.parametrize(
    "words",
    [
        ["batch", "shots", "--out", "s3://tiles/out"],
        ["segment", "a.png", "--out", "s3://tiles/out"],
        ["train", "--out", "gs://tiles/run"],
    ],
)
def test_address_where_a_path_is_wanted_makes_no_local_folder_of_that_name(
    words: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(*words) == 2
    assert f"out is {words[-1]}, an address; expected a path on this" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def run_apart(words: str, cwd: Path, *, stderr: IO[str] | int) -> subprocess.CompletedProcess[str]:
    """Run a line of a shell, where `$M` is the command."""
    command = f"M='{sys.executable} -m magtiles_seg'; {words}"
    return subprocess.run(
        ["/bin/sh", "-c", command],
        cwd=cwd,
        text=True,
        check=False,
        stdout=subprocess.PIPE,
        stderr=stderr,
    )


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_segment_whose_messages_cannot_be_written_goes_on_and_exits_2(tile: Path) -> None:
    with Path("/dev/full").open("w") as full:
        ran = run_apart(f"$M segment missing.png {tile.name}", tile.parent, stderr=full)
    assert ran.returncode == 2
    assert ran.stdout.startswith(f"{tile.name}: ")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_answer_that_cannot_be_written_is_an_error_that_says_so(tmp_path: Path) -> None:
    ran = run_apart("$M info >/dev/full", tmp_path, stderr=subprocess.PIPE)
    assert ran.returncode == 2
    assert "the output cannot be written: No space left on device" in ran.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="a folder in use cannot be deleted there")
def test_working_folder_that_is_gone_is_named(tmp_path: Path) -> None:
    gone = "mkdir gone && cd gone && rmdir ../gone && $M"
    for words in ("segment a.png", "data synth x --tiles 1"):
        ran = run_apart(f"{gone} {words}", tmp_path, stderr=subprocess.PIPE)
        assert ran.returncode == 2
        assert "the working folder is gone" in ran.stderr
