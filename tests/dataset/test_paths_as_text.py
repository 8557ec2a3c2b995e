"""Paths as text and as `Path` do the same in `magtiles_seg.pipeline` and `dataset.fetch`."""

from __future__ import annotations

from pathlib import Path

import cv2
import pytest

from magtiles_seg import cli, pipeline
from magtiles_seg.config import load_params
from magtiles_seg.dataset import fetch
from magtiles_seg.errors import DataError, ModelError


@pytest.fixture
def text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return the name of a data set of 10 tiles in the working directory."""
    monkeypatch.chdir(tmp_path)
    fetch("synthetic:tiles=10", "tiles")
    return "tiles"


def test_split_is_written_and_read_by_text(text: str) -> None:
    params = load_params(None, [f"data_load.source={text}"])
    drawn = pipeline.split(params, "split.json")
    assert pipeline.read_split("split.json") == drawn == pipeline.read_split(Path("split.json"))
    parts = pipeline.split_parts("split.json", params)
    assert sum(map(len, parts.values())) == len(pipeline.samples_of(params, text)) == 60
    assert fetch(Path(text), "unused") == fetch(text, Path("unused"))


def test_evaluate_tells_of_a_picture_that_changed_since_the_split(text: str) -> None:
    params = load_params(None, [f"data_load.source={text}"])
    test = pipeline.split(params, "split.json").test
    changed = next(Path(text).rglob(f"{test[0]}.jpg"))
    pixels = cv2.imread(str(changed), cv2.IMREAD_GRAYSCALE)
    assert pixels is not None
    cv2.imwrite(str(changed), 255 - pixels)
    result = pipeline.evaluate(params, "nano", manifest="split.json", out="report")
    assert "not what the split was drawn from" in result.notes[0]
    assert result.notes[0] in Path("report/report.md").read_text()
    cv2.imwrite(str(changed), pixels[:-9])
    with pytest.raises(DataError, match=f"{test[0]}.png: mask is .* px, its picture"):
        pipeline.evaluate(params, "nano", manifest="split.json")


@pytest.mark.parametrize(
    ("verb", "words"),
    [
        ("parity", "nano nano"),
        ("export", "--model nano --out artefact"),
        ("screen", "--model nano --out screen.onnx"),
        ("train", "--out run"),
    ],
)
def test_every_verb_that_takes_a_split_tells_of_data_that_changed_since(
    verb: str,
    words: str,
    text: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for extra in ("torch", "onnx", "dvclive"):
        pytest.importorskip(extra)

    def stop(line: str) -> None:
        raise DataError(line)

    source = ["--set", f"data_load.source={text}", "--split", "split.json"]
    pipeline.split(load_params(None, source[1:2]), "split.json")
    mask = next(Path(text).rglob("*.png"))
    mask.write_bytes(mask.read_bytes() + b"0")
    monkeypatch.setattr(f"magtiles_seg.commands.{verb}.remark", stop)
    assert cli.main([verb, *words.split(), *source]) == 2
    assert "masks or tiles have changed" in capsys.readouterr().err


def test_stages_take_text(text: str) -> None:
    pytest.importorskip("torch")
    from magtiles_seg.model.checkpoint import write_tensors

    params = load_params(None, [f"data_load.source={text}", "evaluate.part=validation"])
    pipeline.split(params, "split.json")
    write_tensors(Path("run/model.safetensors"), {}, {"training": {"architecture": "small"}})
    with pytest.raises(DataError, match="run with other architecture"):
        pipeline.train(params, "split.json", "run")
    with pytest.raises(ModelError, match="is no checkpoint"):
        pipeline.export(params, "model.onnx", "out.onnx", manifest="split.json")
    pipeline.evaluate(params, "lite0", manifest="split.json", out="report")
    assert Path("report/metrics.json").is_file()
