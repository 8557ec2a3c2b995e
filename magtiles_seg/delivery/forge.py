"""What the delivery asks of GitHub or GitLab: pull requests, comments, issues, runs, pictures.

It imports the standard library alone and runs as a file, so that no `gh` is needed and the first
step of a job, on a bare machine, can propose a branch: `python3 …/forge.py propose exp-1 dev`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote

MARK = "<!-- magtiles-seg -->"
"""Ends a comment that the next one replaces."""

_TIMEOUT_S = 30.0
_NOBODY = {
    f"GIT_{role}_{what}": value
    for role in ("AUTHOR", "COMMITTER")
    for what, value in (("NAME", "magtiles-seg"), ("EMAIL", "magtiles-seg@example.invalid"))
}
_FORBIDDEN = "not permitted to create or approve pull requests"
_ALLOW = (
    "Settings, Actions, General, Workflow permissions: tick 'Allow GitHub Actions to create and "
    "approve pull requests'"
)


class ForgeError(Exception):
    """The forge refused; `status` is that of HTTP, 0 where it was not reached."""

    def __init__(self, message: str, status: int = 0) -> None:
        """Keep the status."""
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Home:
    """What a forge says of the project.

    Attributes:
        private: Whether only people with a right see it.
        raw_url: Address of its files; a commit and a path follow.
    """

    private: bool
    raw_url: str


class Forge(Protocol):
    """What both forges can."""

    def home(self) -> Home:
        """Return what the forge says of the project."""

    def propose(self, branch: str, base: str, title: str, body: str) -> str:
        """Return the address of the open proposal to merge a branch; made where there is none."""

    def merge(self, branch: str, base: str, commit: str) -> str:
        """Merge the proposal of a branch, if its last commit is still this one."""

    def comment(self, branch: str, text: str) -> str:
        """Write a comment on a branch's proposal, or replace the one from before."""

    def issue(self, title: str, text: str) -> str:
        """Open an issue, or comment on the open one of this title."""

    def start(self, workflow: str, ref: str) -> str:
        """Start a workflow on a branch."""


@dataclass(frozen=True)
class Api:
    """A forge's interface of JSON over HTTP.

    Attributes:
        url: Of the project in it.
        headers: With the token.
    """

    url: str
    headers: Mapping[str, str]

    def ask(self, method: str, path: str, content: object = None) -> Any:  # noqa: ANN401 - JSON
        """Return the answer's JSON; None where it is empty.

        Raises:
            ForgeError: It refused, or cannot be reached.
        """
        data = None if content is None else json.dumps(content).encode()
        headers = {**self.headers, "Content-Type": "application/json", "User-Agent": "magtiles-seg"}
        request = urllib.request.Request(f"{self.url}{path}", data, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as answer:
                body = answer.read()
        except urllib.error.HTTPError as error:
            with error:
                said = error.read()[:500].decode(errors="replace")
            fix = f"; fix: {_ALLOW}" if _FORBIDDEN in said else ""
            message = f"{method} {path.partition('?')[0]}: {error.code} {said}{fix}"
            raise ForgeError(message, error.code) from error
        except (OSError, HTTPException) as error:
            raise ForgeError(f"{self.url} cannot be reached: {error}") from error
        try:
            return json.loads(body) if body else None
        except ValueError as error:
            said = body[:200].decode(errors="replace")
            raise ForgeError(f"{self.url} answered no JSON: {said}") from error

    def pages(self, path: str) -> list[dict[str, Any]]:
        """Return the entries of every page of a list."""
        found: list[dict[str, Any]] = []
        for page in range(1, 101):
            more = f"{'&' if '?' in path else '?'}per_page=100&page={page}"
            entries = self.ask("GET", f"{path}{more}")
            found += entries
            if len(entries) < 100:
                break
        return found


@dataclass(frozen=True)
class GitHub:
    """A repository on GitHub.

    Attributes:
        api: Of the repository.
        owner: As GitHub spells it.
    """

    api: Api
    owner: str

    def home(self) -> Home:
        """Return what GitHub says of the repository."""
        about = self.api.ask("GET", "")
        return Home(about["private"], f"{about['html_url']}/raw")

    def propose(self, branch: str, base: str, title: str, body: str) -> str:
        """Return the address of the open pull request of a branch; made where there is none."""
        found = self._open(branch, base)
        if not found:
            wanted = {"title": title, "head": branch, "base": base, "body": body}
            found = [self.api.ask("POST", "/pulls", wanted)]
        return str(found[0]["html_url"])

    def merge(self, branch: str, base: str, commit: str) -> str:
        """Merge the pull request of a branch, if its last commit is still this one."""
        number = self._number(branch, base)
        wanted = {"sha": commit, "merge_method": "merge"}
        return str(self.api.ask("PUT", f"/pulls/{number}/merge", wanted)["sha"])

    def comment(self, branch: str, text: str) -> str:
        """Write a comment on a branch's pull request, or replace the one from before."""
        path = f"/issues/{self._number(branch)}/comments"
        old = [one["id"] for one in self.api.pages(path) if one["body"].endswith(MARK)]
        wanted = {"body": f"{text}\n{MARK}"}
        if old:
            return str(self.api.ask("PATCH", f"/issues/comments/{old[0]}", wanted)["html_url"])
        return str(self.api.ask("POST", path, wanted)["html_url"])

    def issue(self, title: str, text: str) -> str:
        """Open an issue, or comment on the open one of this title."""
        for one in self.api.pages("/issues?state=open"):
            if one["title"] == title and "pull_request" not in one:
                path = f"/issues/{one['number']}/comments"
                return str(self.api.ask("POST", path, {"body": text})["html_url"])
        return str(self.api.ask("POST", "/issues", {"title": title, "body": text})["html_url"])

    def start(self, workflow: str, ref: str) -> str:
        """Start a workflow on a branch."""
        self.api.ask("POST", f"/actions/workflows/{workflow}/dispatches", {"ref": ref})
        return f"started {workflow} on {ref}"

    def _open(self, branch: str, base: str = "") -> list[dict[str, Any]]:
        query = f"state=open&head={quote(f'{self.owner}:{branch}', safe='')}"
        return self.api.pages(f"/pulls?{query}{f'&base={quote(base)}' if base else ''}")

    def _number(self, branch: str, base: str = "") -> int:
        found = self._open(branch, base)
        if not found:
            raise ForgeError(f"the branch {branch} has no open pull request; propose it first")
        return int(found[0]["number"])


@dataclass(frozen=True)
class GitLab:
    """A project on GitLab.

    Attributes:
        api: Of the project.
    """

    api: Api

    def home(self) -> Home:
        """Return what GitLab says of the project; `internal` ones are not public."""
        about = self.api.ask("GET", "")
        return Home(about["visibility"] != "public", f"{about['web_url']}/-/raw")

    def propose(self, branch: str, base: str, title: str, body: str) -> str:
        """Return the address of the open merge request of a branch; made where there is none."""
        found = self._open(branch, base)
        if not found:
            wanted = {"source_branch": branch, "target_branch": base, "title": title}
            found = [self.api.ask("POST", "/merge_requests", wanted | {"description": body})]
        return str(found[0]["web_url"])

    def merge(self, branch: str, base: str, commit: str) -> str:
        """Merge the merge request of a branch, if its last commit is still this one."""
        path = f"/merge_requests/{self._number(branch, base)}/merge"
        return str(self.api.ask("PUT", path, {"sha": commit})["merge_commit_sha"])

    def comment(self, branch: str, text: str) -> str:
        """Write a note on a branch's merge request, or replace the one from before."""
        path = f"/merge_requests/{self._number(branch)}/notes"
        old = [one["id"] for one in self.api.pages(path) if one["body"].endswith(MARK)]
        wanted = {"body": f"{text}\n{MARK}"}
        if old:
            return f"note {self.api.ask('PUT', f'{path}/{old[0]}', wanted)['id']}"
        return f"note {self.api.ask('POST', path, wanted)['id']}"

    def issue(self, title: str, text: str) -> str:
        """Open an issue, or comment on the open one of this title."""
        for one in self.api.pages(f"/issues?state=opened&in=title&search={quote(title)}"):
            if one["title"] == title:
                self.api.ask("POST", f"/issues/{one['iid']}/notes", {"body": text})
                return str(one["web_url"])
        wanted = {"title": title, "description": text}
        return str(self.api.ask("POST", "/issues", wanted)["web_url"])

    def start(self, workflow: str, ref: str) -> str:
        """Say that GitLab starts the pipeline of a branch by itself."""
        return f"the merge starts the pipeline of {ref}, where {workflow} is a job"

    def _open(self, branch: str, base: str = "") -> list[dict[str, Any]]:
        query = f"state=opened&source_branch={quote(branch, safe='')}"
        target = f"&target_branch={quote(base, safe='')}" if base else ""
        return self.api.pages(f"/merge_requests?{query}{target}")

    def _number(self, branch: str, base: str = "") -> int:
        found = self._open(branch, base)
        if not found:
            raise ForgeError(f"the branch {branch} has no open merge request; propose it first")
        return int(found[0]["iid"])


PICTURES_REF = "refs/report-pictures"
"""Where a branch's pictures stand: no branch, so that no clone and no checkout fetches them."""


def publish(files: Iterable[Path], branch: str, root: Path) -> str:
    """Push files to origin as one commit without parents, in place of the branch's former ones.

    Args:
        files: Each stands in the commit by its name alone.
        branch: Whose report shows them.
        root: The repository's folder; its working tree and index are left alone.

    Returns:
        The commit.

    Raises:
        ForgeError: Git or origin refused.
    """
    files = list(files)
    blobs = _git(root, "hash-object", "-w", "--no-filters", "--", *map(str, files)).split()
    entries = [
        f"100644 blob {blob}\t{file.name}\n" for blob, file in zip(blobs, files, strict=True)
    ]
    tree = _git(root, "mktree", given="".join(entries))
    commit = _git(root, "commit-tree", tree, "-m", f"Pictures of the report on {branch}")
    _git(root, "push", "--quiet", "--force", "origin", f"{commit}:{PICTURES_REF}/{branch}")
    return commit


def _git(root: Path, *words: str, given: str = "") -> str:
    """Run git as nobody in particular: a runner has no name."""
    environ = {**os.environ, **_NOBODY, "GIT_TERMINAL_PROMPT": "0"}
    done = subprocess.run(
        ("git", *words), cwd=root, env=environ, input=given, capture_output=True, text=True
    )
    if done.returncode:
        raise ForgeError(f"git {words[0]} failed: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout.strip()


def connect(environ: Mapping[str, str]) -> Forge:
    """Return the forge that the environment of a CI job names.

    Args:
        environ: GitHub's `GITHUB_REPOSITORY` and `GH_TOKEN`, or GitLab's `CI_PROJECT_ID`,
            `CI_API_V4_URL` and `REPO_TOKEN`.

    Raises:
        ForgeError: It names none, or no token.
    """
    names = ("GH_TOKEN", "GITHUB_TOKEN", "REPO_TOKEN")
    token = next((environ[name] for name in names if environ.get(name)), "")
    if not token:
        raise ForgeError(f"no token: expected one of {', '.join(names)} in the environment")
    if repository := environ.get("GITHUB_REPOSITORY"):
        url = environ.get("GITHUB_API_URL") or "https://api.github.com"
        headers = {"Authorization": f"Bearer {token}", "Accept": "application/vnd.github+json"}
        return GitHub(Api(f"{url}/repos/{repository}", headers), repository.split("/")[0])
    if project := environ.get("CI_PROJECT_ID"):
        url = environ.get("CI_API_V4_URL") or "https://gitlab.com/api/v4"
        return GitLab(Api(f"{url}/projects/{project}", {"PRIVATE-TOKEN": token}))
    raise ForgeError("no forge: expected GITHUB_REPOSITORY or CI_PROJECT_ID in the environment")


def main(words: list[str]) -> int:
    """Do what is asked; 0: done, 1: the forge refused."""
    verbs = {
        "propose": ("branch", "base", "title"),
        "merge": ("branch", "base", "commit"),
        "start": ("workflow", "ref"),
        "issue": ("title", "file"),
    }
    parser = argparse.ArgumentParser(prog="forge", description=__doc__)
    each = parser.add_subparsers(dest="verb", required=True)
    for verb, names in verbs.items():
        one = each.add_parser(verb)
        for name in names:
            one.add_argument(name)
    given = vars(parser.parse_args(words))
    values = [given[name] for name in verbs[given["verb"]]]
    if given["verb"] == "propose":
        values.append("Its report follows.")
    if given["verb"] == "issue":
        values[-1] = Path(values[-1]).read_text(encoding="utf-8")
    try:
        sys.stdout.write(f"{getattr(connect(os.environ), given['verb'])(*values)}\n")
    except ForgeError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
