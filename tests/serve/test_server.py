"""A true server: its process, its port, and the clients that people have."""
# ruff: noqa: ANN401

from __future__ import annotations

import asyncio
import json
import os
import re
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pytest

from magtiles_seg import Segmenter
from magtiles_seg.export.graph import rewrite_card
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


def gauge(text: str, name: str) -> float:
    (value,) = re.findall(rf"^{name}\S* (\S+)$", text, re.MULTILINE)
    return float(value)


def is_worker(process: psutil.Process) -> bool:
    alive = process.status() != psutil.STATUS_ZOMBIE
    return alive and any("spawn_main" in word for word in process.cmdline())


def wait_for(what: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.1)


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
    with server_class("--model", str(model), "--max-in-flight", "8") as server:
        server.wait_ready()
        outcomes, _ = asyncio.run(LOAD["crowd"](server, 20, 2.0))
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


def test_scrape_of_one_worker_tells_the_load_of_all_that_live(
    server_class: Any, model: Path
) -> None:
    with server_class("--model", str(model), "--workers", "2") as server:
        server.wait_ready()
        uploads = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(8)]
        for upload in uploads:
            upload.sendall(LOAD["upload"](bytes(100))[:-60])
        with httpx.Client(base_url=server.url) as one:  # its connection stays with one worker
            wait_for(lambda: gauge(one.get("/metrics").text, "magtiles_in_flight") == 8)
        for upload in uploads:
            upload.close()
        workers = [
            each for each in psutil.Process(server.process.pid).children() if is_worker(each)
        ]
        workers[0].kill()
        wait_for(lambda: not workers[0].is_running())
        wait_for(lambda: gauge(metrics(server), "magtiles_model_info") == 1)  # not yet replaced


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


def test_slow_uploads_give_way_to_a_client_that_is_not_slow(
    server_class: Any, model: Path, png: bytes
) -> None:
    with server_class("--model", str(model), "--max-in-flight", "2") as server:
        server.wait_ready()
        slow = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(2)]
        for connection in slow:
            connection.sendall(LOAD["upload"](bytes(100))[:-60])
        time.sleep(1.5)
        assert asyncio.run(LOAD["ask"](server.port, LOAD["upload"](png))) == 200
        slow[0].settimeout(20)
        assert slow[0].recv(100).startswith(b"HTTP/1.1 408")
        for connection in slow:
            connection.close()


@pytest.mark.parametrize("workers", [1, 2])
def test_sigterm_ends_within_8_s_whatever_is_open(
    server_class: Any, model: Path, workers: int
) -> None:
    with server_class("--model", str(model), "--workers", str(workers)) as server:
        server.wait_ready()
        large = LOAD["upload"](LOAD["large_jpeg"]())
        sent = (
            b"",
            b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n",
            b"GET /l",
            large[:-100],
            large,
            large,
        )
        connections = [socket.create_connection(("127.0.0.1", server.port)) for _ in sent]
        for connection, data in zip(connections, sent, strict=True):
            connection.sendall(data)
        time.sleep(0.5)
        started = server.pids()
    for connection in connections:
        connection.close()
    assert server.stopped_after_s < 8
    assert len(started) > workers  # decoders too
    deadline = time.monotonic() + 5
    while any(Path(f"/proc/{pid}").exists() for pid in started):
        assert time.monotonic() < deadline, "a process is left"
        time.sleep(0.05)


@pytest.mark.parametrize("workers", [1, 2])
def test_sigterm_closes_the_port_while_the_last_answer_is_still_to_come(
    server_class: Any, model: Path, png: bytes, workers: int
) -> None:
    with server_class("--model", str(model), "--workers", str(workers)) as server:
        server.wait_ready()
        upload = LOAD["upload"](png)
        with socket.create_connection(("127.0.0.1", server.port)) as last:
            last.sendall(upload[:-60])
            time.sleep(0.5)
            server.terminate()

            def is_closed() -> bool:
                try:
                    socket.create_connection(("127.0.0.1", server.port)).close()
                except ConnectionRefusedError:
                    return True
                except (
                    ConnectionResetError
                ):  # it still stood in the queue of the port as that closed
                    pass
                return False

            wait_for(is_closed, seconds=1.5)
            last.sendall(upload[-60:])
            assert last.recv(100).startswith(b"HTTP/1.1 200")


def test_decoders_that_are_killed_are_replaced(server_class: Any, model: Path, png: bytes) -> None:
    with server_class("--model", str(model)) as server:
        server.wait_ready()
        decoders = [pid for pid in server.pids() if pid != server.process.pid]
        assert decoders
        for pid in decoders:
            os.kill(pid, signal.SIGKILL)
        assert asyncio.run(LOAD["ask"](server.port, LOAD["upload"](png))) == 200


@pytest.mark.endurance
def test_soak_of_200_clients_with_large_pictures_answers_all_it_accepts() -> None:
    report = LOAD["soak"](float(os.environ.get("SOAK_S", "120")), picture=LOAD["large_jpeg"]())
    outcomes = report["outcomes"]
    assert not [name for name in outcomes if name.startswith(("lost", "500", "0"))]
    assert outcomes["200"] > 0
    assert report["stopped_after_s"] < 8
    (line,) = report["accepted_answered"]
    accepted, answered, expired, left = map(int, re.findall(r"\d+", line)[:4])
    assert accepted == answered + expired + left
    memory = np.array(report["memory_mb"])
    assert memory[-3:].mean() <= 1.1 * memory[len(memory) // 3 :][:3].mean() + 20


@pytest.mark.endurance
def test_soak_of_200_clients_answers_or_says_503_and_memory_is_flat() -> None:
    report = LOAD["soak"](60.0)
    assert set(report["outcomes"]) <= {
        "200", "503", "200 after SIGTERM", "503 after SIGTERM", "refused after SIGTERM",
    }  # fmt: skip
    memory = np.array(report["memory_mb"])
    assert memory[-3:].mean() <= 1.1 * memory[len(memory) // 3 :][:3].mean() + 20


def test_model_file_replaced_under_workers_is_served_by_none_of_them(
    server_class: Any, model: Path, png: bytes, tmp_path: Path
) -> None:
    served, other = (tmp_path / name for name in ("served.onnx", "other.onnx"))
    for path in (served, other):
        shutil.copy(model, path)
    with Segmenter(other) as segmenter:
        rewrite_card(other, replace(segmenter.spec.card, name="other"))
    with server_class("--model", str(served), "--workers", "2") as server:
        server.wait_ready()
        other.replace(served)
        first, second = filter(is_worker, psutil.Process(server.process.pid).children())
        first.kill()
        wait_for(lambda: sum(map(is_worker, psutil.Process(server.process.pid).children())) == 2)
        second.kill()  # whoever answers now was started after the file was replaced
        wait_for(lambda: not second.is_running())
        server.wait_ready()
        answer = httpx.post(f"{server.url}/analyze", files={"image": png}, timeout=30)
        assert answer.headers["X-Model-Name"] != "other"


@pytest.mark.parametrize("fault", ["missing", "damaged", "keys"])
def test_workers_that_could_not_start_are_one_error_and_the_end(
    fault: str, model: Path, tmp_path: Path
) -> None:
    path = tmp_path / "served.onnx"
    if fault != "missing":
        path.write_bytes(model.read_bytes()[: -1 if fault == "damaged" else None])
    keys = ["--api-keys", "line-1"] if fault == "keys" else []
    command = ["-m", "magtiles_seg", "serve", "--port", "0", "--model", str(path), *keys]
    done = subprocess.run(
        [sys.executable, *command, "--workers", "2"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1].startswith("magtiles-seg: ")
