from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest
from forge_api import ForgeApi, served

from magtiles_seg.cli import main
from magtiles_seg.delivery import preflight
from magtiles_seg.delivery.preflight import check
from magtiles_seg.delivery.revisions import git

PROJECT = Path(__file__).parents[2]
KEY = "mts_key"
KEYS = f"ci:{hashlib.sha256(KEY.encode()).hexdigest()}"
COMPLETE = {
    "DEPLOY_TARGET_PROD": "ssh",
    "DEPLOY_HOST": "me@line",
    "DEPLOY_URL": "https://tiles.example.org",
    "DEPLOY_SSH_KEY": "key",
    "DEPLOY_SSH_KNOWN_HOSTS": "line ssh-ed25519 AAAA",
    "DVC_REMOTE_URL": "s3://tiles/dvc",
    "AWS_ACCESS_KEY_ID": "a",
    "AWS_SECRET_ACCESS_KEY": "b",
    "MAGTILES_API_KEYS": KEYS,
    "ENDPOINT_API_KEY": KEY,
    "CI": "true",
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A clone of a forge with the branches main and dev, and the project's settings."""
    remote, root = tmp_path / "forge.git", tmp_path / "work"
    git("init", "--quiet", "--bare", "--initial-branch=main", str(remote), root=tmp_path)
    git("init", "--quiet", "--initial-branch=main", str(root), root=tmp_path)
    for name in (".github/settings.env", ".github/workflows/2-deploy-dev.yml"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text((PROJECT / name).read_text())
    git("remote", "add", "origin", str(remote), root=root)
    git("add", "--all", root=root)
    who = ("-c", "user.name=test", "-c", "user.email=test@example.org")
    git(*who, "commit", "--quiet", "--message", "start", root=root)
    git("push", "--quiet", "origin", "main", "main:dev", root=root)
    return root


@pytest.fixture
def programs(tmp_path: Path) -> str:
    """A PATH with docker on it, and no GPU."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "docker").write_text("#!/bin/sh\n")
    (folder / "docker").chmod(0o755)
    return f"{folder}:/usr/bin:/bin"


def lacks(job: str, root: Path, environ: dict[str, str]) -> str:
    return "\n".join(map(str, check(job, environ, root)))


def test_check_of_a_complete_job_finds_nothing(root: Path, programs: str) -> None:
    environ = COMPLETE | {"PATH": programs}
    for job in preflight.JOBS:
        assert lacks(job, root, environ) == ""


@pytest.mark.parametrize("name", sorted(set(COMPLETE) - {"DEPLOY_TARGET_PROD", "CI"}))
def test_check_names_what_is_missing_and_its_fix(root: Path, programs: str, name: str) -> None:
    environ = {key: text for key, text in COMPLETE.items() if key != name} | {"PATH": programs}
    found = lacks("deploy-prod", root, environ)
    if name == "MAGTILES_API_KEYS":  # without keys anyone may ask: a choice, and no lack
        assert found == ""
        return
    assert name in found
    assert f"gh secret set {name}" in found
    assert found.count("- ") == 1


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("DEPLOY_HOST", "line", "expected user@host"),
        ("DEPLOY_URL", "tiles.example.org", "expected https://host"),
        ("DEPLOY_URL", "https://me:word@tiles.example.org", "expected https://host"),
        ("WATCH_URL", "https://me:word@tiles.example.org", "expected https://host"),
        ("DEPLOY_PORT", "http", "expected a port number"),
        ("MAGTILES_API_KEYS", KEY, "name:sha256 pairs"),
        ("ENDPOINT_API_KEY", "another", "is none of MAGTILES_API_KEYS"),
        ("DEPLOY_TARGET_PROD", "moon", "one of (empty) | local | heroku | fly | ssh"),
        ("AUTO_MERGE", "yes", "one of on | off"),
        ("REPORT_PICTURES", "some", "one of auto | all | curves | none"),
        ("BASE_BRANCH", "develop", "2-deploy-dev.yml does not start on BASE_BRANCH, develop"),
    ],
)
def test_check_names_what_has_another_form(
    root: Path, programs: str, name: str, value: str, said: str
) -> None:
    assert said in lacks("deploy-prod", root, COMPLETE | {"PATH": programs, name: value})


def test_check_by_hand_wants_no_key_of_the_ci_s(root: Path, programs: str) -> None:
    ours = ("CI", "DEPLOY_SSH_KEY", "DEPLOY_SSH_KNOWN_HOSTS")  # a person's own ssh knows the host
    environ = {key: text for key, text in COMPLETE.items() if key not in ours}
    assert lacks("deploy-prod", root, environ | {"PATH": programs}) == ""


def test_check_takes_a_key_as_a_file_holds_it(root: Path, programs: str) -> None:
    environ = COMPLETE | {"PATH": programs, "ENDPOINT_API_KEY": f"{KEY}\n"}
    assert lacks("deploy-prod", root, environ) == ""


def test_check_never_prints_a_secret(root: Path, programs: str) -> None:
    environ = COMPLETE | {"PATH": programs, "ENDPOINT_API_KEY": "very-secret"}
    environ |= {"MAGTILES_API_KEYS": "very-secret", "DVC_REMOTE_URL": "very-secret"}
    assert "very-secret" not in lacks("deploy-prod", root, environ)


def test_check_of_a_stage_without_target_finds_nothing(root: Path) -> None:
    assert lacks("deploy-dev", root, {"PATH": "/usr/bin:/bin"}) == ""


def test_check_names_an_unknown_setting(root: Path, programs: str) -> None:
    path = root / ".github/settings.env"
    path.write_text(path.read_text() + "AUTOMERGE=on\n")
    assert "'AUTOMERGE' is no setting" in lacks("merge", root, {"PATH": programs})


@pytest.mark.parametrize("line", ["DEPLOY_TARGET_DEV = ssh", " DEPLOY_TARGET_DEV=ssh"])
def test_check_names_a_setting_that_the_jobs_would_not_get(root: Path, line: str) -> None:
    path = root / ".github/settings.env"
    path.write_text(path.read_text().replace("DEPLOY_TARGET_DEV=", line))
    name = line.partition("=")[0]
    assert f"{name!r} is no setting" in lacks("deploy-dev", root, {"PATH": "/usr/bin:/bin"})


def test_check_names_a_value_that_ends_as_lines_of_windows_do(root: Path, programs: str) -> None:
    path = root / ".github/settings.env"
    path.write_bytes(path.read_bytes().replace(b"AUTO_MERGE=on\n", b"AUTO_MERGE=off\r\n"))
    assert r"AUTO_MERGE is 'off\r'" in lacks("merge", root, {"PATH": programs})


def test_check_names_a_base_branch_that_is_not_there(root: Path, programs: str) -> None:
    git("push", "--quiet", "origin", "--delete", "dev", root=root)
    found = lacks("experiment", root, {"PATH": programs})
    assert "the branch dev is not at origin" in found
    assert lacks("deploy-prod", root, {**COMPLETE, "PATH": programs}) == ""  # which follows main
    assert "git push origin main:dev" in found
    environ = {**COMPLETE, "PATH": programs}
    assert not check("deploy-prod", environ, root)  # production does not start from it


def test_check_names_a_shallow_checkout(root: Path, programs: str, tmp_path: Path) -> None:
    who = ("-c", "user.name=test", "-c", "user.email=test@example.org")
    git(*who, "commit", "--quiet", "--allow-empty", "--message", "next", root=root)
    git("push", "--quiet", "origin", "main", root=root)
    remote = f"file://{tmp_path / 'forge.git'}"
    git("clone", "--quiet", "--depth", "1", remote, "shallow", root=tmp_path)
    assert "fetch-depth: 0" in lacks("experiment", tmp_path / "shallow", {"PATH": programs})


def test_check_of_a_watch_that_proposes_kept_pictures_names_what_it_needs(
    root: Path, programs: str
) -> None:
    environ = {"PATH": programs, "WATCH_EXPERIMENT": "on", "WATCH_KEPT": "s3://line/kept"}
    found = lacks("watch", root, environ)
    assert "WATCH_EXPERIMENT is on, and DVC_REMOTE_URL is missing" in found
    assert found.count("- ") == 1
    assert lacks("watch", root, environ | {"WATCH_EXPERIMENT": "off"}) == ""


@pytest.mark.parametrize("given", [(), ("CLOUD_ROLE",), ("CLOUD_ROLE", "RUNNER_TOKEN")])
def test_check_names_the_rest_of_a_cloud_that_is_half_set_up(
    root: Path, programs: str, given: tuple[str, ...]
) -> None:
    environ = {"PATH": programs, "EXPERIMENT_PROVIDER": "ec2"} | dict.fromkeys(given, "x")
    found = lacks("experiment", root, environ)
    assert ("CLOUD_IMAGE is missing" in found) == bool(given)
    assert "CLOUD_ROLE is missing" not in found


def test_check_refuses_a_local_target_on_a_machine_that_goes_away(
    root: Path, programs: str
) -> None:
    environ = COMPLETE | {"PATH": programs, "DEPLOY_TARGET_PROD": "local"}
    environ |= {"RUNNER_ENVIRONMENT": "github-hosted"}
    assert "this machine is gone after the job" in lacks("deploy-prod", root, environ)


def test_check_without_docker_names_it(root: Path, tmp_path: Path) -> None:
    (tmp_path / "git").symlink_to("/usr/bin/git")
    assert "docker is not installed" in lacks(
        "deploy-prod", root, COMPLETE | {"PATH": str(tmp_path)}
    )


def test_check_asks_the_forge_what_it_forbids(
    root: Path, programs: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with served(ForgeApi(has_issues=False)) as api:
        environ = {"PATH": programs, "WATCH_URL": "https://tiles.example.org", **api.environ}
        assert "has no issues" in lacks("watch", root, environ)
        assert lacks("experiment", root, environ) == ""  # the token may not know
        answers = ForgeApi._github
        rights = {"can_approve_pull_request_reviews": False}

        def knowing(api: ForgeApi) -> object:
            path = "GET /actions/permissions/workflow"
            return answers(api) | {path: lambda _: (200, rights)}

        monkeypatch.setattr(ForgeApi, "_github", knowing)
        assert "may not create pull requests" in lacks("experiment", root, environ)


def test_preflight_file_runs_on_a_bare_python_and_marks_the_run(
    root: Path, programs: str, tmp_path: Path
) -> None:
    summary = tmp_path / "summary.md"
    environ = {"PATH": programs, "DEPLOY_TARGET_PROD": "heroku", "GITHUB_ACTIONS": "true"}
    environ |= {"GITHUB_STEP_SUMMARY": str(summary)}
    command = [sys.executable, "-I", "-S", preflight.__file__, "deploy-prod"]
    done = subprocess.run(command, cwd=root, env=environ, capture_output=True, text=True)
    assert done.returncode == 1
    assert "::error title=Preflight::target heroku, stage prod: DEPLOY_APP" in done.stdout
    assert "fix: gh secret set DEPLOY_APP --env prod" in summary.read_text()
    assert "::error" not in summary.read_text()


def test_preflight_of_an_unknown_job_is_refused() -> None:
    done = subprocess.run([sys.executable, preflight.__file__, "moon"], capture_output=True)
    assert done.returncode == 2


def test_deploy_check_says_what_preflight_says(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(root)
    for name in (*COMPLETE, "DEPLOY_APP", "FLY_API_TOKEN", "GITHUB_ACTIONS"):
        monkeypatch.delenv(name, raising=False)
    assert main(["deploy", "--target", "fly", "--stage", "prod", "--check"]) == 1
    said = capsys.readouterr().out
    assert "target fly, stage prod: FLY_API_TOKEN is missing" in said
    monkeypatch.setenv("RETRAIN", "any")
    assert main(["deploy", "--target", "local", "--stage", "prod", "--check"]) == 0
