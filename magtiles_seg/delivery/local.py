"""The target `local`: the server as a process of this machine, one a stage, with a way back.

A folder a stage holds the models that were released and a note of what runs.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from magtiles_seg.errors import DeliveryError
from magtiles_seg.infer.backends.base import file_sha256

PORTS = {"dev": 8001, "prod": 8002}
_STOP_S = 20.0
_START_S = 60.0
_SERVE = "import sys; from magtiles_seg.cli import main; sys.exit(main())"


@dataclass(frozen=True)
class Running:
    """A server process.

    Attributes:
        pid: Of the process, the leader of its group.
        model: The file that it serves.
        version: Of the model; empty if unknown.
    """

    pid: int
    model: str
    version: str


class LocalTarget:
    """A stage on this machine."""

    def __init__(
        self, model: Path, stage: str, *, state: Path, port: int = 0, version: str = ""
    ) -> None:
        """Prepare; nothing is started.

        Args:
            model: The file to serve.
            stage: Has a port and a folder of its own.
            state: Holds the folders of the stages.
            port: To listen on; 0: 8001 for dev, 8002 for prod.
            version: That the endpoint shall name.
        """
        self._model, self._version = model, version
        self._port = port or PORTS[stage]
        self._folder = state / stage
        self._former: Running | None = None

    @property
    def url(self) -> str:
        """Where the endpoint is."""
        return f"http://127.0.0.1:{self._port}"

    def describe(self) -> str:
        """Return what would happen."""
        former = self._running()
        back = f"serve {former.model} again" if former else "stop it: nothing ran before"
        lines = (
            f"release    serve {self._model} at {self.url}, its state in {self._folder}",
            f"smoke test {self.url}",
            f"if that fails:\nroll back  {back}",
        )
        return "\n".join(lines)

    def release(self) -> None:
        """Keep a copy of the model, stop what runs, and start the server with the copy.

        Raises:
            DeliveryError: The server ended at once, as with a damaged model; the message has its
            last words.
        """
        kept = self._folder / "models" / f"{file_sha256(self._model)[:16]}.onnx"
        kept.parent.mkdir(parents=True, exist_ok=True)
        if not kept.exists():
            shutil.copy(self._model, kept)
        self._former = self._running()
        self._start(str(kept), self._version)

    def rollback(self) -> bool:
        """Serve the former model again; False where there was none, and the new one is stopped.

        Raises:
            DeliveryError: It ended at once.
        """
        if self._former is None:
            self.stop()
            return False
        self._start(self._former.model, self._former.version)
        return True

    def stop(self) -> None:
        """Stop what runs on this stage."""
        running = self._running()
        if running is not None:
            _stop(running.pid)
        self._note.unlink(missing_ok=True)

    @property
    def _note(self) -> Path:
        return self._folder / "running.json"

    def _running(self) -> Running | None:
        if not self._note.exists():
            return None
        return Running(**json.loads(self._note.read_text(encoding="utf-8")))

    def _start(self, model: str, version: str) -> None:
        self.stop()
        serve = ["serve", "--host", "127.0.0.1", "--port", str(self._port), "--model", model]
        path = self._folder / "server.log"
        with path.open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-u", "-c", _SERVE, *serve],  # -u: its last words stand last
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=_environment(version),
                start_new_session=True,
            )
        running = Running(process.pid, model, version)
        self._note.write_text(json.dumps(asdict(running)), encoding="utf-8")
        end = time.monotonic() + _START_S
        while not _listens(self._port) and time.monotonic() < end:
            if process.poll() is not None:
                last = path.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:]
                raise DeliveryError(f"the server ended with {process.returncode}: {' '.join(last)}")
            time.sleep(0.1)


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _environment(version: str) -> Mapping[str, str]:
    return {**os.environ, "MAGTILES_MODEL_VERSION": version} if version else os.environ


def _stop(pid: int) -> None:
    """End a server and its workers, gently first.

    Raises:
        DeliveryError: It runs on.
    """
    for sign, seconds in ((signal.SIGTERM, _STOP_S), (signal.SIGKILL, _STOP_S)):
        try:
            os.killpg(pid, sign)
        except ProcessLookupError:
            return
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if _ended(pid):
                return
            time.sleep(0.05)
    raise DeliveryError(f"process {pid} of the former server does not end; stop it by hand")


def _ended(pid: int) -> bool:
    try:
        if os.waitpid(pid, os.WNOHANG)[0]:  # a child of this very process
            return True
    except ChildProcessError:
        pass
    try:
        os.killpg(pid, 0)
    except ProcessLookupError:
        return True
    return False
