from __future__ import annotations

import json
from pathlib import Path

import pytest

from magtiles_seg.cli import main
from magtiles_seg.dataset.synthetic import write_dataset
from magtiles_seg.export.parity import synthetic_tiles
from magtiles_seg.export.precision import convert


@pytest.fixture(scope="module")
def int8(model: Path) -> Path:
    path = model.with_name("verb-int8.onnx")
    path.write_bytes(convert(model.read_bytes(), "int8", pictures=synthetic_tiles(1).pictures[:2]))
    return path


def test_parity_of_a_model_with_itself_passes(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_dataset(tmp_path / "tiles", tiles=4)
    assert main(["parity", str(model), str(model), "--data", "tiles", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["passed"], facts["dice"], facts["tiles"]) == (True, 1, "24 tiles")
    assert sum(part["pictures"] for part in facts["per_class"].values()) == 24


def test_parity_by_a_split_compares_on_all_that_the_model_was_not_trained_on(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_dataset(tmp_path / "tiles", tiles=12)
    source = ["--set", "data_load.source=tiles"]
    words = ["--set", "data_split.fold=null", "--set", "data_split.validation_fraction=0.5"]
    for part, expected in (("validation", words), ("test", ["--set", "data_split.fold=0"])):
        assert main(["data", "split", *source, *expected, "--out", "split.json"]) == 0
        parts = json.loads(Path("split.json").read_text())
        capsys.readouterr()
        verb = ["parity", str(model), str(model), *source, "--split", "split.json", "--json"]
        assert main(verb) == 0
        tiles = json.loads(capsys.readouterr().out)["tiles"]
        assert parts[part]
        assert tiles == f"{len(parts['validation']) + len(parts['test'])} tiles"
    bundled = ["parity", "nano", "nano", *source, "--split", "split.json"]
    assert main(bundled) == 2
    assert "was trained on other pictures than this split's" in capsys.readouterr().err


def test_parity_of_another_model_gives_figures_and_exit_code_1(
    model: Path,
    int8: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["parity", str(model), str(int8)]) == 1
    out, err = capsys.readouterr()
    assert out.startswith("240 synthetic tiles, tolerance of fp32\nclass ")
    assert "\nall " in out
    assert "answers differently from its reference" in err


def test_parity_of_unknown_precision_is_an_error(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["parity", str(model), str(model), "--precision", "fp8"]) == 2
    assert "unknown precision 'fp8'" in capsys.readouterr().err


def test_export_verb_writes_artefact_and_names_its_figures(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = ("parity_per_class=1", "fp16_min_dice=0.9", "fp16_min_class_dice=0.9")
    few = [word for setting in settings for word in ("--set", f"export.{setting}")]
    code = main(["export", "--model", str(model), "--precision", "fp16", *few, "--out", "made"])
    assert code == 0
    assert {path.name for path in Path("made").iterdir()} == {
        "nano-fp16.onnx",
        "nano-fp16.onnx.json",
    }
    assert "compared on 6 synthetic tiles" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--out", "x.onnx"], "name --model"),
        (
            ["--model", "m.safetensors", "--precision", "int8", "--out", "x.onnx"],
            "give --out a folder",
        ),
        (["--to", "coreml", "--out", "made"], "unknown target 'coreml'"),
    ],
)
def test_export_verb_of_words_that_do_not_fit_is_an_error(
    words: list[str],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["export", *words]) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "words",
    [
        ["parity", "nano", "nano"],
        ["export", "--to", "onnx", "--out", "artefacts"],
        ["bench", "--select"],
    ],
)
def test_tiles_are_those_of_a_split_or_of_a_folder(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main([*words, "--split", "split.json", "--data", "tiles"])
    assert "argument --data: not allowed with argument --split" in capsys.readouterr().err
