from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from magtiles_seg.config import TrainParams
from magtiles_seg.dataset.samples import Sample, find_samples
from magtiles_seg.dataset.synthetic import write_dataset
from magtiles_seg.errors import BackendUnavailableError, ConfigError
from magtiles_seg.model.checkpoint import STATE, read_tensors
from magtiles_seg.train import loop
from magtiles_seg.train.devices import Devices, device_kind, precision_of
from magtiles_seg.train.loop import train
from magtiles_seg.train.validation import Validation

PARAMS = TrainParams(
    architecture="nano",
    pretrained=False,
    epochs=2,
    pictures_per_epoch=12,
    batch_size=4,
    crop_px=64,
    threads=1,
    precision="fp32",
)

RUN = """
import sys
from pathlib import Path
from magtiles_seg.config import TrainParams
from magtiles_seg.dataset.samples import find_samples
from magtiles_seg.train import loop
if sys.argv[4] == "stop":
    end_epoch = loop._Run.end_epoch
    def end(run, loss):
        found = end_epoch(run, loss)
        raise SystemExit(0)
    loop._Run.end_epoch = end
samples = find_samples(Path(sys.argv[1]))
loop.train(samples[::2], samples[1::7], TrainParams(**eval(sys.argv[3])), Path(sys.argv[2]))
"""


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> tuple[Sample, ...]:
    root = tmp_path_factory.mktemp("tiles")
    return find_samples(write_dataset(root, tiles=10, seed=1))


def run_script(
    samples: tuple[Sample, ...], out_dir: Path, params: TrainParams, stop: bool = False
) -> None:
    script = out_dir.parent / "run.py"
    script.write_text(RUN)
    root = samples[0].image_path.parents[2]
    words = [str(root), str(out_dir), repr(dataclasses.asdict(params)), "stop" if stop else "go"]
    subprocess.run([sys.executable, str(script), *words], check=True, timeout=300)


def greatest_difference(one: Path, other: Path) -> float:
    """Return the greatest difference of a weight or running statistic, relative to its tensor."""
    ours, theirs = read_tensors(one / STATE)[0], read_tensors(other / STATE)[0]
    assert ours.keys() == theirs.keys()
    return max(
        float((ours[name] - theirs[name]).abs().max() / ours[name].abs().max().clamp(min=1e-3))
        for name in ours
        if name.startswith("network.") and ours[name].is_floating_point()
    )


@pytest.mark.endurance
@pytest.mark.parametrize("accumulate", [1, 2])
def test_train_on_two_processes_ends_in_the_weights_of_one(
    samples: tuple[Sample, ...], tmp_path: Path, accumulate: int
) -> None:
    params = dataclasses.replace(PARAMS, accumulate=accumulate)
    few_steps = dataclasses.replace(params, epochs=1)  # rounding grows with every step
    train(samples[::2], samples[1::7], few_steps, tmp_path / "one")
    run_script(samples, tmp_path / "shared", dataclasses.replace(few_steps, devices=2))
    assert greatest_difference(tmp_path / "one", tmp_path / "shared") < 1e-2
    two = dataclasses.replace(params, devices=2)
    run_script(samples, tmp_path / "two", two)
    run_script(samples, tmp_path / "resumed", two, stop=True)
    assert read_tensors(tmp_path / "resumed" / STATE)[1]["epoch"] == 1
    run_script(samples, tmp_path / "resumed", two)
    assert (tmp_path / "resumed" / STATE).read_bytes() == (tmp_path / "two" / STATE).read_bytes()


def test_train_accumulating_pieces_is_another_run_than_whole_batches(
    samples: tuple[Sample, ...], tmp_path: Path
) -> None:
    short = dataclasses.replace(PARAMS, epochs=1, pictures_per_epoch=4)
    whole = train(samples[:8], samples[:4], short, tmp_path / "whole").with_name(STATE)
    pieces = dataclasses.replace(short, accumulate=2)
    cut = train(samples[:8], samples[:4], pieces, tmp_path / "cut").with_name(STATE)
    assert read_tensors(cut)[1]["identity"]["accumulate"] == 2
    assert "accumulate" not in read_tensors(whole)[1]["identity"]
    name = "network.encoder.stages.0.0.1.running_var"
    assert not torch.equal(read_tensors(whole)[0][name], read_tensors(cut)[0][name])


def test_devices_batch_that_does_not_divide_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"multiple of train\.devices x .*\(1 x 3\), got 4"):
        Devices(dataclasses.replace(PARAMS, accumulate=3))


def test_devices_places_of_one_device_are_the_whole_batch() -> None:
    assert Devices(dataclasses.replace(PARAMS, accumulate=2)).places == (0, 1, 2, 3)


def _cuda(monkeypatch: pytest.MonkeyPatch, count: int, build: str | None = "12.6") -> None:
    """Let torch see that many GPUs."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(torch.version, "cuda", build)


@pytest.mark.parametrize(
    ("wanted", "seen", "kind"),
    [("auto", 0, "cpu"), ("auto", 1, "cuda"), ("cpu", 1, "cpu"), ("cuda", 1, "cuda")],
)
def test_device_kind_takes_what_is_there(
    monkeypatch: pytest.MonkeyPatch, wanted: str, seen: int, kind: str
) -> None:
    _cuda(monkeypatch, seen)
    assert device_kind(wanted, 1) == kind


@pytest.mark.parametrize(
    ("wanted", "count", "seen", "build", "fix"),
    [
        ("cuda", 1, 0, None, r"sees 0; .* without CUDA: pip install a CUDA build of torch"),
        ("cuda", 1, 0, "12.6", r"sees 0; check the NVIDIA driver with nvidia-smi"),
        ("cuda", 4, 2, "12.6", r"needs 4 CUDA devices.*sees 2; set train\.devices to 2 at most"),
        ("auto", 2, 1, "12.6", r"sees 1; set train\.devices to 1 at most, or .* to cpu"),
    ],
)
def test_device_kind_that_is_not_there_is_never_another(
    monkeypatch: pytest.MonkeyPatch, wanted: str, count: int, seen: int, build: str | None, fix: str
) -> None:
    _cuda(monkeypatch, seen, build)
    with pytest.raises(BackendUnavailableError, match=fix):
        device_kind(wanted, count)


def test_train_on_cuda_that_is_not_there_is_an_error_before_any_work(
    samples: tuple[Sample, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _cuda(monkeypatch, 0)
    with pytest.raises(BackendUnavailableError, match=r"train\.device=cuda"):
        train(samples[:4], samples[:4], dataclasses.replace(PARAMS, device="cuda"), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_precision_of_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    for has_bf16, expected in ((True, "bf16"), (False, "fp16")):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda has=has_bf16, **_: has)
        assert precision_of("auto", "cuda") == expected
    for has_bf16, expected in ((True, "bf16"), (False, "fp32")):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda has=has_bf16: has)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
        assert precision_of("auto", "cpu") == expected
    assert precision_of("fp16", "cuda") == "fp16"
    assert precision_of("bf16", "cpu") == "bf16"
    with pytest.raises(ConfigError, match=r"fp16 needs train\.device=cuda"):
        precision_of("fp16", "cpu")


def test_train_device_is_no_part_of_what_a_run_is(
    samples: tuple[Sample, ...], tmp_path: Path
) -> None:
    short = dataclasses.replace(PARAMS, epochs=1, pictures_per_epoch=4)
    train(samples[:8], samples[:4], short, tmp_path)
    named = dataclasses.replace(short, device="cpu", threads=2)
    assert train(samples[:8], samples[:4], named, tmp_path).is_file()


def test_train_that_draws_on_its_device_resumes_exactly(
    samples: tuple[Sample, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "fits_on", lambda *_: True)
    straight = train(samples[::2], samples[1::7], PARAMS, tmp_path / "straight")
    end_epoch = loop._Run.end_epoch

    def stop(run: loop._Run, loss: float) -> Validation:
        end_epoch(run, loss)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(loop._Run, "end_epoch", stop)
        with pytest.raises(KeyboardInterrupt):
            train(samples[::2], samples[1::7], PARAMS, tmp_path / "broken")
    broken = train(samples[::2], samples[1::7], PARAMS, tmp_path / "broken")
    for name in (STATE, straight.name):
        assert straight.with_name(name).read_bytes() == broken.with_name(name).read_bytes()
    monkeypatch.undo()
    drawn_on_cpu = train(samples[::2], samples[1::7], PARAMS, tmp_path / "cpu")
    assert drawn_on_cpu.read_bytes() != straight.read_bytes()


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["bf16", "fp16", "fp32"])
def test_train_on_cuda_learns_and_resumes(
    samples: tuple[Sample, ...], tmp_path: Path, precision: str
) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    params = dataclasses.replace(
        PARAMS, device="cuda", precision=precision, epochs=4, pictures_per_epoch=128, batch_size=8
    )
    straight = train(samples[::2], samples[1::7], params, tmp_path / "straight")
    meta = read_tensors(straight.with_name(STATE))[1]
    assert meta["history"][-1]["loss"] < meta["history"][0]["loss"]
    assert bool(meta["scaler"]) == (precision == "fp16")
    run_script(samples, tmp_path / "broken", params, stop=True)
    broken = train(samples[::2], samples[1::7], params, tmp_path / "broken")
    difference = greatest_difference(straight.parent, broken.parent)
    assert difference < 1e-3
