"""The whole way, as the workflows go it: from an experiment branch to production, and back.

A bare repository is the forge, an S3 server of this machine the DVC remote, and each job works in
a fresh clone, through the very scripts of the workflows. `cml` and `gh` are stand-ins.
"""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

from magtiles_seg.delivery.revisions import git

pytest.importorskip("dvc")
pytest.importorskip("starlette")
pytest.importorskip("moto")

PROJECT = Path(__file__).parents[1]
STAND_INS = Path(__file__).parent / "delivery/stand_ins"
SCRIPTS = ".github/scripts"
STAGES = ("data_load", "data_split", "train", "export", "evaluate")
SMALL = {
    "layout": "magnetic-tile",
    "validation_fraction": "0.3",
    "architecture": "nano",
    "pretrained": "false",
    "epochs": "1",
    "pictures_per_epoch": "16",
    "crop_px": "64",
    "ema_decay": "0.9",
    "learning_rate": "1e-5",
}
BETTER = {"epochs": "6", "pictures_per_epoch": "192", "learning_rate": "1e-2"}
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

pytestmark = pytest.mark.slow


class Forge:
    """The bare repository, what runs beside it, and jobs in fresh clones of it."""

    def __init__(self, folder: Path, s3_url: str) -> None:
        self.folder, self.jobs = folder, 0
        self.remote = folder / "forge.git"
        self.ports = dict(zip(("dev", "prod"), free_ports(2), strict=True))
        programs = [str(STAND_INS), str(Path(sys.executable).parent), "/usr/bin", "/bin"]
        self.environ = {
            "PATH": ":".join(programs),
            "HOME": str(folder),
            "FORGE": str(folder),
            "REPO_TOKEN": "token",
            "DVC_NO_ANALYTICS": "true",
            "DVC_SITE_CACHE_DIR": str(folder / "site"),
            "DVC_REMOTE_URL": "s3://tiles/dvc",
            "DVC_REMOTE_ENDPOINT": s3_url,
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
            "NO_PROXY": "127.0.0.1",
            "DEPLOY_STATE": str(folder / "state"),
            "DEPLOY_TARGET_DEV": "local",
            "DEPLOY_TARGET_PROD": "local",
            "MIN_IOU": "0.0",  # these models know only what `easy_tiles` draws
        }

    def clone(self, branch: str) -> Path:
        self.jobs += 1
        root = self.folder / f"job{self.jobs}"
        git("clone", "--quiet", "--branch", branch, str(self.remote), str(root), root=self.folder)
        git("config", "user.name", "test", root=root)
        git("config", "user.email", "test@example.org", root=root)
        return root

    def run(self, root: Path, *command: str, code: int = 0, **environ: str) -> str:
        done = subprocess.run(
            command,
            cwd=root,
            env={**self.environ, "PYTHONPATH": str(root), **environ},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert done.returncode == code, done.stdout
        return done.stdout

    def start_experiment(self, branch: str, values: dict[str, str]) -> None:
        """Push a branch from dev with other parameters, as a person does."""
        root = self.clone("dev")
        git("checkout", "--quiet", "-b", branch, root=root)
        change(root / "params.yaml", values)
        git("commit", "--quiet", "--all", "--message", branch, root=root)
        git("push", "--quiet", "origin", branch, root=root)

    def experiment(self, branch: str) -> str:
        """Play `1-experiment.yml`: tests, pipeline, proposal, report."""
        root = self.clone(branch)
        self.run(root, sys.executable, "-m", "pytest", "-q", "tests/test_labels.py")
        self.run(root, f"{SCRIPTS}/experiment", BRANCH=branch)
        return (self.folder / "comment.md").read_text()

    def merge_if_better(self, branch: str) -> str:
        """Play `auto-merge.yml`."""
        return self.run(self.clone("dev"), f"{SCRIPTS}/auto-merge", BRANCH=branch)

    def deliver(self, stage: str, branch: str) -> str:
        """Play `deploy.yml`."""
        port = str(self.ports[stage])
        script = f"{SCRIPTS}/deliver"
        return self.run(self.clone(branch), script, stage, BRANCH=branch, DEPLOY_PORT=port)

    def smoke(self, stage: str) -> str:
        url = f"http://127.0.0.1:{self.ports[stage]}"
        return self.run(self.folder, "magtiles-seg", "smoke", url, "--min-iou", "0")

    def head(self, branch: str) -> str:
        return git("rev-parse", branch, root=self.remote)

    def tags(self) -> set[str]:
        return set(git("tag", root=self.remote).split())


def change(path: Path, values: dict[str, str]) -> None:
    text = path.read_text()
    for key, value in values.items():
        text, found = re.subn(rf"^  {key}: [^\n#]*", f"  {key}: {value} ", text, flags=re.MULTILINE)
        assert found == 1, key
    path.write_text(text)


def easy_tiles(folder: Path) -> Path:
    """Write a zip in the public layout: 40 tiles of two pictures, half with a bright patch."""
    rng = np.random.default_rng(0)
    for tile in range(40):
        label = "Fray" if tile % 2 else "Free"
        pictures = folder / f"tiles/MT_{label}/Imgs"
        pictures.mkdir(parents=True, exist_ok=True)
        for exposure in (1, 2):
            picture = rng.integers(70, 110, (64, 64)).astype(np.uint8)
            mask = np.zeros((64, 64), np.uint8)
            if tile % 2:
                x, y = rng.integers(0, 32, 2)
                mask[y : y + 32, x : x + 32] = 255
                picture[mask > 0] += 100
            stem = pictures / f"exp{exposure}_num_{1000 + 300 * tile + 10 * exposure}"
            cv2.imwrite(str(stem.with_suffix(".jpg")), picture)
            cv2.imwrite(str(stem.with_suffix(".png")), mask)
    return Path(shutil.make_archive(str(folder / "tiles"), "zip", folder / "tiles"))


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


@pytest.fixture
def forge(tmp_path: Path) -> Iterator[Forge]:
    """A forge whose `dev` and `main` hold the project with small parameters and no figures."""
    server = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(S3_SERVER)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "HOME": str(tmp_path)},
    )
    assert server.stdout
    made = Forge(tmp_path, next(x for x in server.stdout if x.startswith("http")).strip())
    root = tmp_path / "start"
    keep = shutil.ignore_patterns("__pycache__", "magnetic-tile.onnx")
    for name in ("magtiles_seg", ".github", ".dvc"):
        shutil.copytree(
            PROJECT / name, root / name, ignore=keep if name != ".dvc" else ignore_all_but_config
        )
    (root / "tests").mkdir()
    for name in ("dvc.yaml", "params.yaml", ".gitignore", ".dvcignore", "tests/test_labels.py"):
        shutil.copy(PROJECT / name, root / name)
    change(root / "params.yaml", {"source": str(easy_tiles(tmp_path)), **SMALL})
    git("init", "--quiet", "--bare", "--initial-branch=dev", str(made.remote), root=tmp_path)
    git("init", "--quiet", "--initial-branch=dev", root=root)
    git("add", "--all", root=root)
    who = ("-c", "user.name=test", "-c", "user.email=test@example.org")
    git(*who, "commit", "--quiet", "--message", "start", root=root)
    git("push", "--quiet", str(made.remote), "dev", "dev:main", root=root)
    yield made
    for stage in ("dev", "prod"):
        stop = ("magtiles-seg", "deploy", "--target", "local", "--stage", stage, "--stop")
        made.run(tmp_path, *stop)
    server.terminate()
    server.communicate()


def ignore_all_but_config(_folder: str, names: list[str]) -> set[str]:
    return set(names) - {"config", ".gitignore"}


def test_experiment_reaches_production_and_worse_or_broken_models_do_not(forge: Forge) -> None:
    first = forge.deliver("dev", "dev")  # nobody has trained yet, so DVC says: everything
    assert all(f"Running stage '{stage}'" in first for stage in STAGES)
    baseline = forge.head("dev")

    forge.start_experiment("exp-better", BETTER)
    report = forge.experiment("exp-better")
    assert "✅ **Improved.**" in report
    assert "| `train.epochs` | `1` | `6` |" in report
    assert "comment update --target=pr" in (forge.folder / "cml.log").read_text()
    forge.merge_if_better("exp-better")
    assert forge.head("dev") != baseline

    delivered = forge.deliver("dev", "dev")
    assert "Running stage" not in delivered
    served = forge.smoke("dev")
    git("push", "--quiet", "origin", "dev:main", root=forge.clone("dev"))
    forge.deliver("prod", "main")
    assert forge.smoke("prod").split("SHA-256 ")[1][:12] == served.split("SHA-256 ")[1][:12]
    assert {"magtiles@v0.0.2", "magtiles#dev#2"} <= forge.tags()
    assert any(tag.startswith("magtiles#prod#") for tag in forge.tags())

    before = (forge.head("dev"), forge.tags())
    again = forge.deliver("dev", "dev")
    assert all(f"Stage '{stage}' didn't change, skipping" in again for stage in STAGES)
    assert (forge.head("dev"), forge.tags()) == before

    forge.start_experiment("exp-worse", {key: SMALL[key] for key in BETTER})
    assert "Not shown to be better" in forge.experiment("exp-worse")
    assert "left to a person" in forge.merge_if_better("exp-worse")
    assert forge.head("dev") == before[0]

    root = forge.clone("dev")
    (root / "broken.onnx").write_bytes(b"no model")
    release = ("magtiles-seg", "deploy", "--target", "local", "--stage", "prod")
    port = str(forge.ports["prod"])
    said = forge.run(root, *release, "--model", "broken.onnx", code=2, DEPLOY_PORT=port)
    assert "the server ended with 2: magtiles-seg: " in said
    assert "rolled back" in said
    assert served.split("SHA-256 ")[1][:12] in forge.smoke("prod")
