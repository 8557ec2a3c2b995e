from __future__ import annotations

import importlib.util
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from forge_api import ForgeApi, served

from magtiles_seg.delivery import watch
from magtiles_seg.delivery.revisions import git
from magtiles_seg.serve.metrics import Metrics

PROJECT = Path(__file__).parents[2]
SCRIPTS = PROJECT / ".github/scripts"


@pytest.fixture
def metrics() -> Metrics:
    """The service's own metrics, with a calm day on them."""
    made = Metrics()
    made.input_psi.labels("gray_level").set(0.05)
    made.shadow.labels("compared").inc(1000)
    made.shadow_flipped.inc(3)
    return made


@pytest.fixture
def url(metrics: Metrics) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = metrics.text() if self.path == "/metrics" else b"{}"
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with listening(Handler) as address:
        yield address


@contextmanager
def listening(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def test_watch_of_a_calm_day_finds_nothing(url: str) -> None:
    assert watch.watch(url) == []


def test_watch_names_the_feature_that_moved(url: str, metrics: Metrics) -> None:
    metrics.input_psi.labels("sharpness").set(0.31)
    (found,) = watch.watch(url)
    assert found.what == "sharpness of the pictures has moved: stability index 0.31 > 0.2"


def test_watch_names_a_shadow_that_disagrees_too_often(url: str, metrics: Metrics) -> None:
    metrics.shadow_flipped.inc(8)
    (found,) = watch.watch(url)
    assert "turned 11 of 1000 verdicts, more than 1%" in found.what


def test_watch_names_a_shadow_that_is_not_reached(url: str, metrics: Metrics) -> None:
    metrics.shadow.labels("failed").inc(1001)
    (found,) = watch.watch(url)
    assert found.what == "most mirrored requests fail"


def test_watch_of_one_mirrored_request_that_failed_says_nothing() -> None:
    made = Metrics()
    made.shadow.labels("failed").inc(1)
    assert list(watch.shadow(made.text().decode())) == []


def test_watch_of_few_mirrored_pictures_says_nothing_of_their_share() -> None:
    made = Metrics()
    made.shadow.labels("compared").inc(99)
    made.shadow_flipped.inc(50)
    assert list(watch.shadow(made.text().decode())) == []
    made.shadow.labels("compared").inc()
    (found,) = watch.shadow(made.text().decode())
    assert "turned 50 of 100 verdicts" in found.what


def test_watch_of_one_request_that_was_not_mirrored_says_nothing() -> None:
    made = Metrics()
    made.shadow.labels("failed").inc(1)
    assert list(watch.shadow(made.text().decode())) == []


def test_watch_of_an_endpoint_that_is_down_is_a_finding() -> None:
    (found,) = watch.watch("http://127.0.0.1:9")
    assert "is not ready" in found.what


@pytest.mark.parametrize(("status", "said"), [(200, "holds no figures"), (404, "cannot be read")])
def test_watch_of_what_is_not_the_service_is_a_finding(status: int, said: str) -> None:
    class Login(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/readyz" else status)
            self.end_headers()
            self.wfile.write(b"<html>Log in</html>")

        def log_message(self, *_: object) -> None:
            pass

    with listening(Login) as url:
        (found,) = watch.watch(url)
    assert found.what.startswith(f"{url}/metrics {said}")


def test_watch_of_this_machine_asks_no_proxy(url: str, tmp_path: Path) -> None:
    call = [sys.executable, watch.__file__, url, f"{tmp_path}/found.md"]
    environ = {**os.environ, "http_proxy": "http://127.0.0.1:9", "no_proxy": ""}
    assert subprocess.run(call, env=environ, capture_output=True).returncode == 0


def test_watch_of_an_endpoint_that_speaks_no_http_is_a_finding() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(b"220 mail ready\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        (found,) = watch.watch(f"http://127.0.0.1:{server.getsockname()[1]}")
        thread.join()
    assert "is not ready" in found.what


def test_watch_file_runs_on_a_bare_python(url: str, metrics: Metrics, tmp_path: object) -> None:
    command = [sys.executable, "-I", "-S", watch.__file__, url, f"{tmp_path}/found.md"]
    assert subprocess.run(command, capture_output=True).returncode == 0
    metrics.input_psi.labels("score").set(9)
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert "**score of the pictures has moved" in done.stdout


@pytest.mark.parametrize(("setting", "expected"), [("off", ""), ("on", "start=true\n")])
def test_watch_asks_for_a_branch_only_where_the_setting_says_so(
    url: str, metrics: Metrics, tmp_path: Path, setting: str, expected: str
) -> None:
    metrics.input_psi.labels("sharpness").set(0.31)
    output = tmp_path / "output"
    output.touch()
    with served(ForgeApi()) as api:
        environ = {**api.environ, "PATH": os.environ["PATH"], "NO_PROXY": "127.0.0.1"}
        environ |= {"WATCH_URL": url, "WATCH_EXPERIMENT": setting, "GITHUB_OUTPUT": str(output)}
        assert subprocess.run([SCRIPTS / "watch"], env=environ).returncode == 0
        assert len(api.issues) == 1
        assert url not in str(api.issues)  # a secret, and whoever sees the project sees its issues
    assert output.read_text() == expected


@pytest.fixture
def job(tmp_path: Path) -> Path:
    """A fresh clone, where Git knows nobody, of a forge that knows main and dev."""
    remote, root = tmp_path / "forge.git", tmp_path / "job"
    git("init", "--quiet", "--bare", "--initial-branch=dev", str(remote), root=tmp_path)
    git("init", "--quiet", "--initial-branch=dev", str(root), root=tmp_path)
    for name in (".github", ".dvc/config", "magtiles_seg/delivery", "dvc.yaml", "params.yaml"):
        path = PROJECT / name
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (shutil.copytree if path.is_dir() else shutil.copy)(path, root / name)
    (root / ".gitignore").write_text("__pycache__\n/.dvc/config.local\n/.dvc/cache\n/.dvc/tmp\n")
    git("add", "--all", root=root)
    who = ("-c", "user.name=t", "-c", "user.email=t@example.org")
    git(*who, "commit", "--quiet", "--message", "start", root=root)
    git("remote", "add", "origin", str(remote), root=root)
    git("push", "--quiet", "origin", "dev", root=root)
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept/tile_7.png").write_bytes(b"a picture")
    return root


def start_from_kept(job: Path, api: ForgeApi, **settings: str) -> subprocess.CompletedProcess[str]:
    environ = {
        **api.environ,
        "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin",
        "HOME": str(job.parent),
        "NO_PROXY": "127.0.0.1",
        "DVC_NO_ANALYTICS": "true",
        "DVC_SITE_CACHE_DIR": str(job.parent / "site"),
        "DVC_REMOTE_URL": str(job.parent / "store"),
        "WATCH_KEPT": str(job.parent / "kept"),
        **settings,
    }
    script = job / ".github/scripts/start-from-kept"
    return subprocess.run([script], cwd=job, env=environ, capture_output=True, text=True)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("dvc") is None, reason="needs dvc")
def test_kept_pictures_become_one_branch_whose_pictures_lie_in_the_remote_alone(job: Path) -> None:
    remote, today = job.parent / "forge.git", "exp-kept-"
    with served(ForgeApi()) as api:
        done = start_from_kept(job, api)
        assert done.returncode == 0, done.stderr
        (proposal,) = api.proposals
        assert proposal["branch"].startswith(today)
        assert proposal["base"] == "dev"
        again = start_from_kept(job, api)
        assert f"{proposal['branch']} waits for labels" in again.stdout
    changed = git("diff", "--name-only", "dev", proposal["branch"], root=remote)
    assert set(changed.split()) == {"kept.dvc", ".gitignore"}
    stored = [path.read_bytes() for path in (job.parent / "store").rglob("*") if path.is_file()]
    assert b"a picture" in stored

    git("update-ref", "refs/heads/dev", proposal["branch"], root=remote)  # a person merged it
    git("update-ref", "-d", f"refs/heads/{proposal['branch']}", root=remote)
    with served(ForgeApi()) as api:
        assert "nothing new was kept" in start_from_kept(job, api).stdout
        (job.parent / "kept/tile_8.png").write_bytes(b"another")
        done = start_from_kept(job, api)
        assert done.returncode == 0, done.stderr
        assert len(api.proposals) == 1


def test_kept_pictures_in_the_folder_that_the_script_makes_are_left_alone(job: Path) -> None:
    (job / "kept").mkdir()
    (job / "kept/tile_7.png").write_bytes(b"a picture")
    with served(ForgeApi()) as api:
        done = start_from_kept(job, api, WATCH_KEPT="kept")
    assert done.returncode == 1
    assert "name another" in done.stderr
    assert (job / "kept/tile_7.png").exists()


def test_kept_pictures_without_a_remote_stay_out_of_git(job: Path) -> None:
    with served(ForgeApi()) as api:
        done = start_from_kept(job, api, DVC_REMOTE_URL="")
        assert done.returncode == 1
        assert "pictures of a line do not go into Git" in done.stderr
        assert api.proposals == []
    assert git("branch", "--format=%(refname:short)", root=job.parent / "forge.git") == "dev"


@pytest.mark.parametrize(
    "url", ["https://tiles.example.org", "https://tiles.example.org:8443/line/"]
)
def test_text_of_the_issue_does_not_tell_the_address(url: str) -> None:
    what = f"{url.rstrip('/')}/metrics cannot be read: no certificate for 'tiles.example.org'"
    text = watch.as_text(url, [watch.Finding(what, "see https://my-tiles.example.org, say")])
    assert "the endpoint/metrics cannot be read: no certificate for 'the endpoint'" in text
    assert "https://my-tiles.example.org" in text
