from __future__ import annotations

import dataclasses
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from magtiles_seg.config import TrainParams
from magtiles_seg.dataset.samples import Sample, find_samples, load_image
from magtiles_seg.dataset.synthetic import write_dataset
from magtiles_seg.errors import ConfigError, DataError
from magtiles_seg.model.checkpoint import (
    CHECKPOINT,
    STATE,
    load_checkpoint,
    read_tensors,
    save_checkpoint,
)
from magtiles_seg.model.network import build_network
from magtiles_seg.train.loop import WARM_UP, MovingAverage, one_cycle, train

PARAMS = TrainParams(
    architecture="nano",
    pretrained=False,
    epochs=3,
    pictures_per_epoch=16,
    batch_size=4,
    crop_px=64,
    coarse_fraction=0.0,
    threads=1,
    precision="fp32",
)

RUN = """
import sys
from pathlib import Path
from magtiles_seg.config import TrainParams
from magtiles_seg.dataset.samples import find_samples
from magtiles_seg.train.loop import train
samples = find_samples(Path(sys.argv[1]))
train(samples[::2], samples[1::7], TrainParams(**eval(sys.argv[3])), Path(sys.argv[2]))
"""


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> tuple[Sample, ...]:
    root = tmp_path_factory.mktemp("tiles")
    return find_samples(write_dataset(root, tiles=10, seed=1))


def _command(samples: tuple[Sample, ...], out_dir: Path) -> list[str]:
    root = samples[0].image_path.parents[2]
    fields = repr(dataclasses.asdict(PARAMS))
    return [sys.executable, "-c", RUN, str(root), str(out_dir), fields]


def _wait_for(path: Path, process: subprocess.Popen[bytes], *, seconds: float) -> None:
    end = time.monotonic() + seconds
    while not path.exists() and time.monotonic() < end and process.poll() is None:
        time.sleep(0.02)
    assert path.exists(), f"no {path.name} after {seconds} s"


def test_train_killed_and_started_again_ends_in_the_same_weights(
    samples: tuple[Sample, ...], tmp_path: Path
) -> None:
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    subprocess.run(_command(samples, straight), check=True, timeout=120)
    with subprocess.Popen(_command(samples, broken)) as process:
        _wait_for(broken / STATE, process, seconds=60)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert read_tensors(broken / STATE)[1]["epoch"] < PARAMS.epochs
    subprocess.run(_command(samples, broken), check=True, timeout=120)
    assert (straight / STATE).read_bytes() == (broken / STATE).read_bytes()
    assert (straight / CHECKPOINT).read_bytes() == (broken / CHECKPOINT).read_bytes()


def test_train_keeps_the_best_epoch_and_logs_every_one(
    samples: tuple[Sample, ...], tmp_path: Path
) -> None:
    rows: list[dict[str, float]] = [{}]
    pictures: dict[str, tuple[int, ...]] = {}

    class Rows:
        def log_metric(self, name: str, val: float) -> None:
            rows[-1][name] = val

        def log_image(self, name: str, val: NDArray[np.uint8]) -> None:
            pictures[name] = val.shape

        def next_step(self) -> None:
            rows.append({})

    path = train(samples[::2], samples[1::7], PARAMS, tmp_path, logger=Rows())
    network, meta = load_checkpoint(path)
    scores = [row["score"] for row in rows[:-1]]
    assert len(scores) == PARAMS.epochs
    assert meta["epoch"] == max(range(len(scores)), key=scores.__getitem__)
    assert meta["validation"]["score"] == max(scores)
    assert network.architecture == "nano"
    assert set(rows[0]) == {"loss", "dice", "macro_dice", "auroc", "score"}
    assert len(pictures) == len({sample.label for sample in samples[1::7]})
    sizes = {f"{sample.id}.png": load_image(sample).shape for sample in samples}
    for name, shape in pictures.items():
        side_by_side = sizes[name][1] <= 1.5 * sizes[name][0]
        assert shape[int(side_by_side)] > 3 * sizes[name][int(side_by_side)]
        assert shape[int(not side_by_side)] == sizes[name][int(not side_by_side)]
        assert shape[2] == 3


def test_train_that_keeps_the_last_epoch_is_not_led_by_its_validation(
    samples: tuple[Sample, ...], tmp_path: Path
) -> None:
    hopeless = dataclasses.replace(PARAMS, learning_rate=1e-8)  # the first epoch is as good as any
    epochs = {
        keep: load_checkpoint(
            train(
                samples[:4], samples[:4], dataclasses.replace(hopeless, keep=keep), tmp_path / keep
            )
        )[1]["epoch"]
        for keep in ("best", "last")
    }
    assert epochs["last"] == PARAMS.epochs - 1
    assert epochs["best"] <= epochs["last"]


def test_train_coarse_epochs_are_kept_but_only_fine_ones_compete(
    samples: tuple[Sample, ...], tmp_path: Path
) -> None:
    mixed = dataclasses.replace(PARAMS, epochs=4, coarse_fraction=0.5, patience=1)
    path = train(samples[::2], samples[1::7], mixed, tmp_path)
    rows = read_tensors(path.with_name(STATE))[1]["history"]
    assert ["score" in row for row in rows[:3]] == [False, False, True]
    assert load_checkpoint(path)[1]["epoch"] >= 2


def test_train_learns_what_it_is_shown(samples: tuple[Sample, ...], tmp_path: Path) -> None:
    large = [sample for sample in samples if sample.label in ("fray", "uneven")]
    longer = dataclasses.replace(
        PARAMS, epochs=5, pictures_per_epoch=96, batch_size=8, crop_px=96, threads=0
    )
    state = train(large, large[:4], longer, tmp_path).with_name(STATE)
    losses = [row["loss"] for row in read_tensors(state)[1]["history"]]
    assert losses[-1] < 0.7 * losses[0]


def test_train_stops_when_nothing_gets_better(samples: tuple[Sample, ...], tmp_path: Path) -> None:
    hopeless = dataclasses.replace(PARAMS, epochs=9, patience=1, learning_rate=1e-8)
    state = train(samples[:4], samples[:4], hopeless, tmp_path).with_name(STATE)
    assert read_tensors(state)[1]["epoch"] < hopeless.epochs


def test_train_into_a_run_with_other_parameters_is_refused(
    samples: tuple[Sample, ...], tmp_path: Path
) -> None:
    short = dataclasses.replace(PARAMS, epochs=1)
    train(samples[:4], samples[:4], short, tmp_path)
    with pytest.raises(DataError, match=r"other learning_rate.*another output directory"):
        train(samples[:4], samples[:4], dataclasses.replace(short, learning_rate=0.5), tmp_path)


@pytest.mark.parametrize("part", ["training", "validation"])
def test_train_with_an_empty_part_names_it(
    samples: tuple[Sample, ...], tmp_path: Path, part: str
) -> None:
    parts = {"training": samples[:4], "validation": samples[:4], part: ()}
    fix = "; raise data_split.validation_fraction" if part == "validation" else ""
    with pytest.raises(DataError, match=f"{part} part is empty{fix}"):
        train(parts["training"], parts["validation"], PARAMS, tmp_path)


def test_train_with_a_teacher_learns_its_probabilities_by_their_weight(
    samples: tuple[Sample, ...], tmp_path: Path
) -> None:
    def weights(name: str, **changes: object) -> bytes:
        params = dataclasses.replace(PARAMS, epochs=1, **changes)  # type: ignore[arg-type]
        tensors, _ = read_tensors(train(samples[::2], samples[1::7], params, tmp_path / name))
        return b"".join(tensor.numpy().tobytes() for tensor in tensors.values())

    alone = weights("alone", seed=1)
    teacher = str(tmp_path / "alone" / CHECKPOINT)
    assert weights("unheard", seed=1, teacher=teacher, teacher_weight=0.0) == alone
    assert weights("taught", seed=1, teacher=teacher, teacher_weight=1.0) != alone


def test_train_with_another_teacher_is_another_run(
    samples: tuple[Sample, ...], tmp_path: Path
) -> None:
    params = dataclasses.replace(PARAMS, epochs=1, pictures_per_epoch=4)
    teacher = train(samples[::2], samples[1::7], params, tmp_path / "teacher")
    taught = dataclasses.replace(params, teacher=str(teacher))
    train(samples[::2], samples[1::7], taught, tmp_path / "run")
    train(samples[::2], samples[1::7], dataclasses.replace(params, seed=2), tmp_path / "other")
    teacher.write_bytes((tmp_path / "other" / CHECKPOINT).read_bytes())
    with pytest.raises(DataError, match="teacher"):
        train(samples[::2], samples[1::7], taught, tmp_path / "run")


@pytest.mark.parametrize("crop_px", [33, 600])
def test_train_on_crops_of_no_multiple_of_the_stride_names_the_nearest(
    samples: tuple[Sample, ...], tmp_path: Path, crop_px: int
) -> None:
    params = dataclasses.replace(PARAMS, crop_px=crop_px)
    with pytest.raises(ConfigError, match=rf"crop_px is {crop_px}; .* multiple of 16.*set it to"):
        train(samples[::2], samples[1::7], params, tmp_path)


def test_train_on_crops_that_the_teacher_cannot_take_names_its_stride(
    samples: tuple[Sample, ...], tmp_path: Path
) -> None:
    teacher = tmp_path / "teacher.safetensors"
    save_checkpoint(teacher, build_network("lite0", pretrained=False), {})
    params = dataclasses.replace(PARAMS, crop_px=48, teacher=str(teacher), epochs=1)
    with pytest.raises(ConfigError, match=r"multiple of 32, the stride of 'nano' and its teacher"):
        train(samples[::2], samples[1::7], params, tmp_path)
    coarse = dataclasses.replace(params, crop_px=96, coarse_fraction=0.5, epochs=2)
    train(samples[::2], samples[1::7], coarse, tmp_path)  # its coarse crops are of 64 px, not 48


@pytest.mark.parametrize("teacher", ["lite0", "model.onnx"])
def test_train_with_a_teacher_that_is_no_checkpoint_says_so(
    samples: tuple[Sample, ...], tmp_path: Path, teacher: str
) -> None:
    params = dataclasses.replace(PARAMS, teacher=teacher)
    with pytest.raises(ConfigError, match=rf"train.teacher is {teacher}; expected a checkpoint"):
        train(samples[::2], samples[1::7], params, tmp_path)


@pytest.mark.parametrize("coarse_fraction", [0.0, 0.9])
def test_train_that_diverges_says_so_and_keeps_no_weights(
    samples: tuple[Sample, ...], tmp_path: Path, coarse_fraction: float
) -> None:
    params = dataclasses.replace(
        PARAMS, dice_weight=1e38, class_weight=1e38, epochs=2, coarse_fraction=coarse_fraction
    )
    with pytest.raises(ConfigError, match=r"diverged in epoch 1 of 2.*lower train.learning_rate"):
        train(samples[::2], samples[1::7], params, tmp_path)
    assert not (tmp_path / CHECKPOINT).exists()


def test_train_that_would_never_show_a_defect_is_refused(
    samples: tuple[Sample, ...], tmp_path: Path
) -> None:
    params = dataclasses.replace(PARAMS, free_fraction=1.0, copy_paste_fraction=0.0)
    with pytest.raises(ConfigError, match=r"no defect would ever be shown"):
        train(samples[::2], samples[1::7], params, tmp_path)


def test_one_cycle_rises_to_the_peak_and_falls_to_near_zero() -> None:
    assert one_cycle(0) < 0.05
    assert one_cycle(WARM_UP) == 1
    assert one_cycle(1) < 0.002


@given(st.floats(0, 1), st.floats(0, 1))
def test_one_cycle_is_monotone_on_each_flank(first: float, second: float) -> None:
    low, high = sorted((first, second))
    if high <= WARM_UP:
        assert one_cycle(low) <= one_cycle(high)
    elif low >= WARM_UP:
        assert one_cycle(low) >= one_cycle(high)


def test_moving_average_starts_as_the_network_and_follows_closely_at_first() -> None:
    network = build_network("nano")
    average = MovingAverage(network, decay=0.9)
    weight, norm = network.class_head.weight, network.get_submodule("decoder.project.1")
    with torch.no_grad():
        for value in (1.0, 2.0):
            weight.fill_(value)
            norm.get_buffer("num_batches_tracked").fill_(int(value))
            average.update(network)
    assert torch.allclose(average.module.class_head.weight, torch.tensor(1 + 9 / 11))
    assert average.module.get_buffer("decoder.project.1.num_batches_tracked") == 2
    assert average.updates == 2


@pytest.mark.parametrize(
    ("decay", "done", "kept"),
    [
        (0.99, 1, 2 / 11),
        (0.99, 8, 9 / 18),
        (0.99, 90, 91 / 100),
        (0.99, 10**6, 0.99),
        (0.05, 9, 0.05),
    ],
)
def test_moving_average_share_that_stays_grows_with_the_updates(
    decay: float, done: int, kept: float
) -> None:
    network = build_network("nano")
    average = MovingAverage(network, decay=decay)
    ours, theirs = average.module.class_head.weight, network.class_head.weight
    with torch.no_grad():
        ours.fill_(1.0)
        theirs.fill_(0.0)
        average.n_averaged.fill_(done)
    average.update(network)
    assert torch.allclose(ours, torch.tensor(kept))
