"""A true server: its process, its port, and the clients that people have."""
# ruff: noqa: ANN401

from __future__ import annotations

import asyncio
import json
import re
import runpy
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from magtiles_seg import Segmenter
from magtiles_seg.serve.auth import new_key

LOAD = runpy.run_path(str(Path(__file__).with_name("load.py")))
DOCS = Path(__file__).parents[2] / "docs" / "serve.md"


@pytest.fixture(scope="module")
def server(server_class: Any, model: Path) -> Iterator[Any]:
    with server_class("--model", str(model), "--max-files", "2") as started:
        started.wait_ready()
        yield started


@pytest.fixture
def tile(png: bytes, tmp_path: Path) -> Path:
    path = tmp_path / "tile.png"
    path.write_bytes(png)
    return path


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_curl_line_of_the_docs_gets_the_librarys_mask(
    server: Any,
    tile: Path,
    model: Path,
) -> None:
    (line,) = re.findall(r"^\$ (curl -F 'image=@tile.png' \\\n.*analyze)$", DOCS.read_text(), re.M)
    line = line.replace("http://127.0.0.1:8000", server.url)
    done = subprocess.run(line, shell=True, cwd=tile.parent, capture_output=True, check=True)
    with Segmenter(model, threads=1) as segmenter:
        assert json.loads(done.stdout) == {"pred": segmenter(tile).mask.tolist()}
    assert b"200 OK" in done.stderr


def test_client_that_leaves_is_noticed_and_its_place_is_free(server: Any, png: bytes) -> None:
    for _ in range(3):
        with socket.create_connection(("127.0.0.1", server.port)) as connection:
            connection.sendall(LOAD["upload"](png))
    deadline = time.monotonic() + 30
    while "magtiles_in_flight 0.0" not in metrics(server):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert asyncio.run(LOAD["ask"](server.port, LOAD["upload"](png))) == 200


def metrics(server: Any) -> str:
    import httpx

    return httpx.get(f"{server.url}/metrics").text


def test_sigterm_under_load_answers_every_accepted_request(
    server_class: Any,
    model: Path,
) -> None:
    server = server_class("--model", str(model), "--max-in-flight", "8")
    server.wait_ready()
    outcomes, _ = asyncio.run(LOAD["crowd"](server, 20, 2.0))
    server.stop()
    assert outcomes["200"] > 0
    assert not {name for name in outcomes if name.startswith(("lost", "500", "0"))}
    (counts,) = re.findall(r"accepted (\d+) requests, answered (\d+)", "".join(server.lines))
    assert counts[0] == counts[1]


def test_workers_share_a_port_and_one_scrape_counts_for_both(
    server_class: Any,
    model: Path,
    png: bytes,
) -> None:
    with server_class("--model", str(model), "--workers", "2") as server:
        server.wait_ready()
        for _ in range(6):
            assert asyncio.run(LOAD["ask"](server.port, LOAD["upload"](png))) == 200
        assert 'magtiles_requests_total{path="/analyze",status="200"} 6.0' in metrics(server)


def test_start_prints_the_settings_without_secrets(server_class: Any, model: Path) -> None:
    _, entry = new_key("line-1")
    environment = {"MAGTILES_API_KEYS": entry, "MAGTILES_PRT": "1"}
    with server_class("--model", str(model), environment=environment) as server:
        said = "".join(server.lines)
    assert "set (line-1)" in said
    assert "did you mean 'MAGTILES_PORT'" in said
    assert entry.split(":")[1] not in said


def test_upload_that_stalls_is_ended_by_408(server_class: Any, model: Path) -> None:
    with server_class("--model", str(model), "--read-timeout-s", "0.3") as server:
        server.wait_ready()
        with socket.create_connection(("127.0.0.1", server.port)) as connection:
            connection.sendall(LOAD["upload"](bytes(100))[:-60])
            connection.settimeout(20)
            assert connection.recv(100).startswith(b"HTTP/1.1 408")


@pytest.mark.endurance
def test_soak_of_200_clients_answers_or_says_503_and_memory_is_flat() -> None:
    report = LOAD["soak"](60.0)
    assert set(report["outcomes"]) <= {
        "200", "503", "200 after SIGTERM", "503 after SIGTERM", "refused after SIGTERM",
    }  # fmt: skip
    memory = np.array(report["memory_mb"])
    assert memory[-3:].mean() <= 1.1 * memory[len(memory) // 3 :][:3].mean() + 20
