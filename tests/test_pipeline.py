"""The DVC pipeline, run for real on a few synthetic tiles in a repository of its own."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[1]
STAGES = ("data_load", "data_split", "train", "export", "evaluate")
SMALL = (
    "data_load.source='synthetic:tiles=20'",
    "data_split.validation_fraction=0.3",
    "train.architecture=nano",
    "train.pretrained=false",
    "train.epochs=1",
    "train.pictures_per_epoch=16",
    "train.crop_px=64",
)
S3_SERVER = """
import sys
import boto3
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
url = "http://{}:{}".format(*server.get_host_and_port())
boto3.client("s3", endpoint_url=url).create_bucket(Bucket="tiles")
print(url, flush=True)
sys.stdin.read()
"""

STAGE_TRAIN = "train --split runs/split.json --out runs/train --logs results/training --restart"

pytestmark = pytest.mark.slow


def environment(home: Path) -> dict[str, str]:
    """Return an environment that finds this interpreter's programs and no settings of the user."""
    return {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "HOME": str(home),
        "DVC_NO_ANALYTICS": "true",
        "DVC_SITE_CACHE_DIR": str(home / "site"),
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "NO_PROXY": "127.0.0.1",
    }


def run(repository: Path, *command: str) -> str:
    done = subprocess.run(
        command, cwd=repository, env=environment(repository.parent), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def dvc(repository: Path, *words: str) -> str:
    return run(repository, sys.executable, "-m", "dvc", *words)


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Path of a fresh repository with the project's pipeline, run once."""
    root = tmp_path_factory.mktemp("pipeline") / "repository"
    without_bytecode = shutil.ignore_patterns("__pycache__")
    shutil.copytree(PROJECT / "magtiles_seg", root / "magtiles_seg", ignore=without_bytecode)
    (root / ".dvc").mkdir()
    for name in (
        "dvc.yaml",
        "dataset.sha256",
        "params.yaml",
        ".gitignore",
        ".dvcignore",
        ".dvc/config",
    ):
        shutil.copy(PROJECT / name, root / name)
    run(root, "git", "init", "--quiet")
    run(root, "git", "config", "user.name", "test")
    run(root, "git", "config", "user.email", "test@example.org")
    run(root, "git", "add", "--all")
    run(root, "git", "commit", "--quiet", "--message", "start")
    dvc(root, "exp", "run", *(word for value in SMALL for word in ("-S", value)))
    return root


@pytest.fixture(scope="module")
def s3_url() -> Iterator[str]:
    """Address of an S3 server on this machine, with a bucket `tiles`."""
    command = [sys.executable, "-c", S3_SERVER]
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=environment(Path.cwd()),
    ) as server:
        assert server.stdout
        lines = iter(server.stdout.readline, "")
        yield next(line for line in lines if line.startswith("http")).strip()
        server.terminate()


def test_pipeline_on_synthetic_tiles_writes_model_figures_and_curves(repository: Path) -> None:
    metrics = json.loads((repository / "results" / "metrics.json").read_text())
    split = json.loads((repository / "runs" / "split.json").read_text())
    assert metrics["pictures"] == len(split["test"])
    assert 0 <= metrics["iou"] <= 1
    assert (repository / "runs" / "model.onnx").stat().st_size > 100_000
    curves = {path.stem for path in (repository / "results" / "plots").glob("*.csv")}
    assert curves == {"precision_recall", "roc", "thresholds", "classes"}
    assert (repository / "results" / "training" / "plots" / "metrics" / "loss.tsv").exists()


def test_repro_again_runs_no_stage(repository: Path) -> None:
    said = dvc(repository, "repro")
    assert all(f"Stage '{stage}' didn't change, skipping" in said for stage in STAGES)
    assert "Running" not in said


@pytest.mark.parametrize(
    ("key", "value", "rerun"),
    [
        ("part", "validation", STAGES[4:]),
        ("recall", "0.9", STAGES[3:]),
        ("learning_rate", "2.5e-3", STAGES[2:]),
    ],
)
def test_changed_parameter_reruns_what_depends_on_it_alone(
    repository: Path, key: str, value: str, rerun: tuple[str, ...]
) -> None:
    path = repository / "params.yaml"
    before = path.read_text()
    after, found = re.subn(rf"^  {key}: \S+", f"  {key}: {value}", before, flags=re.MULTILINE)
    assert found == 1
    path.write_text(after)
    changed = json.loads(dvc(repository, "status", "--json"))
    path.write_text(before)
    assert set(changed) == {rerun[0]}
    said = dvc(repository, "repro", "--dry", "--force", "--downstream", rerun[0])
    assert [stage for stage in STAGES if f"Running stage '{stage}'" in said] == list(rerun)


def test_changed_defect_generator_reruns_the_loading(repository: Path) -> None:
    path = repository / "magtiles_seg" / "dataset" / "synthetic" / "defects.py"
    before = path.read_text()
    path.write_text(f"{before}\nANOTHER = 1\n")
    changed = json.loads(dvc(repository, "status", "--json"))
    path.write_text(before)
    assert {"data_load", "train"} <= set(changed)


@pytest.mark.parametrize("pulled", [False, True])
def test_comment_in_the_training_code_costs_no_training(repository: Path, pulled: bool) -> None:
    if pulled:  # a fresh clone has what DVC brings, and so no state of the run
        shutil.rmtree(repository / "runs")
        dvc(repository, "checkout")
        assert not (repository / "runs" / "train" / "state.safetensors").exists()
    checkpoint = repository / "runs" / "train" / "model.safetensors"
    path = repository / "magtiles_seg" / "train" / "loop.py"
    before, weights = path.read_text(), checkpoint.read_bytes()
    path.write_text(f"{before}\n# a remark\n")
    said = run(repository, sys.executable, "-m", "magtiles_seg", *shlex.split(STAGE_TRAIN))
    path.write_text(before)
    assert "model.safetensors" in said
    assert checkpoint.read_bytes() == weights


def test_pictures_and_models_stay_out_of_git_and_figures_get_in(repository: Path) -> None:
    run(repository, "git", "add", "--all")
    files = run(repository, "git", "ls-files").splitlines()
    assert not [name for name in files if name.endswith((".jpg", ".png"))]
    assert not [name for name in files if name.startswith(("data/", "runs/"))]
    assert {"dvc.lock", "results/metrics.json", "results/plots/roc.csv"} <= set(files)


def test_plots_and_metrics_are_drawn_for_dvc(repository: Path) -> None:
    shown = json.loads(dvc(repository, "metrics", "show", "--json"))
    assert "iou" in shown[""]["data"]["results/metrics.json"]["data"]
    dvc(repository, "plots", "show", "--out", "drawn")
    page = (repository / "drawn" / "index.html").read_text()
    titles = ("Pixels, precision and recall", "Pooled IoU by class", "loss.tsv")
    assert [title for title in titles if title not in page] == []
    shutil.rmtree(repository / "drawn")


def test_commands_of_the_page_that_queue_and_compare_run(repository: Path) -> None:
    page = (PROJECT / "docs" / "pipeline.md").read_text(encoding="utf-8")
    lines = re.findall(
        r"^\$ dvc (.*--queue.*|queue status|.* diff|exp show.*)$", page, re.MULTILINE
    )
    assert len(lines) == 6
    said = {line: dvc(repository, *shlex.split(line)) for line in lines}
    assert "Queued" in dvc(repository, "queue", "status")
    assert "train.learning_rate" in said["exp show --only-changed"]
    assert "data_load.source" in said["params diff"]
    assert "iou" in said["metrics diff"]
    dvc(repository, "queue", "remove", "--all")


def test_push_to_s3_brings_everything_back_after_the_cache_is_lost(
    repository: Path, s3_url: str
) -> None:
    dvc(repository, "remote", "add", "--local", "--default", "s3", "s3://tiles/dvc")
    dvc(repository, "remote", "modify", "--local", "s3", "endpointurl", s3_url)
    model = (repository / "runs" / "model.onnx").read_bytes()
    pictures = sorted(path.name for path in (repository / "data").rglob("*.jpg"))
    dvc(repository, "push")
    for lost in (".dvc/cache", "data", "runs"):
        shutil.rmtree(repository / lost)
    dvc(repository, "pull")
    assert (repository / "runs" / "model.onnx").read_bytes() == model
    assert sorted(path.name for path in (repository / "data").rglob("*.jpg")) == pictures
    assert len(pictures) == 120
