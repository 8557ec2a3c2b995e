"""Puts a report on the pull request: by CML where it is installed, by the forge's API otherwise.

Pictures of test tiles leave the machine only for a server that is named. Without one the comment
has text alone, and says where the pictures are.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

from magtiles_seg.delivery import forge
from magtiles_seg.errors import DeliveryError
from magtiles_seg.files import write

PUBLISH_URL = "REPORT_PUBLISH_URL"
"""Environment variable: the address of CML's picture server."""

_NODE_OPTIONS = "--no-experimental-fetch"
"""CML 0.20.6 tells pictures apart by a module that breaks where Node brings `fetch`: since 18."""

_PICTURE = re.compile(r"^!\[([^\]]*)\]\([^)]*\)$", re.MULTILINE)


def post(report: Path, environ: Mapping[str, str]) -> str:
    """Create the comment, or replace the one from before.

    Args:
        report: A `report.md` with its pictures beside it.
        environ: Environment variables: `REPORT_PUBLISH_URL`, those of the CI run, tokens.

    Returns:
        What was run, or the comment's address.

    Raises:
        DeliveryError: The forge refused, or the environment names none.
    """
    if shutil.which("cml", path=environ.get("PATH", "")) is None:
        return _comment(report, environ)
    command = _command(report, environ)
    options = f"{environ.get('NODE_OPTIONS', '')} {_NODE_OPTIONS}".strip()
    known = {**environ, "NODE_OPTIONS": options}
    done = subprocess.run(command, env=known, capture_output=True, text=True)
    if done.returncode:
        said = done.stderr.strip() or done.stdout.strip()
        raise DeliveryError(f"{' '.join(command)} failed: {said}")
    return " ".join(command)


def without_pictures(report: str, environ: Mapping[str, str]) -> str:
    """Return the report's text with the name of each picture in its place."""
    names = ("GITHUB_SERVER_URL", "GITHUB_REPOSITORY", "GITHUB_RUN_ID")
    server, repository, run = (environ.get(name, "") for name in names)
    where = f"[this run]({server}/{repository}/actions/runs/{run})" if run else "the run"
    text = _PICTURE.sub(r"*\1*", report)
    return f"{text}\nThe pictures are in the artifact `report` of {where}.\n"


def _command(report: Path, environ: Mapping[str, str]) -> list[str]:
    address = environ.get(PUBLISH_URL, "")
    publish = f"--publish-url={address}" if address else "--publish=false"
    comment = report if address else _text_only(report, environ)
    return ["cml", "comment", "update", "--target=pr", publish, str(comment)]


def _comment(report: Path, environ: Mapping[str, str]) -> str:
    names = ("BRANCH", "GITHUB_HEAD_REF", "GITHUB_REF_NAME", "CI_COMMIT_REF_NAME")
    branch = next((environ[name] for name in names if environ.get(name)), "")
    text = _text_only(report, environ).read_text(encoding="utf-8")
    try:
        return forge.connect(environ).comment(branch, text)
    except forge.ForgeError as error:
        raise DeliveryError(f"the report cannot be posted: {error}") from error


def _text_only(report: Path, environ: Mapping[str, str]) -> Path:
    comment = report.with_name("comment.md")
    text = without_pictures(report.read_text(encoding="utf-8"), environ)
    write(comment, text)
    return comment
