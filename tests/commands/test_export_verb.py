from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("onnxscript")

from magtiles_seg import Segmenter, cli
from magtiles_seg.commands.options import ACCEPTED, ERROR
from magtiles_seg.dataset.synthetic import synthetic_tile
from magtiles_seg.evaluate.calibration import Affine
from magtiles_seg.evaluate.decide import Choice
from magtiles_seg.labels import LABELS
from magtiles_seg.model.card import measurement
from magtiles_seg.model.checkpoint import STATE, save_checkpoint
from magtiles_seg.model.network import build_network
from magtiles_seg.result import Decision


@pytest.fixture
def _with_checkpoint_and_choice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    network, made = build_network("nano", pretrained=False), {"architecture": "nano"}
    save_checkpoint(tmp_path / "net.safetensors", network, {"training": made})
    choice = Choice(
        decision=Decision(threshold=0.25, reject_score=0.125),
        pixel=Affine(0.5, -0.25),
        recall=0.95,
        pictures=9,
        tiles=3,
        measured=measurement("T", 9, {"auroc": 0.5, "iou": float("nan")}),
    )
    (tmp_path / "choice.json").write_text(choice.to_json())


@pytest.mark.usefixtures("_with_checkpoint_and_choice")
def test_export_with_a_choice_carries_its_thresholds_and_calibration(
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ["export", "--model", "net.safetensors", "--out"]
    assert cli.main([*words, "plain.onnx"]) == ACCEPTED
    assert "has not ended" not in capsys.readouterr().err
    Path(STATE).touch()  # as of a run that is still training
    assert cli.main([*words, "chosen.onnx", "--choice", "choice.json"]) == ACCEPTED
    assert "net.safetensors is of a training that has not ended" in capsys.readouterr().err
    tile = synthetic_tile(1).image
    with Segmenter("plain.onnx") as plain, Segmenter("chosen.onnx") as chosen:
        card = chosen.spec.card
        before, after = plain(tile).probability, chosen(tile).probability
    assert card.name == "net"
    assert card.decision.threshold == 0.25
    assert card.decision.reject_score == 0.125
    assert card.calibration == {"scale": 0.5, "bias": -0.25}
    assert card.metrics == ({"protocol": "T", "pictures": 9, "figures": {"auroc": 0.5}},)
    assert after == pytest.approx(Affine(0.5, -0.25)(before), abs=2e-3)


@pytest.mark.usefixtures("_with_checkpoint_and_choice")
def test_export_with_a_choice_that_is_none_says_where_one_comes_from(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "choice.json").write_text("{}")
    words = ["export", "--model", "net.safetensors", "--out", "a.onnx", "--choice", "choice.json"]
    assert cli.main(words) == ERROR
    assert "evaluate --folds" in capsys.readouterr().err


@pytest.mark.usefixtures("_with_checkpoint_and_choice")
def test_export_of_an_artefact_with_a_choice_is_refused(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.main(["export", "--out", "artefacts", "--choice", "choice.json"]) == ERROR
    assert "--choice is for" in capsys.readouterr().err


@pytest.mark.usefixtures("_with_checkpoint_and_choice")
@pytest.mark.parametrize(("networks", "code"), [
    (("nano",), ACCEPTED), (("small",), ERROR), (("nano", "small"), ERROR),
])  # fmt: skip
def test_choice_of_other_networks_is_refused(
    networks: tuple[str, ...], code: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "choice.json"
    kinds = tuple(f"{name} of {', '.join(LABELS)}" for name in networks)
    path.write_text(replace(Choice.from_json(path.read_text()), networks=kinds).to_json())
    words = ["export", "--model", "net.safetensors", "--out", "a.onnx", "--choice", "choice.json"]
    assert cli.main(words) == code
    if code == ERROR:
        assert f"was made by {' and '.join(kinds)}, but the model is" in capsys.readouterr().err
        assert not Path("a.onnx").exists()
