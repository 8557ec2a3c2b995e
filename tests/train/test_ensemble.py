from __future__ import annotations

import copy
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from torch.nn import Conv2d

from magtiles_seg.cli import main
from magtiles_seg.errors import ConfigError
from magtiles_seg.export.graph import export_onnx
from magtiles_seg.export.parity import Tolerance
from magtiles_seg.infer.backends.eager import EagerBackend, InferenceGraph
from magtiles_seg.infer.backends.onnxfile import precision_of
from magtiles_seg.infer.backends.ort import OrtBackend
from magtiles_seg.model.checkpoint import (
    CHECKPOINT,
    STATE,
    calibrate_checkpoint,
    load_checkpoint,
    save_checkpoint,
)
from magtiles_seg.model.ensemble import Network
from magtiles_seg.model.network import build_network
from magtiles_seg.model.patch_network import PatchNetwork
from magtiles_seg.model.stored import widen
from magtiles_seg.model.warmstart import has_patches, start_from
from magtiles_seg.train.ensemble import join

REDUCED = {onnx.TensorProto.FLOAT16, onnx.TensorProto.INT8}
ODD = np.random.default_rng(0).integers(0, 256, (2, 75, 107), np.uint8)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Networks of three strides, whose answers are no constants."""
    folder, made = tmp_path_factory.mktemp("runs"), {}
    for number, name in enumerate(("lite0", "small", "nano")):
        torch.manual_seed(number)
        network = build_network(name)
        if name == "lite0":
            network.add_patches()
            network.patch_share.fill_(0.25)
        torch.nn.init.normal_(network.defect_head.weight, std=0.1)
        made[name] = folder / name
        made[name].mkdir()
        said = {"training_sha256": name, "protocol": "T"}
        save_checkpoint(made[name] / "model.safetensors", network, {"training": said})
    return made


@pytest.fixture(scope="module")
def joined(runs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("joined")
    join(list(runs.values()), out, shares=[7, 2, 1])
    return out / "model.safetensors"


@pytest.fixture(scope="module")
def rounded(runs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, of rounded weights, beside it as an ONNX file that stores them in 8 bits."""
    out = tmp_path_factory.mktemp("rounded")
    join(list(runs.values()), out, shares=[7, 2, 1], rounded=True)
    path = out / "model.safetensors"
    export_onnx(path, path.with_suffix(".onnx"), tolerance=Tolerance(max_abs_diff=1e-5))
    return path


def logit(probability: NDArray[np.float32]) -> NDArray[np.float64]:
    p = probability.astype(np.float64)
    return np.asarray(np.log(p) - np.log1p(-p))


def test_ensemble_answers_by_the_mean_of_its_members_logits(
    joined: Path, runs: dict[str, Path]
) -> None:
    backends = [EagerBackend(run / "model.safetensors") for run in runs.values()]
    each = [logit(backend.infer(ODD)[0]) for backend in backends]
    ensemble = EagerBackend(joined)
    probability, classes = ensemble.infer(ODD)
    wanted = np.tensordot([0.7, 0.2, 0.1], np.stack(each), 1)
    np.testing.assert_allclose(logit(probability), wanted, atol=1e-4)
    np.testing.assert_array_equal(classes, backends[0].infer(ODD)[1])
    card, cards = ensemble.spec.card, [backend.spec.card for backend in backends]
    assert card.architecture == "lite0+small+nano"
    assert card.stride == max(one.stride for one in cards) == 64
    assert card.receptive_field_px == max(one.receptive_field_px for one in cards)
    assert card.training["ancestors"] == ["lite0", "nano", "small"]
    assert card.training["shares"] == [0.7, 0.2, 0.1]


def test_ensemble_of_pictures_of_its_stride_answers_as_the_graph_of_any_size(joined: Path) -> None:
    network, _ = load_checkpoint(joined)
    image = torch.from_numpy(np.random.default_rng(1).integers(0, 256, (1, 64, 128), np.uint8))
    with torch.inference_mode():
        bare = network(image[:, None].float())[0].sigmoid()[:, 0]
        whole, _ = InferenceGraph(network)(image)
    torch.testing.assert_close(bare, whole)


def test_ensemble_exported_answers_as_its_checkpoint(rounded: Path) -> None:
    exported = rounded.with_suffix(".onnx")
    probability, classes = OrtBackend(exported, threads=1).infer(ODD)
    expected, expected_classes = EagerBackend(rounded).infer(ODD)
    assert np.abs(probability - expected).max() <= 1e-5
    assert (classes != expected_classes).mean() < 0.001
    started = build_network("small")
    start_from(started, exported, list(ODD))
    assert has_patches(exported, "lite0")
    assert not has_patches(exported, "nano")
    assert not has_patches(exported, "small")


def test_ensemble_rounded_loses_nothing_by_storage_in_8_bits(
    runs: dict[str, Path], rounded: Path
) -> None:
    exported = rounded.with_suffix(".onnx")
    network, _ = load_checkpoint(rounded)
    weights = sum(weight.numel() for weight in network.parameters())
    assert exported.stat().st_size < 1.24 * weights  # bytes
    assert EagerBackend(rounded).spec.card.training["weight_bits"] == 8
    assert precision_of(exported.read_bytes()) == "fp32"
    wide = onnx.load(exported)
    assert onnx.TensorProto.FLOAT16 not in {one.data_type for one in wide.graph.initializer}
    widen(wide)
    assert not REDUCED & {one.data_type for one in wide.graph.initializer}
    started = build_network("nano")
    start_from(started, exported, list(ODD))
    with torch.inference_mode():
        alone = EagerBackend(runs["nano"] / "model.safetensors").infer(ODD)[0]
        found = InferenceGraph(started).eval()(torch.from_numpy(ODD))[0].numpy()
    assert np.abs(found - alone).max() < 0.05


def test_one_network_is_rounded_and_stays_what_it_is(
    runs: dict[str, Path], model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, out, half = tmp_path / "run", tmp_path / "out", tmp_path / "half.onnx"
    run.mkdir()
    uncalibrated = runs["nano"] / "model.safetensors"
    calibrate_checkpoint(uncalibrated, run / "model.safetensors", scale=0.5, bias=0.25)
    (run / "split.json").write_text("{}", encoding="utf-8")
    for _ in range(2):
        assert main(["ensemble", str(run), "--round", "--out", str(out)]) == 0
        assert capsys.readouterr().out == f"{out}: nano, rounded to 8 bits\n"
    assert (out / "split.json").read_text(encoding="utf-8") == "{}"
    kept, rounded = (load_checkpoint(one / "model.safetensors") for one in (run, out))
    wanted = {**kept[1], "training": {**kept[1]["training"], "weight_bits": 8}}
    assert rounded[1] == wanted
    assert "calibration" in wanted
    with torch.inference_mode():
        differ = [
            float((weight - other).abs().max() / other.abs().max())
            for weight, other in zip(rounded[0].parameters(), kept[0].parameters(), strict=True)
        ]
    assert 0 < max(differ) <= 0.5 / 127 + 1e-6
    export_onnx(out / "model.safetensors", half, tolerance=Tolerance(max_abs_diff=1e-5))
    assert half.stat().st_size < 0.62 * model.stat().st_size  # a nano, too, that is not rounded
    with pytest.raises(ConfigError, match="out is read"):
        join([out], out, shares=[1], rounded=True)
    for shares, message in (([1, 1], "a share for each of 1, got 2"), ([-1], "must be above 0")):
        with pytest.raises(ConfigError, match=message):
            join([run], out, shares=shares, rounded=True)


def test_members_share_their_frozen_layers_in_the_file_and_in_what_starts_from_it(
    runs: dict[str, Path], tmp_path: Path
) -> None:
    member, _ = load_checkpoint(runs["lite0"] / "model.safetensors")
    with torch.no_grad():
        for weight in member.parameters():
            if weight.requires_grad:
                weight.mul_(1.5)  # as trained, where the rest is frozen
    before = PatchNetwork(member.labels)
    known = before.state_dict()
    frozen = {
        name: weight
        for name, weight in member.state_dict().items()
        if name in known and not name.startswith("class_head")
    }
    before.load_state_dict({**known, **frozen})
    for layer in (before.patches.hidden_fine, before.patches.hidden_coarse, before.patches.answer):
        layer.reset_parameters()  # it was fitted alone
    other = copy.deepcopy(member)
    with torch.no_grad():
        other.defect_head.weight.mul_(2)  # type: ignore[union-attr, operator]
    made: list[PatchNetwork | Network] = [before, member, other]
    folders = [tmp_path / name for name in ("patches", "lite0", "other")]
    for folder, network in zip(folders, made, strict=True):
        folder.mkdir(exist_ok=True)
        save_checkpoint(folder / "model.safetensors", network, {})
    join(folders, tmp_path / "three", shares=[1, 1, 1])
    path = tmp_path / "three.onnx"
    export_onnx(tmp_path / "three" / "model.safetensors", path, precision="fp32")
    nodes = [node for node in onnx.load(path).graph.node if node.op_type == "Conv"]
    alone = [sum(isinstance(one, Conv2d) for one in each.modules()) for each in made]
    assert len(nodes) <= alone[0] + alone[1] + 1  # another head; the first pads otherwise
    assert has_patches(path, "lite0")
    started = build_network("lite0")
    started.add_patches()
    pictures = list(np.random.default_rng(0).integers(0, 256, (2, 224, 224), np.uint8))
    start_from(started, path, pictures)
    started.patch_share.fill_(0.25)
    image = torch.from_numpy(np.stack(pictures))[:, None].float()
    with torch.inference_mode():
        found, wanted = (network.eval()(image)[0] for network in (started, member))
    torch.testing.assert_close(found, wanted, atol=0.01, rtol=0.01)


def test_network_started_from_an_ensemble_is_its_member(
    joined: Path, runs: dict[str, Path]
) -> None:
    for name, run in runs.items():
        member, started = load_checkpoint(run / "model.safetensors")[0], build_network(name)
        if name == "lite0":
            started.add_patches()
        start_from(started, joined, [])
        weights = started.state_dict()
        for key, weight in member.state_dict().items():
            assert key == "patch_share" or torch.equal(weights[key], weight)


def test_ensemble_calibrated_scales_the_joint_logit(joined: Path, tmp_path: Path) -> None:
    calibrate_checkpoint(joined, tmp_path / "c.safetensors", scale=0.5, bias=-1.0)
    before, _ = EagerBackend(joined).infer(ODD)
    after, _ = EagerBackend(tmp_path / "c.safetensors").infer(ODD)
    np.testing.assert_allclose(logit(after), 0.5 * logit(before) - 1, atol=1e-4)


def test_ensemble_verb_joins_runs_and_takes_the_split_along(
    runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = tmp_path / "first"
    shutil.copytree(runs["nano"], first)
    (first / "split.json").write_text("{}", encoding="utf-8")
    words = ["ensemble", str(first), str(runs["small"]), "--out", str(tmp_path / "both")]
    assert main(words) == 0
    assert "nano+small, with shares of 50%, 50%" in capsys.readouterr().out
    assert (tmp_path / "both" / "split.json").read_text(encoding="utf-8") == "{}"
    assert main([*words, "--shares", "0.998", "0.002"]) == 0
    assert "with shares of 99.8%, 0.2%" in capsys.readouterr().out
    assert main([*words, "--shares", "1"]) == 2
    assert "expected a share for each of 2, got 1" in capsys.readouterr().err


def test_ensemble_needs_no_more_than_training_does() -> None:
    code = "import sys; sys.modules['onnx'] = None; import magtiles_seg.train.ensemble"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_ensemble_that_cannot_be_is_refused(
    runs: dict[str, Path], joined: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    network = build_network("nano", labels=("background", "stain"))
    save_checkpoint(other / "model.safetensors", network, {})
    nano = runs["nano"]
    cases: list[tuple[list[Path], list[float], str]] = [
        ([nano], [1], "at least two members, got 1"),
        ([nano, runs["small"]], [1, 0], "share must be above 0"),
        ([nano, runs["small"]], [1, float("nan")], "share must be above 0"),
        ([nano, runs["small"]], [1e308, 1e308], "too far apart, or too large"),
        ([nano, runs["small"]], [1, 1e-60], "too far apart, or too large"),
        ([nano, nano.parent / "small" / ".." / "nano"], [1, 1], "is named twice"),
        ([nano, other], [1, 1], "the members have other classes"),
        ([nano, joined.parent], [1, 1], "is an ensemble itself"),
    ]
    for folders, shares, message in cases:
        with pytest.raises(ConfigError, match=message):
            join(folders, tmp_path / "out", shares=shares)
    with pytest.raises(ConfigError, match="nano is read"):
        join([nano, runs["small"]], nano, shares=[1, 1])
    assert not (tmp_path / "out").exists()


def test_ensemble_overwrites_an_earlier_one_but_no_run_and_no_other_split(
    runs: dict[str, Path], tmp_path: Path
) -> None:
    first, out = tmp_path / "first", tmp_path / "out"
    shutil.copytree(runs["nano"], first)
    (first / "split.json").write_text("{}", encoding="utf-8")
    join([first, runs["small"]], out, shares=[1, 1])
    join([first, runs["small"]], out, shares=[1, 3])
    _, meta = load_checkpoint(out / "model.safetensors")
    assert meta["training"]["shares"] == [0.25, 0.75]
    with pytest.raises(ConfigError, match=r"split\.json is not the split of .*small"):
        join([runs["small"], first], out, shares=[1, 1])
    for name in ("model.safetensors", "state.safetensors"):
        other = tmp_path / name
        other.mkdir()
        shutil.copyfile(runs["lite0"] / "model.safetensors", other / name)
        with pytest.raises(ConfigError, match="holds a run"):
            join([first, runs["small"]], other, shares=[1, 1])
        assert (other / name).read_bytes() == (runs["lite0"] / "model.safetensors").read_bytes()


def test_ensemble_of_members_of_other_splits_says_so(
    runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    join([runs["nano"], runs["small"]], tmp_path / "out", shares=[1, 1])
    assert f"{runs['small']} was trained on other pictures" in capsys.readouterr().err
    again = tmp_path / "again"
    shutil.copytree(runs["nano"], again)
    join([runs["nano"], again], tmp_path / "two", shares=[1, 1])
    assert not capsys.readouterr().err
    network, meta = load_checkpoint(again / "model.safetensors")
    meta["training"]["protocol"] = "P1"
    save_checkpoint(again / "model.safetensors", network, meta)
    join([runs["nano"], again], tmp_path / "two", shares=[1, 1])
    assert f"{again} was trained by protocol P1, and {runs['nano']} by T" in capsys.readouterr().err


def test_ensemble_of_a_training_that_has_not_ended_says_so(
    runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stopped = tmp_path / "stopped"
    shutil.copytree(runs["nano"], stopped)
    (stopped / STATE).touch()
    join([stopped], tmp_path / "out", shares=[1], rounded=True)
    assert f"{stopped / CHECKPOINT} is of a training that has not ended" in capsys.readouterr().err
    network, meta = load_checkpoint(stopped / CHECKPOINT)
    save_checkpoint(stopped / CHECKPOINT, network, {**meta, "finished": {}})
    join([stopped], tmp_path / "out", shares=[1], rounded=True)
    assert not capsys.readouterr().err


def test_ensemble_says_which_of_its_members_was_calibrated(
    runs: dict[str, Path], tmp_path: Path
) -> None:
    calibrated = tmp_path / "calibrated" / "model.safetensors"
    calibrated.parent.mkdir()
    calibrate_checkpoint(runs["nano"] / "model.safetensors", calibrated, scale=0.5, bias=-1.0)
    join([runs["small"], calibrated.parent], tmp_path / "two", shares=[1, 1])
    card = EagerBackend(tmp_path / "two" / "model.safetensors").spec.card
    first, second = card.training["members"]
    assert "calibration" not in first
    assert second["calibration"] == {"scale": 0.5, "bias": -1.0}


def test_ensemble_knows_the_data_of_its_members(runs: dict[str, Path], tmp_path: Path) -> None:
    finished = tmp_path / "finished" / "model.safetensors"
    network, meta = load_checkpoint(runs["nano"] / "model.safetensors")
    finished.parent.mkdir()
    save_checkpoint(finished, network, {**meta, "finished": {"data_sha256": "f00"}})
    join([runs["small"], finished.parent], tmp_path / "two", shares=[1, 1])
    _, second = EagerBackend(tmp_path / "two" / "model.safetensors").spec.card.training["members"]
    assert second["finished"] == {"data_sha256": "f00"}
