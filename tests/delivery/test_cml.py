"""CML itself against the stand-in of GitHub: a pull request, and the report on it, each twice.

npm does not have CML. Its repository is public: `git clone --branch v0.20.6
https://github.com/iterative/cml && npm install --omit=dev --ignore-scripts --prefix cml`, then
`CML=cml/bin/cml.js pytest tests/delivery/test_cml.py`.
"""

from __future__ import annotations

import os
import re
import shutil
import ssl
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from forge_api import ForgeApi, served

from magtiles_seg.delivery.post import post
from magtiles_seg.delivery.revisions import git
from magtiles_seg.evaluate.plots import charts

CML = os.environ.get("CML", "")
WHO = ("-c", "user.name=t", "-c", "user.email=t@example.org")

pytestmark = pytest.mark.skipif(
    not (CML and shutil.which("node") and shutil.which("openssl")),
    reason="needs node, openssl, and CML: the path of its bin/cml.js",
)


class Assets:
    """CML's picture server: keeps what is sent, and answers with an address."""

    def __init__(self) -> None:
        kept = self.kept = list[tuple[str, bytes]]()

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                content = self.rfile.read(int(self.headers["Content-Length"]))
                kept.append((self.headers["Content-Type"], content))
                body = f"https://assets.example.org/{len(kept)}".encode()
                self.send_response(201)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"


@pytest.fixture
def assets() -> Iterator[Assets]:
    made = Assets()
    thread = threading.Thread(target=made.server.serve_forever)
    thread.start()
    yield made
    made.server.shutdown()
    made.server.server_close()
    thread.join()


@pytest.fixture
def api(tmp_path: Path) -> Iterator[ForgeApi]:
    """GitHub by HTTPS, as CML asks for it, with a bare repository."""
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    words = "req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -addext"
    made = [
        *words.split(),
        "subjectAltName=DNS:localhost",
        "-keyout",
        str(key),
        "-out",
        str(certificate),
    ]
    subprocess.run(["openssl", *made], check=True, capture_output=True)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate, key)
    remote = tmp_path / "forge.git"
    git("init", "--quiet", "--bare", "--initial-branch=dev", str(remote), root=tmp_path)
    with served(ForgeApi(remote=remote, private=True), tls) as forge:
        yield forge


@pytest.fixture
def root(api: ForgeApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A clone on the branch dev, the working directory, with a result that is not committed."""
    root, home = tmp_path / "clone", tmp_path / "home"
    home.mkdir()
    with_token = api.url.replace("://", f"://token:{api.token}@")
    instead = [f"\tinsteadOf = {one}/{api.owner}/{api.name}" for one in (api.url, with_token)]
    section = [f'[url "file://{api.remote}"]', *(f"{one}.git" for one in instead)]
    (home / ".gitconfig").write_text("\n".join([*section, *instead]))
    monkeypatch.setenv("HOME", str(home))
    git("init", "--quiet", "--initial-branch=dev", str(root), root=tmp_path)
    (root / "metrics.json").write_text("{}\n")
    git("add", "--all", root=root)
    git(*WHO, "commit", "--quiet", "--message", "start", root=root)
    git("remote", "add", "origin", f"{api.url}/{api.owner}/{api.name}.git", root=root)
    git("push", "--quiet", "origin", "dev", root=root)
    (root / "metrics.json").write_text('{"iou": 0.8}\n')
    monkeypatch.chdir(root)
    return root


@pytest.fixture
def environ(api: ForgeApi, root: Path, tmp_path: Path) -> dict[str, str]:
    """What a job on GitHub has, and CML as `cml` on the PATH."""
    programs = tmp_path / "programs"
    programs.mkdir()
    (programs / "cml").write_text(f'#!/bin/sh\nexec node {Path(CML).resolve()} "$@"\n')
    (programs / "cml").chmod(0o755)
    return {
        "PATH": f"{programs}:{os.environ['PATH']}",
        "HOME": os.environ["HOME"],
        "NODE_EXTRA_CA_CERTS": str(tmp_path / "certificate.pem"),
        "NO_PROXY": "localhost,127.0.0.1",
        "ITERATIVE_DO_NOT_TRACK": "1",
        "CI": "true",
        "REPO_TOKEN": api.token,
        "GITHUB_REPOSITORY": f"{api.owner}/{api.name}",
        "GITHUB_REF": "refs/heads/dev",
        "GITHUB_SHA": git("rev-parse", "HEAD", root=root),
        "GITHUB_API_URL": f"{api.url}/api/v3",
        "BRANCH": "exp-1",
    }


def cml(environ: dict[str, str], *words: str) -> str:
    done = subprocess.run(("cml", *words), env=environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip()


def create(environ: dict[str, str]) -> str:
    words = ("pr", "create", "--branch=exp-1", "--target-branch=dev", "--title=Experiment")
    return cml(environ, *words, "metrics.json")


def write_report(root: Path, line: str) -> Path:
    """Write a report with a curve."""
    report = root / "runs/report.md"
    report.parent.mkdir(exist_ok=True)
    chart = charts.line_chart("Loss", {"here": [(0, 1), (1, 0.5)]}, x_label="step", y_label="loss")
    assert chart is not None
    (report.parent / "curve_0.png").write_bytes(chart)
    report.write_text(f"## Experiment\n\n{line}\n\n### Curves\n\n![Loss](curve_0.png)\n")
    return report


def test_pr_create_twice_commits_the_result_and_opens_one_pull_request(
    api: ForgeApi, root: Path, environ: dict[str, str]
) -> None:
    address = create(environ)
    assert api.remote
    assert git("show", "exp-1:metrics.json", root=api.remote) == '{"iou": 0.8}'
    git("checkout", "--quiet", "dev", root=root)
    (root / "metrics.json").write_text('{"iou": 0.9}\n')
    assert create(environ) == address
    assert [one["branch"] for one in api.proposals] == ["exp-1"]


def test_comment_update_twice_sends_the_pictures_and_replaces_the_first(
    api: ForgeApi, root: Path, environ: dict[str, str], assets: Assets
) -> None:
    create(environ)
    environ = environ | {"REPORT_PUBLISH_URL": assets.url}
    post(write_report(root, "first"), environ)
    post(write_report(root, "second"), environ)
    (comment,) = api.comments[1]
    assert "second" in comment["body"]
    assert re.search(r"!\[Loss\]\(https://assets\.example\.org/2\?cml=png", comment["body"])
    content = (root / "runs/curve_0.png").read_bytes()
    assert assets.kept == [("image/png", content)] * 2


def test_comment_update_without_a_server_shows_the_pictures_that_the_forge_keeps(
    api: ForgeApi, root: Path, environ: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    create(environ)
    monkeypatch.setenv("SSL_CERT_FILE", environ["NODE_EXTRA_CA_CERTS"])
    for line in ("first", "second"):
        said = post(write_report(root, line), environ)
        assert "without pictures" not in said
    (comment,) = api.comments[1]
    assert "second" in comment["body"]
    assert f'<img src="{api.url}/{api.owner}/{api.name}/raw/' in comment["body"]
