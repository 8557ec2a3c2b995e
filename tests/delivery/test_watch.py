from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from magtiles_seg.delivery import watch
from magtiles_seg.serve.metrics import Metrics


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

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
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


def test_watch_of_few_mirrored_pictures_says_nothing_of_their_share() -> None:
    made = Metrics()
    made.shadow.labels("compared").inc(99)
    made.shadow_flipped.inc(50)
    assert list(watch.shadow(made.text().decode())) == []


def test_watch_of_an_endpoint_that_is_down_is_a_finding() -> None:
    (found,) = watch.watch("http://127.0.0.1:9")
    assert "is not ready" in found.what


def test_watch_file_runs_on_a_bare_python(url: str, metrics: Metrics, tmp_path: object) -> None:
    command = [sys.executable, "-I", "-S", watch.__file__, url, f"{tmp_path}/found.md"]
    assert subprocess.run(command, capture_output=True).returncode == 0
    metrics.input_psi.labels("score").set(9)
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert "**score of the pictures has moved" in done.stdout
