"""What a job of the delivery lacks, each with its fix, before anything is installed or costs money.

It imports the standard library alone and runs as a file, so that it can be the first step on a bare
machine: `python3 magtiles_seg/delivery/preflight.py deploy-prod`.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any

JOBS = ("experiment", "merge", "deploy-dev", "deploy-prod", "watch")
TARGETS = ("local", "heroku", "fly", "ssh")

NEEDED = {
    "local": (),
    "heroku": ("DEPLOY_APP", "HEROKU_API_KEY"),
    "fly": ("DEPLOY_APP", "FLY_API_TOKEN"),
    "ssh": ("DEPLOY_HOST", "DEPLOY_URL"),
}
"""Environment variables without which a target cannot be reached."""

SETTINGS: dict[str, tuple[str, ...]] = {
    "EXPERIMENT_PROVIDER": ("cpu", "self-hosted", "ec2", "cml"),
    "CLOUD_REGION": (),
    "CLOUD_TYPE": (),
    "BASE_BRANCH": (),
    "AUTO_MERGE": ("on", "off"),
    "RETRAIN": ("gpu", "any"),
    "DEPLOY_TARGET_DEV": ("", *TARGETS),
    "DEPLOY_TARGET_PROD": ("", *TARGETS),
    "MIN_IOU": (),
    "REPORT_PICTURES": ("auto", "all", "curves", "none"),
    "REPORT_PUBLISH_URL": (),
    "WATCH_EXPERIMENT": ("off", "on"),
}
"""What settings.env may hold, and the values that each may have; empty: any."""

_CLOUD = {
    "cml": ("CLOUD_ROLE", "RUNNER_TOKEN"),
    "ec2": ("CLOUD_ROLE", "RUNNER_TOKEN", "CLOUD_IMAGE", "CLOUD_SUBNET", "CLOUD_SECURITY_GROUP"),
}
_PATTERNS = {
    "DEPLOY_HOST": (r"[^@\s]+@[^@\s/]+", "user@host"),
    "DEPLOY_URL": (r"https?://[^\s@]+", "https://host or http://host:port"),
    "DEPLOY_PORT": (r"\d{1,5}", "a port number"),
    "WATCH_URL": (r"https?://[^\s@]+", "https://host or http://host:port"),
    "DVC_REMOTE_URL": (r"\w+://\S+", "an address such as s3://bucket/path"),
    "MAGTILES_API_KEYS": (
        r"[^:,\s]+:[0-9a-f]{64}(,[^:,\s]+:[0-9a-f]{64})*",
        "name:sha256 pairs, as `magtiles-seg serve --new-key NAME` prints them",
    ),
}
_TIMEOUT_S = 20.0


@dataclass(frozen=True)
class Lack:
    """One thing that is missing or wrong.

    Attributes:
        what: Is wrong.
        fix: What mends it.
    """

    what: str
    fix: str

    def __str__(self) -> str:
        """Return two lines."""
        return f"- {self.what}\n  fix: {self.fix}"


def read_settings(path: Path) -> dict[str, str]:
    """Return the lines `NAME=value` of a settings file as the jobs get them, white space and all.

    `#` begins a comment line.
    """
    lines = path.read_bytes().decode().split("\n") if path.is_file() else []  # a `\r` stays, too
    pairs = [line.partition("=") for line in lines if line.strip() and not line.startswith("#")]
    return {name: value for name, _, value in pairs}


def check(
    job: str, environ: Mapping[str, str], root: Path, *, target: str | None = None
) -> list[Lack]:
    """Return what a job lacks; empty: it may start.

    Args:
        job: One of `JOBS`.
        environ: Environment variables: secrets, settings, those of the CI.
        root: The repository's folder.
        target: Of a deployment; None: what the settings say.
    """
    path = root / ".github/settings.env"
    written = read_settings(path)
    settings = written | {name: environ[name] for name in SETTINGS if name in environ}
    values = settings | {name: text for name, text in environ.items() if text}
    if job.startswith("deploy-"):
        target = target or settings.get(f"DEPLOY_TARGET_{job[7:].upper()}", "")
        if not target:
            return _settings(written, settings)  # then nothing is deployed, and the job says so
    else:
        target = ""
    found = [*_settings(written, settings), *_patterns(values)]
    if job != "watch":
        found += _repository(job, values, root)
    elif _proposes_kept(values):
        found += _kept(values)
    if job == "experiment":
        found += _cloud(settings.get("EXPERIMENT_PROVIDER", ""), values)
    if job == "merge":
        found += _models(settings, values)
    if target:
        found += [*_target(job, target, values), *_keys(values), *_model(settings, values)]
    return [*found, *_remote(values), *_forge(job, values)]


def _settings(written: Mapping[str, str], settings: Mapping[str, str]) -> list[Lack]:
    known = ", ".join(SETTINGS)
    found = [
        Lack(
            f"settings.env: {name!r} is no setting",
            f"remove it, or the space around its name; known are {known}",
        )
        for name in written
        if name not in SETTINGS
    ]
    for name, allowed in SETTINGS.items():
        value = settings.get(name, allowed[0] if allowed else "")
        if allowed and value not in allowed:
            choices = " | ".join(one or "(empty)" for one in allowed)
            fix = f"write {name}=… in .github/settings.env with one of {choices}"
            found.append(Lack(f"{name} is {value!r}", fix))
    return found


def _patterns(values: Mapping[str, str]) -> list[Lack]:
    return [
        Lack(f"{name} has another form than expected", f"expected {form}; {_secret(name)}")
        for name, (pattern, form) in _PATTERNS.items()
        if values.get(name) and not re.fullmatch(pattern, values[name])
    ]


def _repository(job: str, values: Mapping[str, str], root: Path) -> list[Lack]:
    if shutil.which("git", path=values.get("PATH")) is None:
        return [Lack("git is not installed", "install git on the machine of this job")]
    found = []
    if _git(root, values, "rev-parse", "--is-shallow-repository") == "true":
        fix = "check out with `fetch-depth: 0`, or run `git fetch --unshallow --tags`"
        found.append(Lack("the checkout is shallow: versions and base are unknown here", fix))
    base = values.get("BASE_BRANCH") or "dev"
    heads = _git(root, values, "ls-remote", "--heads", "origin", f"refs/heads/{base}")
    if heads is None:
        found.append(Lack("origin cannot be reached", "see `git ls-remote origin`"))
    elif not heads and job != "deploy-prod":
        fix = f"make it once: git push origin main:{base}; or name another as BASE_BRANCH"
        found.append(Lack(f"the branch {base} is not at origin", fix))
    flow = root / ".github/workflows/2-deploy-dev.yml"
    text = flow.read_text(encoding="utf-8") if flow.is_file() else ""
    if text and f"branches: [{base}]" not in text:
        fix = f"write `branches: [{base}]` there, or BASE_BRANCH as it stands there"
        found.append(Lack(f"2-deploy-dev.yml does not start on BASE_BRANCH, {base}", fix))
    return found


def _git(root: Path, values: Mapping[str, str], *words: str) -> str | None:
    environ = {**values, "GIT_TERMINAL_PROMPT": "0"}
    done = subprocess.run(("git", *words), cwd=root, env=environ, capture_output=True, text=True)
    return None if done.returncode else done.stdout.strip()


def _cloud(provider: str, values: Mapping[str, str]) -> list[Lack]:
    needed = _CLOUD.get(provider, ())
    if not any(values.get(name) for name in needed):
        return []  # choose-machine takes a CPU then, and says so
    return [
        Lack(f"EXPERIMENT_PROVIDER is {provider}, and {name} is missing", _secret(name))
        for name in needed
        if not values.get(name)
    ]


def _proposes_kept(values: Mapping[str, str]) -> bool:
    return values.get("WATCH_EXPERIMENT") == "on"


def _kept(values: Mapping[str, str]) -> list[Lack]:
    return [
        Lack(f"WATCH_EXPERIMENT is on, and {name} is missing", _secret(name))
        for name in ("WATCH_KEPT", "DVC_REMOTE_URL")
        if not values.get(name)
    ]


def _target(job: str, target: str, values: Mapping[str, str]) -> list[Lack]:
    stage = job[7:]
    if target == "local" and values.get("RUNNER_ENVIRONMENT") == "github-hosted":
        fix = f"choose heroku, fly or ssh as DEPLOY_TARGET_{stage.upper()}, or a machine of yours"
        return [Lack("the target is local, and this machine is gone after the job", fix)]
    needed = NEEDED.get(target, ())
    if target == "ssh" and values.get("CI"):
        needed = (*needed, "DEPLOY_SSH_KEY", "DEPLOY_SSH_KNOWN_HOSTS")
    found = [
        Lack(f"target {target}, stage {stage}: {name} is missing", _secret(name, stage))
        for name in needed
        if not values.get(name)
    ]
    if target != "local" and shutil.which("docker", path=values.get("PATH")) is None:
        found.append(Lack("docker is not installed", "take a machine with Docker for this job"))
    return found


def _keys(values: Mapping[str, str]) -> list[Lack]:
    entries, key = values.get("MAGTILES_API_KEYS", ""), values.get("ENDPOINT_API_KEY", "").strip()
    if not entries or hashlib.sha256(key.encode()).hexdigest() in entries:
        return []
    what = "is none of MAGTILES_API_KEYS" if key else "is missing, and the service asks for a key"
    return [
        Lack(
            f"ENDPOINT_API_KEY {what}: the smoke test would be refused, the release undone",
            f"{_secret('ENDPOINT_API_KEY')}: a key of `magtiles-seg serve --new-key ci`",
        )
    ]


def _model(settings: Mapping[str, str], values: Mapping[str, str]) -> list[Lack]:
    if values.get("DVC_REMOTE_URL") or settings.get("RETRAIN") == "any":
        return []
    if shutil.which("nvidia-smi", path=values.get("PATH")):
        return []
    fix = f"{_secret('DVC_REMOTE_URL')}, or write RETRAIN=any in settings.env: hours on a CPU"
    return [Lack("DVC_REMOTE_URL is missing: the model of the experiment is not to be had", fix)]


def _models(settings: Mapping[str, str], values: Mapping[str, str]) -> list[Lack]:
    if values.get("DVC_REMOTE_URL") or settings.get("AUTO_MERGE") == "off":
        return []
    fix = f"{_secret('DVC_REMOTE_URL')}, or write AUTO_MERGE=off in settings.env: people merge"
    return [Lack("DVC_REMOTE_URL is missing: the models to score again are not to be had", fix)]


def _remote(values: Mapping[str, str]) -> list[Lack]:
    if not values.get("DVC_REMOTE_URL", "").startswith("s3://"):
        return []
    return [
        Lack(f"DVC_REMOTE_URL is an S3 bucket, and {name} is missing", _secret(name))
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
        if not values.get(name)
    ]


def _forge(job: str, values: Mapping[str, str]) -> list[Lack]:
    """Return what GitHub's own settings forbid, as far as the token may know them."""
    if "GITHUB_REPOSITORY" not in values or not _token(values):
        return []
    found = []
    about = _ask(values, "")
    if about.get("archived"):
        found.append(Lack("the repository is archived", "unarchive it: Settings, Danger Zone"))
    if job == "watch" and about.get("has_issues") is False:
        fix = "Settings, General, Features: tick Issues (a fork begins without)"
        found.append(Lack("the repository has no issues", fix))
    if job in ("experiment", "merge") or (job == "watch" and _proposes_kept(values)):
        rights = _ask(values, "/actions/permissions/workflow")
        if rights.get("can_approve_pull_request_reviews") is False:
            found.append(PULL_REQUESTS)
    return found


PULL_REQUESTS = Lack(
    "GitHub Actions may not create pull requests here",
    "Settings, Actions, General, Workflow permissions: tick "
    "'Allow GitHub Actions to create and approve pull requests'",
)
"""What a repository lacks at first; a job's token is told so only when it tries."""


def _ask(values: Mapping[str, str], path: str) -> dict[str, Any]:
    """Return GitHub's answer, or nothing where the token may not know."""
    api = values.get("GITHUB_API_URL") or "https://api.github.com"
    request = urllib.request.Request(
        f"{api}/repos/{values['GITHUB_REPOSITORY']}{path}",
        headers={"Authorization": f"Bearer {_token(values)}"},
    )
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as answer:
            found = json.load(answer)
    except (OSError, ValueError, HTTPException):
        return {}
    return found if isinstance(found, dict) else {}


def _token(values: Mapping[str, str]) -> str:
    names = ("GH_TOKEN", "GITHUB_TOKEN", "REPO_TOKEN")
    return next((values[name] for name in names if values.get(name)), "")


def _secret(name: str, stage: str = "") -> str:
    where = f" --env {stage}" if stage else ""
    return f"gh secret set {name}{where}, or Settings, Secrets and variables, Actions"


def report(job: str, lacks: list[Lack], environ: Mapping[str, str]) -> str:
    """Return what is said of a job, with GitHub's annotations where it runs there."""
    if not lacks:
        return f"preflight: {job} lacks nothing"
    lines = [f"preflight: {job} lacks {len(lacks)}; docs/ci.md has all of it", *map(str, lacks)]
    if environ.get("GITHUB_ACTIONS"):
        lines += [f"::error title=Preflight::{lack.what}. Fix: {lack.fix}" for lack in lacks]
    return "\n".join(lines)


def main(words: list[str]) -> int:
    """Check the job that is named; 0: it may start, 1: it lacks something."""
    if len(words) != 1 or words[0] not in JOBS:
        sys.stderr.write(f"expected one of {', '.join(JOBS)}; got {' '.join(words) or 'nothing'}\n")
        return 2
    lacks = check(words[0], os.environ, Path.cwd())
    text = report(words[0], lacks, os.environ)
    sys.stdout.write(f"{text}\n")
    if summary := os.environ.get("GITHUB_STEP_SUMMARY"):
        with Path(summary).open("a", encoding="utf-8") as file:
            file.write(f"{text.partition('::error')[0]}\n")
    return 1 if lacks else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
