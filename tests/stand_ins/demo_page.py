"""The demo as a process of its own, and a client of its raw interface; loaded by `runpy`."""

from __future__ import annotations

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx

PATIENCE_S = 90
CODE = "import sys; from magtiles_seg.cli import main; sys.exit(main())"
WORDS = {"alone": ("demo",), "mounted": ("serve", "--demo", "true")}


class Demo:
    """`magtiles-seg demo` or `serve --demo true`, with a temporary folder of its own."""

    def __init__(self, how: str, folder: Path, *flags: str) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.folder = folder
        command = [sys.executable, "-c", CODE, *WORDS[how], "--port", str(self.port), *flags]
        environment = {**os.environ, "TMPDIR": str(folder), "GRADIO_TEMP_DIR": ""}
        self.log = folder / "log.txt"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        self.url = f"http://127.0.0.1:{self.port}/demo"
        self._wait()

    def _wait(self) -> None:
        end = time.monotonic() + PATIENCE_S
        while True:
            assert self.process.poll() is None, self.log.read_text()
            try:
                assert httpx.get(f"{self.url}/config", timeout=5).status_code == 200
                return
            except httpx.HTTPError:
                assert time.monotonic() < end
                time.sleep(0.2)

    def files(self) -> list[Path]:
        """Return what the demo keeps."""
        return [path for path in self.folder.glob("magtiles-demo-*/**/*") if path.is_file()]

    def memory_mb(self) -> float:
        pages = Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE") / 1e6

    def stop(self) -> float:
        """Send SIGTERM and return the seconds until the end."""
        began_s = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(PATIENCE_S)
        finally:
            self.process.kill()
        return time.monotonic() - began_s

    def __enter__(self) -> Demo:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.process.terminate()
        self.process.wait(PATIENCE_S)


class Page:
    """One visitor with one open page."""

    def __init__(self, url: str) -> None:
        self.client = httpx.Client(base_url=url, timeout=60)
        self.session = secrets.token_hex(6)
        config = self.client.get("/config").json()
        names = {entry["id"]: entry["props"].get("elem_id") for entry in config["components"]}
        kinds = {entry["id"]: entry for entry in config["components"]}
        self.functions: dict[str, int] = {}
        self.chosen: dict[int, list[str]] = {}  # by function: the model, where there is a choice
        for call in config["dependencies"]:
            last = kinds.get(call["inputs"][-1]) if call["inputs"] else None
            is_choice = last is not None and last["type"] == "dropdown"
            self.chosen[call["id"]] = [last["props"]["value"]] if last and is_choice else []
            for target, event in call["targets"]:
                self.functions[f"{names.get(target)}.{event}"] = call["id"]

    def __enter__(self) -> Page:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.client.close()

    def upload(self, content: bytes, name: str = "tile.png") -> dict[str, Any]:
        reply = self.client.post("/gradio_api/upload", files={"files": (name, content)})
        assert reply.status_code == 200, reply.text
        return file_data(reply.json()[0])

    def join(self, function: str, data: list[Any], **more: Any) -> httpx.Response:  # noqa: ANN401
        number = self.functions[function]
        data = [*data, *self.chosen[number]]
        body = {"fn_index": number, "session_hash": self.session, "data": data}
        return self.client.post("/gradio_api/queue/join", json={**body, **more})

    def call(self, function: str, data: list[Any], **more: Any) -> dict[str, Any]:  # noqa: ANN401
        """Call a function and return its last message."""
        reply = self.join(function, data, **more)
        assert reply.status_code == 200, reply.text
        query = {"session_hash": self.session}
        with self.client.stream("GET", "/gradio_api/queue/data", params=query) as stream:
            for line in stream.iter_lines():
                if line.startswith("data: "):
                    message: dict[str, Any] = json.loads(line[6:])
                    if message["msg"] == "process_completed":
                        return message
        raise AssertionError("the stream ended without an answer")

    def inspect(self, file: dict[str, Any]) -> dict[str, Any]:
        return self.call("asked-tile.change", asked_tile("file:1", file))


def asked_tile(what: str, sent: object = None, key: str = "") -> list[Any]:
    """Return what the first tab's function is given; no `what`: a slider moved."""
    return [sent, what, "", key, 0.5, 0.5, 0]


def file_data(path: str, **more: Any) -> dict[str, Any]:  # noqa: ANN401
    return {"path": path, "meta": {"_type": "gradio.FileData"}, **more}
