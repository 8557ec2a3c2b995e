"""Puts a report on the pull request: by CML where it is installed, by the forge's API otherwise.

Pictures of test tiles leave the machine only for a private project, or for a server that is named.
Where one is not shown, the comment says where it is.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from magtiles_seg.delivery import forge
from magtiles_seg.delivery.report import CURVE, KEY
from magtiles_seg.errors import DeliveryError
from magtiles_seg.evaluate.plots import charts
from magtiles_seg.files import write

PUBLISH_URL = "REPORT_PUBLISH_URL"
"""Environment variable: the address of CML's picture server."""

PICTURES = "REPORT_PICTURES"
"""Environment variable: which pictures stand in the comment."""

CHOICES = ("auto", "all", "curves", "none")
"""Its values; `auto`: all in a private project, the curves alone in a public one."""

_NODE_OPTIONS = "--no-experimental-fetch"
"""CML 0.20.6 tells pictures apart by a module that breaks where Node brings `fetch`: since 18."""

_PICTURE = re.compile(r"!\[([^\]]*)\]\(([^)\s]+)\)")
_ONLY_PICTURES = re.compile(rf"^### [^\n]+\n\n((?:{_PICTURE.pattern} ?)+)$", re.MULTILINE)
_MOST_CHARACTERS = 60_000  # GitHub takes 65,536


def post(report: Path, environ: Mapping[str, str], root: Path | None = None) -> str:
    """Create the comment, or replace the one from before.

    Args:
        report: A `report.md` with its pictures beside it.
        environ: Environment variables: `REPORT_PICTURES`, `REPORT_PUBLISH_URL`, those of the CI
            run, tokens.
        root: The repository's folder; None is the working directory.

    Returns:
        What was run, or the comment's address; then, where it failed, why no picture is in it.

    Raises:
        DeliveryError: The forge refused, the environment names none, or a setting is unknown.
    """
    with_cml = shutil.which("cml", path=environ.get("PATH", "")) is not None
    server = environ.get(PUBLISH_URL) if with_cml else None
    content, obstacle = report.read_text(encoding="utf-8"), ""
    if server:
        addresses = {name: name for name in _wanted(_names(content), environ, private=True)}
    else:
        addresses, obstacle = _publish(report, environ, root or Path.cwd())
    text = comment_of(content, addresses, environ)
    comment = report.with_name("comment.md")
    write(comment, text)
    if server:
        return _post_by_cml(comment, environ, f"--publish-url={server}")
    if with_cml:
        said = _post_by_cml(comment, environ, "--publish=false")
    else:
        try:
            said = forge.connect(environ).comment(_branch(environ), text)
        except forge.ForgeError as error:
            raise DeliveryError(f"the report cannot be posted: {error}") from error
    return f"{said}\nwithout pictures: {obstacle}" if obstacle else said


def comment_of(report: str, addresses: Mapping[str, str], environ: Mapping[str, str]) -> str:
    """Return a comment's text: pictures by their address, or where to find those that have none.

    Args:
        report: The text of a `report.md`.
        addresses: Of the pictures that were published, by file name; that name itself for those
            that CML is to publish, which knows Markdown alone.
        environ: Environment variables that name the CI run.
    """
    missing = [name for name in _names(report) if name not in addresses]
    if any(not name.startswith(CURVE) for name in missing):
        report = report.replace(f"{KEY}\n\n", "")
    if any(name.startswith(CURVE) for name in missing):
        report = _ONLY_PICTURES.sub("", report)

    def show(found: re.Match[str]) -> str:
        title, name = found.groups()
        if name not in addresses:
            return ""
        if name.startswith(CURVE) and addresses[name] != name:
            return f'<img src="{addresses[name]}" alt="{title}" width="{charts.WIDTH_PX}">'
        return f"![{title}]({addresses[name]})"

    text = re.sub(r"\n{3,}", "\n\n", _PICTURE.sub(show, report))
    cut = len(text) > _MOST_CHARACTERS
    if cut:
        text = text[:_MOST_CHARACTERS].rpartition("\n\n### ")[0] or text[:_MOST_CHARACTERS]
    if missing or cut:
        what = "The whole report" if cut else f"{len(missing)} picture{'s' * (len(missing) != 1)}"
        text = f"{text.rstrip()}\n\n{what}: the artifact `report` of {_run(environ)}.\n"
    return text


def _publish(report: Path, environ: Mapping[str, str], root: Path) -> tuple[dict[str, str], str]:
    """Return the address of each picture that may be shown, and what kept them from it."""
    names = _wanted(_names(report.read_text(encoding="utf-8")), environ, private=True)
    if not names:
        return {}, ""
    try:
        home = forge.connect(environ).home()
        names = _wanted(names, environ, private=home.private)
        files = [report.with_name(name).resolve() for name in names]
        if not files:
            return {}, ""
        commit = forge.publish(files, _branch(environ), root)
    except forge.ForgeError as error:
        return {}, str(error)
    return {file.name: f"{home.raw_url}/{commit}/{file.name}" for file in files}, ""


def _wanted(names: Sequence[str], environ: Mapping[str, str], *, private: bool) -> list[str]:
    """Return those of a report's pictures that may be shown, where the project is private or not.

    Raises:
        DeliveryError: The setting is unknown.
    """
    wanted = environ.get(PICTURES) or CHOICES[0]
    if wanted not in CHOICES:
        raise DeliveryError(f"{PICTURES} is {wanted!r}; expected one of {', '.join(CHOICES)}")
    if wanted == "none":
        return []
    curves = wanted == "curves" or (wanted == "auto" and not private)
    return [name for name in names if name.startswith(CURVE) or not curves]


def _names(report: str) -> list[str]:
    """Return the file names of a report's pictures."""
    return [found[2] for found in _PICTURE.finditer(report)]


def _post_by_cml(comment: Path, environ: Mapping[str, str], publish: str) -> str:
    command = ["cml", "comment", "update", "--target=pr", publish, str(comment)]
    options = f"{environ.get('NODE_OPTIONS', '')} {_NODE_OPTIONS}".strip()
    known = {**environ, "NODE_OPTIONS": options}
    done = subprocess.run(command, env=known, capture_output=True, text=True)
    if done.returncode:
        said = done.stderr.strip() or done.stdout.strip()
        raise DeliveryError(f"{' '.join(command)} failed: {said}")
    return " ".join(command)


def _branch(environ: Mapping[str, str]) -> str:
    names = ("BRANCH", "GITHUB_HEAD_REF", "GITHUB_REF_NAME", "CI_COMMIT_REF_NAME")
    return next((environ[name] for name in names if environ.get(name)), "")


def _run(environ: Mapping[str, str]) -> str:
    """Return Markdown that leads to the artifacts of the CI run."""
    if job := environ.get("CI_JOB_URL"):
        return f"[this job]({job}/artifacts/browse)"
    if run := environ.get("GITHUB_RUN_ID"):
        server = environ.get("GITHUB_SERVER_URL") or "https://github.com"
        address = f"{server}/{environ.get('GITHUB_REPOSITORY', '')}/actions/runs/{run}"
        return f"[this run]({address}#artifacts)"
    return "the run"
