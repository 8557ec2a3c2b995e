from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from magtiles_seg import Segmenter
from magtiles_seg.errors import ConfigError, DataError
from magtiles_seg.export import artefacts, repositories
from magtiles_seg.export.graph import rewrite_card
from magtiles_seg.export.parity import TileSet, Tolerance, frozen_pictures
from magtiles_seg.export.sealed import VERDICTS
from magtiles_seg.infer.backends.ort import OrtBackend

pytest.importorskip("tritonclient")

import tritonclient.grpc
import tritonclient.http
from kserve import Server, ovms_models, triton_models
from tritonclient.utils import InferenceServerException

PICTURES = tuple(frozen_pictures()[:2])
TILES = TileSet(pictures=PICTURES, classes=("free", "free"), origin="synthetic")
NAME = "nano-fp32"


def order(target: str) -> artefacts.Order:
    return artefacts.Order(
        target=target, precision="fp32", with_decision=True, tolerance=Tolerance(max_abs_diff=1e-4)
    )


@pytest.fixture(scope="module")
def repository(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("repository")
    artefacts.export_artefact(model, folder, order("triton"), proof=TILES)
    return folder


@pytest.fixture(scope="module")
def triton(repository: Path) -> Iterator[Server]:
    with Server(triton_models(repository)) as server:
        yield server


def ask(protocol: Any, address: str, images: NDArray[np.uint8], names: list[str]) -> Any:  # noqa: ANN401
    image = protocol.InferInput("image", list(images.shape), "UINT8")
    image.set_data_from_numpy(images)
    wanted = [protocol.InferRequestedOutput(name) for name in names]
    with protocol.InferenceServerClient(address) as client:
        assert client.is_model_ready(NAME)
        return client.infer(NAME, [image], outputs=wanted)


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_triton_s_client_gets_the_verdict_of_the_library(
    protocol: str, triton: Server, model: Path
) -> None:
    images = np.stack([PICTURES[0], PICTURES[0][:, ::-1]])
    client = getattr(tritonclient, protocol)
    answer = ask(client, getattr(triton, protocol), images, ["mask", "score", "verdict"])
    assert answer.as_numpy("verdict").shape == (2, 1)
    with Segmenter(model, min_area_px=1) as segmenter:
        for index, expected in enumerate(segmenter(image) for image in images):
            assert (answer.as_numpy("mask")[index] == expected.mask).all()
            assert VERDICTS[answer.as_numpy("verdict")[index, 0]] == expected.verdict
            assert answer.as_numpy("score")[index, 0] == pytest.approx(expected.score, abs=1e-5)


def test_triton_refuses_a_picture_without_its_batch(triton: Server) -> None:
    with pytest.raises(InferenceServerException, match="unexpected shape"):
        ask(tritonclient.http, triton.http, PICTURES[0], ["verdict"])


def test_triton_tells_labels_and_thresholds_with_the_config(triton: Server, model: Path) -> None:
    with tritonclient.http.InferenceServerClient(triton.http) as client:
        config = client.get_model_config(NAME)
    told = {key: entry["string_value"] for key, entry in config["parameters"].items()}
    card = OrtBackend(model).spec.card
    assert told["labels"].split(",") == list(card.labels)
    assert float(told["threshold"]) == pytest.approx(card.decision.threshold)
    assert json.loads(told["left_out_of_decision"]) == {}
    assert config["max_batch_size"] == repositories.MAX_BATCH


def test_strange_words_of_a_card_reach_triton_unchanged(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "nano.onnx"
    path.write_bytes(model.read_bytes())
    card = OrtBackend(path).spec.card
    licence = 'a "quoted" back\\slash, ü # {'
    rewrite_card(path, replace(card, licence=licence))
    artefacts.export_artefact(path, tmp_path / "out", order("triton"), proof=TILES)
    config = triton_models(tmp_path / "out")[NAME].config
    assert config.parameters["licence"].string_value == licence


def test_ovms_serves_two_models_of_one_folder(model: Path, tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    other = tmp_path / "other.onnx"
    other.write_bytes(model.read_bytes())
    out = tmp_path / "models"
    for path in (model, other, model):  # the second time it takes its own place
        artefacts.export_artefact(path, out, order("ovms"), proof=TILES)
    models = ovms_models(out)
    assert sorted(models) == ["nano-fp32", "other-fp32"]
    with Server(models) as server, Segmenter(model, min_area_px=1) as segmenter:
        expected = segmenter(PICTURES[0])
        answer = ask(tritonclient.grpc, server.grpc, PICTURES[0][None], ["mask", "verdict"])
    assert (answer.as_numpy("mask")[0] == expected.mask).all()
    assert VERDICTS[answer.as_numpy("verdict")[0]] == expected.verdict


@pytest.mark.parametrize("content", ["{", "{}", '{"model_config_list": [{"config": {"name": 3}}]}'])
def test_ovms_config_that_is_none_is_refused_before_anything_is_written(
    content: str, model: Path, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(DataError, match=r"config\.json"):
        artefacts.export_artefact(model, tmp_path, order("ovms"), proof=TILES)
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


def test_name_that_no_url_takes_is_refused(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "line 1.onnx"
    path.write_bytes(model.read_bytes())
    with pytest.raises(ConfigError, match="got 'line 1-fp32'; rename the model file"):
        artefacts.export_artefact(path, tmp_path / "out", order("triton"), proof=TILES)
    assert not (tmp_path / "out").exists()
