from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("onnxscript")

from magtiles_seg.config import Params, load_params
from magtiles_seg.dataset.splits import make_split, part_sha256
from magtiles_seg.dataset.synthetic import write_dataset
from magtiles_seg.errors import ConfigError, DataError
from magtiles_seg.export.graph import rewrite_card
from magtiles_seg.export.sealed import parse_sealed
from magtiles_seg.export.unseen import gate_tiles
from magtiles_seg.files import write
from magtiles_seg.pipeline import samples_of


@pytest.fixture(scope="module")
def tiles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("gate") / "tiles"
    write_dataset(root, tiles=12)
    return root


@pytest.fixture
def params(tiles: Path, tmp_path: Path) -> Params:
    return load_params(None, [f"data_load.source={tiles}", f"data_load.directory={tmp_path}/data"])


def trained(model: Path, path: Path, **training: object) -> Path:
    """Return a copy of a model whose card says what it was trained on."""
    shutil.copy(model, path)
    _, card = parse_sealed(path.read_bytes(), "model")
    rewrite_card(path, replace(card, training=training))
    return path


@pytest.mark.parametrize(
    ("others", "more"),
    [
        ({}, ""),
        ({"ancestors": ["own"]}, ""),
        ({"ancestors": ["own", "f00"]}, ", though what it learnt from may have been"),
        ({"teacher": "a.safetensors"}, ", though what it learnt from may have been"),
    ],
)
def test_gate_by_the_split_of_the_training_compares_on_none_of_it(
    model: Path, params: Params, tmp_path: Path, others: dict[str, Any], more: str
) -> None:
    drawn = make_split(samples_of(params), folds=3)
    write(tmp_path / "split.json", drawn.to_json())
    own = part_sha256(drawn.train)
    if ancestors := others.get("ancestors"):
        others = {"ancestors": [own, *ancestors[1:]]}
    known = trained(model, tmp_path / "m.onnx", training_sha256=own, **others)
    proof, ranges = gate_tiles(params, known, "int8", manifest=tmp_path / "split.json")
    assert ranges is not None
    assert str(proof) == f"{len(proof.pictures)} tiles, not trained on{more}"
    assert len(proof.pictures) == len(drawn.validation) + len(drawn.test)
    assert not {p.tobytes() for p in proof.pictures} & {p.tobytes() for p in ranges.pictures}


def test_gate_by_another_split_is_refused(model: Path, params: Params, tmp_path: Path) -> None:
    first, other = (make_split(samples_of(params), folds=3, fold=fold) for fold in (0, 1))
    write(tmp_path / "split.json", other.to_json())
    known = trained(model, tmp_path / "m.onnx", training_sha256=part_sha256(first.train))
    with pytest.raises(DataError, match="was trained on other pictures than this split's"):
        gate_tiles(params, known, "int8", manifest=tmp_path / "split.json")


def test_gate_by_a_split_that_holds_nothing_out_is_refused(
    model: Path, params: Params, tmp_path: Path
) -> None:
    drawn = make_split(samples_of(params), fold=None, validation_fraction=0)
    write(tmp_path / "split.json", drawn.to_json())
    with pytest.raises(DataError, match="holds nothing out"):
        gate_tiles(params, model, "int8", manifest=tmp_path / "split.json")


@pytest.mark.parametrize("said", ["split", "ids", "ancestor", "member"])
def test_gate_on_the_data_set_of_the_training_is_refused(
    said: str, model: Path, params: Params, tiles: Path, tmp_path: Path
) -> None:
    samples = samples_of(params, tiles)
    whole = make_split(samples, fold=None, validation_fraction=0)
    training: dict[str, dict[str, object]] = {
        "split": {"split": whole.origin},
        "ids": {"training_sha256": part_sha256(whole.train)},
        "ancestor": {"ancestors": [part_sha256(whole.train)]},
        "member": {"members": [{}, {"finished": whole.origin}]},
    }
    known = trained(model, tmp_path / "m.onnx", **training[said])
    with pytest.raises(DataError, match=r"is what the model .* was trained on"):
        gate_tiles(params, known, "fp16", data=tiles)
    proof, ranges = gate_tiles(params, model, "fp16", data=tiles)
    assert (proof.origin, proof.seen, ranges) == ("given", "", None)


def test_gate_of_int8_without_real_tiles_is_refused(model: Path, params: Params) -> None:
    with pytest.raises(ConfigError, match="int8 takes its ranges from real tiles"):
        gate_tiles(params, model, "int8")
    assert gate_tiles(params, model, "fp16")[0].origin == "synthetic"
