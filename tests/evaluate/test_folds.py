"""Two folds of synthetic answers, joined; and what is chosen from them."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from magtiles_seg.dataset.samples import Sample
from magtiles_seg.dataset.splits import Split
from magtiles_seg.errors import ConfigError, DataError
from magtiles_seg.evaluate import choose_decision, evaluate
from magtiles_seg.evaluate.decide import Choice
from magtiles_seg.evaluate.folds import (
    OutOfFold,
    choice_to_markdown,
    evaluate_folds,
    find_runs,
    repeat,
    repeats_to_markdown,
    run_names,
    save_folds,
)
from magtiles_seg.evaluate.plots.gallery import Gallery
from magtiles_seg.labels import LABELS
from magtiles_seg.result import Decision, Segmentation

Pixels = npt.NDArray[np.uint8]
SIDE = 16


class Model:
    """Takes grey levels for probabilities, and everything for a crack."""

    spec = SimpleNamespace(card=SimpleNamespace(labels=LABELS, training={}))

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> Model:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def __call__(self, image: Pixels) -> tuple[npt.NDArray[np.float32], Pixels]:
        probability = ((image.astype(np.float32) + 1) / 257).astype(np.float32)
        return probability, np.full_like(image, LABELS.index("crack"))


@pytest.fixture
def samples(tmp_path: Path) -> dict[str, Sample]:
    """Twenty pictures of ten tiles, every other one with a crack; brighter where it is."""
    rng, found = np.random.default_rng(0), {}
    for number in range(20):
        label = "crack" if number % 2 else "free"
        image = rng.integers(0, 120, (SIDE, SIDE)).astype(np.uint8)
        mask = np.zeros((SIDE, SIDE), np.uint8)
        if label == "crack":
            mask[4:8, 2:14] = 255
            image[4:8, 2:14] += 90
        name = f"exp1_num_{1000 * (number // 2) + number}"
        paths = tmp_path / f"{name}.bmp", tmp_path / f"{name}.png"
        for path, pixels in zip(paths, (image, mask), strict=True):
            Image.fromarray(pixels).save(path)
        found[name] = Sample(name, label, *paths, group=number // 2)
    return found


@pytest.fixture
def folders(samples: dict[str, Sample], tmp_path: Path) -> list[Path]:
    ids, folders = list(samples), []
    for fold in (0, 1):
        test, rest = ids[fold * 10 : fold * 10 + 10], ids[10 - fold * 10 : 20 - fold * 10]
        split = Split("grouped", 0, fold, 2, 0.4, tuple(rest[4:]), tuple(rest[:4]), tuple(test), "")
        folder = tmp_path / f"fold{fold}"
        folder.mkdir()
        (folder / "split.json").write_text(split.to_json())
        (folder / "model.safetensors").touch()
        folders.append(folder)
    return folders


@pytest.fixture
def joined(samples: dict[str, Sample], folders: list[Path]) -> OutOfFold:
    return evaluate_folds(find_runs(folders), samples, open_model=Model, resamples=20)


def test_folds_joined_score_every_picture_once(joined: OutOfFold) -> None:
    assert len(joined.result.records) == 20
    assert list(joined.result.by_fold) == ["fold0", "fold1"]
    assert joined.run_of["exp1_num_0"].directory.name == "fold0"


def test_choice_says_of_what_kind_the_networks_are(
    samples: dict[str, Sample], folders: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Model.spec.card, "training", {"architecture": "nano"})
    choice = evaluate_folds(find_runs(folders), samples, open_model=Model, resamples=0).choice
    assert choice is not None
    assert choice.networks == (f"nano of {', '.join(LABELS)}",)
    assert Choice.from_json(choice.to_json()) == choice


def test_fold_whose_training_has_not_ended_is_named(
    samples: dict[str, Sample], folders: list[Path]
) -> None:
    checkpoint = pytest.importorskip("magtiles_seg.model.checkpoint")
    for folder in folders:
        said = "finished" if folder == folders[1] else "epoch"
        checkpoint.write_tensors(folder / "model.safetensors", {}, {said: 1})
        (folder / "state.safetensors").touch()
    notes = evaluate_folds(find_runs(folders), samples, open_model=Model, resamples=0).result.notes
    assert f"{folders[0] / 'model.safetensors'} is of a training that has not ended" in notes[1]
    assert not any(str(folders[1]) in note for note in notes)


def test_folds_of_models_that_took_over_others_are_never_called_t(
    samples: dict[str, Sample], folders: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Model.spec.card, "training", {"start": "a" * 64})
    result = evaluate_folds(find_runs(folders), samples, open_model=Model, resamples=0).result
    assert result.protocol.name == "native/grouped"
    assert any("train.start" in note for note in result.notes)


def test_folds_of_a_random_split_are_never_called_t(
    samples: dict[str, Sample], folders: list[Path], joined: OutOfFold
) -> None:
    assert joined.result.protocol.name == "T"
    run = find_runs(folders[:1])[0]
    mixed = replace(run.split, rule="random")
    (run.directory / "split.json").write_text(mixed.to_json())
    again = evaluate_folds(find_runs(folders), samples, open_model=Model, resamples=0).result
    assert again.protocol.name == "native/random"
    assert "These figures are not protocol T: the split's rule is random." in again.notes


def test_folds_of_a_torn_tile_are_never_called_t(
    samples: dict[str, Sample], folders: list[Path]
) -> None:
    run = find_runs(folders[:1])[0]
    mate = {name: replace(sample, group=3) for name, sample in samples.items()}
    result = evaluate_folds([run], mate, open_model=Model, resamples=0).result
    assert (result.protocol.name, result.protocol.leaky) == ("native/grouped", True)
    assert any(note.startswith("LEAKY") for note in result.notes)


def test_folds_thresholds_come_from_the_validation_part_alone(
    samples: dict[str, Sample], folders: list[Path]
) -> None:
    seen: list[Decision] = []
    evaluate_folds(
        find_runs(folders[:1]),
        {name: replace(sample, label=sample.label) for name, sample in samples.items()},
        open_model=Model,
        resamples=0,
        watch=lambda _, result, __: seen.append(result.decision),
    )
    blank = Image.fromarray(np.zeros((SIDE, SIDE), np.uint8))
    tested = find_runs(folders[:1])[0].part("test", samples)
    for sample in tested[3:]:
        assert sample.mask_path is not None
        blank.save(sample.mask_path)
    again: list[Decision] = []
    evaluate_folds(
        find_runs(folders[:1]),
        samples,
        open_model=Model,
        resamples=0,
        watch=lambda _, result, __: again.append(result.decision),
    )
    assert set(again) == set(seen)
    assert len(set(seen)) == 1


def test_choice_gives_the_calibrated_model_the_mask_of_the_raw_one(
    joined: OutOfFold, samples: dict[str, Sample]
) -> None:
    assert joined.choice is not None
    choice, model = joined.choice, Model(Path())

    def calibrated(image: Pixels) -> Segmentation:
        probability, classes = model(image)
        probability = choice.pixel(probability).astype(np.float32)
        return Segmentation.from_prediction(image, probability, classes, decision=choice.decision)

    result = evaluate(calibrated, list(samples.values()), resamples=0)
    caught = result.records.verdict[result.records.is_defect] == "reject"
    assert caught.mean() >= choice.recall
    raw = choose_decision(model, samples.values())
    expected = evaluate(model, list(samples.values()), decision=raw, resamples=0)
    assert result.records.counts.tolist() == expected.records.counts.tolist()


def test_choice_written_reads_back_the_same(joined: OutOfFold) -> None:
    assert joined.choice is not None
    assert Choice.from_json(joined.choice.to_json()) == joined.choice
    assert joined.choice.measured is not None
    assert joined.choice.measured["protocol"] == "T, of 2 networks made like this one"
    assert joined.choice.measured["figures"]["auroc"] == joined.result.figures["auroc"]
    with pytest.raises(DataError, match=r"no choice of thresholds.*evaluate --folds"):
        Choice.from_json("{}")


def test_calibration_of_pixels_lowers_the_error(joined: OutOfFold) -> None:
    error = {name: value for name, (_, value) in joined.reliability.items()}
    assert error["pixels_after"] < error["pixels_before"]


def test_folds_saved_are_files_a_reader_can_open(joined: OutOfFold, tmp_path: Path) -> None:
    save_folds(joined, tmp_path / "out")
    names = {path.name for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert {"metrics.json", "choice.json", "report.md", "roc.png", "pictures.csv"} <= names
    assert {"reliability_pixels.png", "reliability_pictures_after.csv"} <= names
    assert json.loads((tmp_path / "out" / "choice.json").read_text())["tiles"] == 10
    report = (tmp_path / "out" / "report.md").read_text()
    assert "| fold1 |" in report
    assert report.endswith(choice_to_markdown(joined))


def test_published_protocol_joined_needs_no_choice(
    samples: dict[str, Sample], folders: list[Path]
) -> None:
    runs = find_runs(folders)
    joined = evaluate_folds(runs, samples, open_model=Model, protocol="P1b", resamples=0)
    assert (joined.choice, joined.reliability) == (None, {})


class Backwards(Model):
    """Finds defects where there are none."""

    def __call__(self, image: Pixels) -> tuple[npt.NDArray[np.float32], Pixels]:
        probability, classes = super().__call__(image)
        return 1 - probability, classes


def test_folds_of_a_model_worse_than_chance_give_figures_and_say_why_there_is_no_choice(
    samples: dict[str, Sample], folders: list[Path], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "choice.json").write_text("of an earlier evaluation")
    joined = evaluate_folds(find_runs(folders), samples, open_model=Backwards, resamples=0)
    save_folds(joined, out)
    assert joined.choice is None
    assert joined.result.figures["auroc"] < 0.5
    assert not (out / "choice.json").exists()
    assert "no better than chance" in (out / "report.md").read_text()


def test_folds_of_which_one_is_worse_than_chance_still_give_a_choice(
    samples: dict[str, Sample], folders: list[Path]
) -> None:
    def opened(path: Path) -> Model:
        return Backwards(path) if path.parent == folders[0] else Model(path)

    joined = evaluate_folds(find_runs(folders), samples, open_model=opened, resamples=0)
    assert list(joined.result.by_fold) == ["fold0", "fold1"]
    assert (joined.choice is None) == (joined.no_choice != "")
    assert "pixels_after" not in joined.reliability


def test_validation_part_that_no_threshold_can_be_chosen_on_is_named(
    samples: dict[str, Sample], folders: list[Path]
) -> None:
    split = json.loads((folders[1] / "split.json").read_text())
    values = {key: split[key] for key in split if key not in ("schema_version", "sha256")}
    parts = {part: tuple(split[part]) for part in ("train", "test")}
    empty = Split(**{**values, **parts, "validation": ()})
    (folders[1] / "split.json").write_text(empty.to_json())
    with pytest.raises(ConfigError, match=r"validation part of .*fold1: a pixel threshold"):
        evaluate_folds(find_runs(folders), samples, open_model=Model, resamples=0)


def test_folds_that_overlap_are_refused(samples: dict[str, Sample], folders: list[Path]) -> None:
    again = folders[0].parent / "again"
    shutil.copytree(folders[0], again)
    with pytest.raises(DataError, match="in more than one part"):
        evaluate_folds(find_runs([folders[0], again]), samples, open_model=Model, resamples=0)


def test_run_names_tell_folders_of_one_name_apart(tmp_path: Path) -> None:
    one, other = tmp_path / "seed0" / "f0", tmp_path / "seed1" / "f0"
    assert run_names([one, other.with_name("f1")]) == ["f0", "f1"]
    assert run_names([one, other]) == [str(one), str(other)]
    with pytest.raises(ConfigError, match=r"seed0/f0 is named twice"):
        run_names([one, other, one / "." / ".." / "f0"])


def test_run_with_a_model_left_from_another_training_is_refused(
    folders: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    said: dict[str, dict[str, object]] = {
        "model.onnx": {"seed": 0, "validation": {"dice": 0.5}, "split": {}},
        "model.safetensors": {"seed": 0, "validation": {"dice": 0.4}},
    }
    warmstart = pytest.importorskip("magtiles_seg.model.warmstart")
    monkeypatch.setattr(warmstart, "training_of", lambda path: said[path.name])
    (folders[0] / "model.onnx").touch()
    assert find_runs(folders)[0].model.name == "model.onnx"
    said["model.safetensors"]["seed"] = 1
    with pytest.raises(DataError, match=r"model\.onnx is not of the training that model\.safet"):
        find_runs(folders)


def test_run_without_a_model_or_picture_is_refused(
    samples: dict[str, Sample], folders: list[Path]
) -> None:
    run = find_runs(folders)[0]
    with pytest.raises(DataError, match="names 10 pictures that the data set lacks"):
        run.part("test", {})
    assert len(run.part("test", samples)) == 10
    (folders[0] / "model.safetensors").unlink()
    with pytest.raises(DataError, match=r"fold0 is no run: expected split\.json and model\.onnx"):
        find_runs(folders)


def test_repeat_hand_worked_is_mean_and_sample_deviation() -> None:
    summary = repeat([{"iou": 0.8, "dice": 0.9}, {"iou": 0.9, "dice": 0.9}])
    assert summary["iou"] == pytest.approx((0.85, 0.0707107), abs=1e-6)
    assert summary["dice"] == pytest.approx((0.9, 0))
    text = repeats_to_markdown("P1", {"a": {"iou": 0.8}, "b": {"iou": 0.9}}, {"iou": (0.85, 0.07)})
    assert "| iou | 0.8500 ± 0.0700 | 0.8000 | 0.9000 |" in text
    with pytest.raises(ConfigError, match="at least two repeats, got 1"):
        repeat([{"iou": 0.8}])


def test_gallery_keeps_the_highest_ranks_in_order(tmp_path: Path) -> None:
    gallery, image = Gallery(2), np.zeros((4, 4), np.uint8)
    answer: Any = Model(Path())(image)
    result = Segmentation.from_prediction(image, *answer, decision=Decision())
    for rank, name in ((0.1, "low"), (0.9, "high"), (0.5, "middle")):
        gallery.add(rank, f"<{name}>", result, image, name=name)
    page = gallery.save(tmp_path / "g", title="t", lead="l").read_text()
    assert {path.name for path in (tmp_path / "g").glob("*.png")} == {
        "001_high.png",
        "002_middle.png",
    }
    assert page.index("&lt;high&gt;") < page.index("&lt;middle&gt;")
