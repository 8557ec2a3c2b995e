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
from magtiles_seg.errors import ConfigError
from magtiles_seg.model.checkpoint import read_tensors
from magtiles_seg.train.devices import Devices
from magtiles_seg.train.loop import STATE, train

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
    pytest.importorskip("lightning_fabric")
    params = dataclasses.replace(PARAMS, accumulate=accumulate)
    train(samples[::2], samples[1::7], params, tmp_path / "one")
    two = dataclasses.replace(params, devices=2)
    run_script(samples, tmp_path / "two", two)
    assert greatest_difference(tmp_path / "one", tmp_path / "two") < 1e-2
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
