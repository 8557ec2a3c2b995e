"""The loop, as a person goes it: a run keeps, a person labels, then import, training, promotion."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import cv2
import numpy as np
import pytest

pytest.importorskip("pyarrow")
pytest.importorskip("gto")

from magtiles_seg import pipeline
from magtiles_seg.cli import main
from magtiles_seg.config import GateParams, load_params
from magtiles_seg.dataset.formats import from_target, labelme
from magtiles_seg.dataset.synthetic import synthetic_tile
from magtiles_seg.delivery.registry import on_stage, promote
from magtiles_seg.evaluate.compare import compare, read_pictures
from magtiles_seg.labels import LABELS
from magtiles_seg.review.folder import ReviewFolder

PARAMS = """
data_load: {source: "synthetic:tiles=20", directory: data}
data_split: {validation_fraction: 0.3, folds: 3}
train: {architecture: nano, pretrained: false, epochs: 1, pictures_per_epoch: 16, crop_px: 64}
"""


def line_pictures(folder: Path, held_out: Path) -> dict[str, int]:
    """Write what a line saw: six tiles, and one that the model is tested on; return the seeds."""
    folder.mkdir()
    seeds = {f"line_{seed}": seed for seed in range(500, 506)}
    for name, seed in seeds.items():
        defect = "blowhole" if seed % 2 else None
        tile = synthetic_tile(seed, defect=defect, size_hw=(96, 96))
        cv2.imwrite(str(folder / f"{name}.png"), tile.image)
    shutil.copy(held_out, folder / f"again{held_out.suffix}")
    return seeds


def correct(export: Path, review: Path, seeds: dict[str, int]) -> None:
    """Draw the true labels, as a person does in LabelMe."""
    for path in export.glob("*-*.json"):
        record = json.loads((review / path.name).read_text())
        source = Path(record["source"]).stem
        if source in seeds:
            seed = seeds[source]
            defect = "blowhole" if seed % 2 else None
            tile = synthetic_tile(seed, defect=defect, size_hw=(96, 96))
            target = tile.mask * np.uint8(LABELS.index("blowhole"))
            drawn = from_target(path.stem, path.with_suffix(".png"), target, LABELS)
            path.write_text(json.dumps(labelme.content_of(drawn, f"{path.stem}.png")))


def test_pictures_of_a_run_become_a_better_judged_model(
    tmp_path: Path,
    model: Path,
    checkpoint: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("params.yaml").write_text(PARAMS)
    assert main(["data", "load"]) == 0
    assert main(["data", "split", "--out", "runs/before.json"]) == 0
    before = pipeline.read_split(Path("runs/before.json"))
    samples = {
        sample.id: sample for sample in pipeline.samples_of(load_params(Path("params.yaml")))
    }
    seeds = line_pictures(tmp_path / "line", samples[before.test[0]].image_path)

    words = ["--model", str(model), "--review-score", "0.0", "--reject-score", "1.0"]
    run = ["batch", "line", "--out", "result", "--workers", "1", *words]
    assert main([*run, "--review-dir", "review", "--review-reasons", "review"]) == 0
    assert len(ReviewFolder(Path("review")).entries()) == 7
    assert "review: 7 pictures wait for review" in capsys.readouterr().out

    assert main(["loop", "export", "review", "to-label", "--to", "labelme"]) == 0
    correct(Path("to-label"), Path("review"), seeds)
    assert main(["loop", "import", "to-label", "--split", "runs/before.json"]) == 1
    said = capsys.readouterr()
    assert "6 pictures to train on" in said.out
    assert "refused: it shows the same part as exp" in said.err
    assert "of the test part" in said.err
    assert main(["loop", "import", "to-label"]) == 1
    assert "nothing new: 0 pictures to train on" in capsys.readouterr().out

    assert main(["data", "load"]) == 0
    assert main(["data", "split", "--out", "runs/split.json"]) == 0
    after = pipeline.read_split(Path("runs/split.json"))
    assert (after.test, after.validation) == (before.test, before.validation)
    assert len(after.train) == len(before.train) + 6
    assert main(["data", "check", "runs/split.json"]) == 0

    base = ["--set", f"train.start={checkpoint}"]
    assert main(["train", "--split", "runs/split.json", "--out", "runs/train", *base]) == 0
    tuned = ["--model", "runs/train/model.safetensors", "--split", "runs/split.json"]
    assert main(["export", *tuned, "--out", "runs/model.onnx"]) == 0
    for name, path in (("old", str(model)), ("new", "runs/model.onnx")):
        scored = ["evaluate", "--model", path, "--split", "runs/split.json", "--out", name]
        assert main(scored) == 0
    tables = [read_pictures(Path(name, "pictures.csv").read_text()) for name in ("old", "new")]
    judged = compare(*tables, resamples=100).judge(GateParams())
    assert "iou" in judged.reason

    promoted(tmp_path)


def promoted(root: Path) -> None:
    """Put the new model on a stage, as after a person has looked at the comparison."""
    (root / "dvc.yaml").write_text("artifacts: {magtiles: {path: runs/model.onnx, type: model}}\n")
    for words in (
        ("init", "--quiet"),
        ("config", "user.name", "test"),
        ("config", "user.email", "test@example.org"),
        ("add", "dvc.yaml"),
        ("commit", "--quiet", "--message", "train: with reviewed pictures"),
    ):
        subprocess.run(("git", *words), cwd=root, check=True)
    done = promote(root, "magtiles", "dev")
    assert on_stage(root, "magtiles", "dev") == done.version
