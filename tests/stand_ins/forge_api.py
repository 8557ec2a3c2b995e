"""Stands in for the interfaces of GitHub and GitLab: what the delivery asks of them, and no more.

It keeps a state, merges in a bare repository where it has one, and refuses as the real ones do.
"""

from __future__ import annotations

import json
import re
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

Answer = tuple[int, Any]


@dataclass
class ForgeApi:
    """The state of a forge with one project.

    Attributes:
        owner: Of the project.
        name: Of the project.
        remote: Bare repository in which proposals are merged; None: merging changes nothing.
        token: That every request must bring.
        may_propose: Whether jobs may open pull requests.
        may_merge: Whether the base takes merges without a review.
        has_issues: Whether the project has issues.
        private: Whether only people with a right see it.
        proposals: Open and merged ones.
        comments: By the number of a proposal or issue.
        issues: Open ones.
        started: Workflows that were asked for.
        asked: Every request, as `GET /pulls`.
        url: Address while it is served.
    """

    owner: str = "Some-Owner"
    name: str = "Tiles"
    remote: Path | None = None
    token: str = "forge-token"
    may_propose: bool = True
    may_merge: bool = True
    has_issues: bool = True
    private: bool = False
    proposals: list[dict[str, Any]] = field(default_factory=list)
    comments: dict[int, list[dict[str, Any]]] = field(default_factory=dict)
    issues: list[dict[str, Any]] = field(default_factory=list)
    started: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    url: str = ""

    @property
    def environ(self) -> dict[str, str]:
        """What GitHub gives to a job."""
        return {
            "GITHUB_API_URL": self.url,
            "GITHUB_REPOSITORY": f"{self.owner}/{self.name}",
            "GH_TOKEN": self.token,
        }

    @property
    def gitlab_environ(self) -> dict[str, str]:
        """What GitLab gives to a job."""
        return {"CI_API_V4_URL": self.url, "CI_PROJECT_ID": "7", "REPO_TOKEN": self.token}

    def answer(self, method: str, address: str, content: dict[str, Any], token: str) -> Answer:
        """Return status and content of an answer."""
        parts = urlsplit(address)
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        raw = re.fullmatch(rf"/{self.owner}/{self.name}/(?:-/)?raw/(\w+)/([\w.]+)", parts.path)
        if raw is not None:  # a page, which a person's browser asks for
            return 200, self._git_bytes("cat-file", "blob", ":".join(raw.groups()))
        if token.rpartition(" ")[2] != self.token:
            return 401, {"message": "Bad credentials"}
        for start, answers in (
            (f"/repos/{self.owner}/{self.name}", self._github()),
            ("/projects/7", self._gitlab()),
        ):
            if parts.path.startswith(start):
                path = parts.path.removeprefix(start)
                self.asked.append(f"{method} {path}")
                for pattern, do in answers.items():
                    if found := re.fullmatch(pattern, f"{method} {path}"):
                        code, made = do(*found.groups(), content if method != "GET" else query)
                        if isinstance(made, list):  # a page of it
                            size, page = (int(query.get(n, 1)) for n in ("per_page", "page"))
                            made = made[size * (page - 1) : size * page]
                        return code, made
        return 404, {"message": "Not Found"}

    def _github(self) -> dict[str, Callable[..., Answer]]:
        return {
            "GET ": lambda _: (200, self._about()),
            "GET /actions/permissions/workflow": lambda _: (403, {"message": "not accessible"}),
            "GET /pulls": lambda query: (
                200,
                self._open(query["head"].partition(":")[2]) if "head" in query else self._pulls(),
            ),
            r"GET /commits/(\w+)/pulls": lambda *_: (200, self._pulls()),
            "POST /pulls": lambda asked: self._propose(asked["head"], asked["base"], asked),
            r"PUT /pulls/(\d+)/merge": lambda number, asked: self._merge(int(number), asked["sha"]),
            r"GET /issues/(\d+)/comments": lambda number, _: (200, self._comments(number)),
            r"POST /issues/(\d+)/comments": lambda number, asked: self._comment(number, asked),
            r"PATCH /issues/comments/(\d+)": lambda number, asked: self._change(number, asked),
            "GET /issues": lambda _: (200, self.issues),
            "POST /issues": self._issue,
            r"POST /actions/workflows/([\w.-]+)/dispatches": self._start,
        }

    def _gitlab(self) -> dict[str, Callable[..., Answer]]:
        notes = "(?:merge_requests|issues)"
        return {
            "GET ": lambda _: (200, self._about()),
            "GET /merge_requests": lambda query: (200, self._open(query["source_branch"])),
            "POST /merge_requests": lambda asked: self._propose(
                asked["source_branch"], asked["target_branch"], asked
            ),
            r"PUT /merge_requests/(\d+)/merge": lambda number, asked: self._merge(
                int(number), asked["sha"]
            ),
            rf"GET /{notes}/(\d+)/notes": lambda number, _: (200, self._comments(number)),
            rf"POST /{notes}/(\d+)/notes": lambda number, asked: self._comment(number, asked),
            rf"PUT /{notes}/\d+/notes/(\d+)": lambda number, asked: self._change(number, asked),
            "GET /issues": lambda _: (200, self.issues),
            "POST /issues": self._issue,
        }

    def _about(self) -> dict[str, Any]:
        address = f"{self.url}/{self.owner}/{self.name}"
        github = {"html_url": address, "private": self.private, "archived": False}
        gitlab = {"web_url": address, "visibility": "internal" if self.private else "public"}
        return {"has_issues": self.has_issues, **github, **gitlab}

    def _open(self, branch: str) -> list[dict[str, Any]]:
        return [one for one in self.proposals if one["branch"] == branch and not one["merged"]]

    def _pulls(self) -> list[dict[str, Any]]:
        """Return the open pull requests as CML reads them."""
        return [
            one | {"head": {"ref": one["branch"]}, "base": {"ref": one["base"]}}
            for one in self.proposals
            if not one["merged"]
        ]

    def _propose(self, branch: str, base: str, asked: dict[str, Any]) -> Answer:
        if not self.may_propose:
            message = "GitHub Actions is not permitted to create or approve pull requests."
            return 403, {"message": message}
        number = len(self.proposals) + len(self.issues) + 1
        address = f"{self.url}/pull/{number}"
        made = {"number": number, "iid": number, "branch": branch, "base": base, "merged": False}
        self.proposals.append(made | {"html_url": address, "web_url": address, "asked": asked})
        return 201, self.proposals[-1]

    def _merge(self, number: int, commit: str) -> Answer:
        if not self.may_merge:
            return 405, {"message": "At least 1 approving review is required"}
        proposal = next(one for one in self.proposals if one["number"] == number)
        if self.remote is not None:
            head = self._git("rev-parse", f"refs/heads/{proposal['branch']}")
            if head != commit:
                return 409, {"message": "Head branch was modified"}
            base = f"refs/heads/{proposal['base']}"
            tree = self._git("merge-tree", "--write-tree", base, commit).splitlines()[0]
            words = ("commit-tree", tree, "-p", base, "-p", commit, "-m", "merge")
            merged = self._git(*words)
            self._git("update-ref", base, merged)
        proposal["merged"] = True
        return 200, {"sha": commit, "merge_commit_sha": commit}

    def _git(self, *words: str) -> str:
        return self._git_bytes(*words).decode().strip()

    def _git_bytes(self, *words: str) -> bytes:
        who = ("-c", "user.name=forge", "-c", "user.email=forge@example.org")
        command = ("git", *who, *words)
        return subprocess.run(command, cwd=self.remote, capture_output=True, check=True).stdout

    def _comments(self, number: str) -> list[dict[str, Any]]:
        return self.comments.setdefault(int(number), [])

    def _comment(self, number: str, asked: dict[str, Any]) -> Answer:
        count = sum(len(entries) for entries in self.comments.values())
        made = {"id": count + 1, "body": asked["body"], "html_url": f"{self.url}/c{count + 1}"}
        self._comments(number).append(made)
        return 201, made

    def _change(self, number: str, asked: dict[str, Any]) -> Answer:
        for entries in self.comments.values():
            for entry in entries:
                if entry["id"] == int(number):
                    entry["body"] = asked["body"]
                    return 200, entry
        return 404, {"message": "Not Found"}

    def _issue(self, asked: dict[str, Any]) -> Answer:
        if not self.has_issues:
            return 410, {"message": "Issues are disabled for this repo"}
        number = len(self.proposals) + len(self.issues) + 1
        address = f"{self.url}/issues/{number}"
        made = {"number": number, "iid": number, "html_url": address, "web_url": address}
        self.issues.append(asked | made)
        return 201, self.issues[-1]

    def _start(self, workflow: str, asked: dict[str, Any]) -> Answer:
        self.started.append(f"{workflow} {asked['ref']}")
        return 204, None


@contextmanager
def served(api: ForgeApi, tls: ssl.SSLContext | None = None) -> Iterator[ForgeApi]:
    """Serve a forge on this machine for as long as it is used; by HTTPS as `localhost`."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            size = int(self.headers.get("Content-Length") or 0)
            content = json.loads(self.rfile.read(size) or b"{}")
            token = self.headers.get("Authorization") or self.headers.get("PRIVATE-TOKEN") or ""
            status, said = api.answer(
                self.command, self.path.removeprefix("/api/v3"), content, token
            )
            body = said if isinstance(said, bytes) else json.dumps(said).encode()
            body = b"" if said is None else body
            self.send_response(status)
            self.send_header("Content-Type", "application/json; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_POST(self) -> None:
            self.do_GET()

        def do_PUT(self) -> None:
            self.do_GET()

        def do_PATCH(self) -> None:
            self.do_GET()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    api.url = f"http://127.0.0.1:{server.server_port}"
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
        api.url = f"https://localhost:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield api
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
