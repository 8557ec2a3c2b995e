"""The target `local`: the server as a process of this machine, one a stage, with a way back.

A folder per stage holds the models that were released and a note of what runs.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from magtiles_seg.delivery.deploy import Undone
from magtiles_seg.errors import BackendUnavailableError, DeliveryError
from magtiles_seg.files import Lock, staged, write_json
from magtiles_seg.infer.backends.base import file_sha256

PORTS = {"dev": 8001, "prod": 8002}
_STOP_S = 20.0
_START_S = 60.0
_SERVE = "import sys; from magtiles_seg.cli import main; sys.exit(main())"


@dataclass(frozen=True)
class Running:
    """A server process.

    Attributes:
        pid: Of the process.
        model: The file that it serves, named in its command line: by this it is known from another
            process that gets the same number later. The clock, which may be set, does not tell.
        version: Of the model; empty if unknown.
        port: It listens on; 0 if unknown.
    """

    pid: int
    model: str
    version: str
    port: int = 0

    def __post_init__(self) -> None:
        """Check what was read from a note.

        Raises:
            TypeError: Something of another type stands there.
        """
        if not isinstance(self.pid, int) or self.pid < 1:
            raise TypeError(f"pid is {self.pid!r}")
        if not isinstance(self.model, str) or not isinstance(self.port, int):
            raise TypeError(f"model is {self.model!r}, port {self.port!r}")


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
        self._settings: Mapping[str, str] = {}
        self._begun = False

    @property
    def url(self) -> str:
        """Where the endpoint is."""
        return f"http://127.0.0.1:{self._port}"

    def describe(self) -> str:
        """Return what would happen.

        Raises:
            DeliveryError: There is no model file to release.
        """
        if not self._model.is_file():
            raise DeliveryError(
                f"{self._model} cannot be released: no model file there; "
                "`magtiles-seg export` writes one"
            )
        former = self._running()
        back = f"serve {former.model} again" if former else "stop it: nothing ran before"
        lines = (
            f"release    serve {self._model} at {self.url}, its state in {self._folder}",
            f"smoke test {self.url}",
            f"if that fails:\nroll back  {back}",
        )
        return "\n".join(lines)

    def alone(self) -> Lock:
        """Keep other releases off this stage, from before `release` until it has been tested.

        Raises:
            ConfigError: Another one is under way.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        taken = f"another release to {self._folder} is under way: wait for its end"
        return Lock(self._folder / ".lock", taken=taken)

    def release(self) -> None:
        """Keep a copy of the model, stop what runs, and start the server with the copy.

        Raises:
            DeliveryError: The model cannot be copied, the port is taken, or the server ended at
                once, as with a damaged model; the message has its last words.
        """
        self._former, self._begun = self._running(), False
        self._settings = _environment_of(self._former)
        kept = self._keep()
        if self._former is not None and self._former.port not in (0, self._port):
            self._check_free()  # the former one listens elsewhere, and runs on
        self._begun = True
        self._start(str(kept), self._version, _environment(self._version))

    def rollback(self) -> Undone:
        """Serve the former model again, as before; where there was none, the new one is stopped.

        Raises:
            DeliveryError: It ended at once.
        """
        if not self._begun:
            return Undone.UNTOUCHED
        if self._former is None:
            self.stop()
            return Undone.EMPTY
        self._port = self._former.port or self._port
        version = self._former.version
        self._start(self._former.model, version, self._settings or _environment(version))
        return Undone.RESTORED

    def stop(self) -> None:
        """Stop what this stage started, if it still runs.

        Raises:
            DeliveryError: It runs on.
        """
        running = self._running()
        if running is not None:
            _stop(running)
        self._note.unlink(missing_ok=True)

    @property
    def _note(self) -> Path:
        return self._folder / "running.json"

    def _keep(self) -> Path:
        """Return a whole copy of the model, which stays when the file changes."""
        try:
            name = f"{file_sha256(self._model)[:16]}{self._model.suffix}"
            kept = self._folder / "models" / name
            with staged(kept) as part:
                shutil.copy(self._model, part)
        except OSError as error:
            raise DeliveryError(f"{self._model} cannot be copied: {error}") from error
        return kept

    def _running(self) -> Running | None:
        """Return what this stage started and noted, whether or not it still lives."""
        try:
            content = json.loads(self._note.read_text(encoding="utf-8"))
            return Running(**{key: content[key] for key in content if key != "started_s"})  # of 0.1
        except FileNotFoundError:
            return None
        except (ValueError, TypeError) as error:
            raise DeliveryError(
                f"{self._note} is no note of a running server: {error}; see what listens at "
                f"{self.url}, stop it by hand and remove the file"
            ) from error

    def _check_free(self) -> None:
        if _listens(self._port):
            raise DeliveryError(
                f"port {self._port} is taken by a process that this stage did not start; stop it, "
                "or choose another port by DEPLOY_PORT"
            )

    def _start(self, model: str, version: str, environ: Mapping[str, str]) -> None:
        _psutil()  # without it nothing that is started could be ended
        self.stop()
        self._check_free()
        serve = ["serve", "--host", "127.0.0.1", "--port", str(self._port), "--model", model]
        path = self._folder / "server.log"
        with path.open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-u", "-c", _SERVE, *serve],  # -u: its last words stand last
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environ,
                start_new_session=True,
            )
        try:
            running = Running(process.pid, model, version, self._port)
            write_json(self._note, asdict(running))
        except BaseException:  # a server without a note would be nobody's
            process.kill()
            process.wait()
            raise
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


def _environment_of(running: Running | None) -> Mapping[str, str]:
    """Return the environment that a server runs with, its keys and thresholds; empty if unknown."""
    family = _family(running) if running else []
    with suppress(_psutil().Error):
        return dict(family[0].environ()) if family else {}
    return {}


def _stop(running: Running) -> None:
    """End a server and its workers, gently first; a stranger with its number is left alone.

    Raises:
        DeliveryError: It runs on.
    """
    psutil = _psutil()
    family = _family(running)
    for end in ("terminate", "kill"):
        for process in family:
            with suppress(psutil.NoSuchProcess):
                getattr(process, end)()
        _, family = psutil.wait_procs(family, timeout=_STOP_S)
        if not family:
            return
    raise DeliveryError(f"process {running.pid} of the former server does not end; stop it by hand")


def _family(running: Running) -> list[Any]:
    """Return the very process that was noted, and its workers; nothing where it ended."""
    psutil = _psutil()
    try:
        leader = psutil.Process(running.pid)
        if running.model not in leader.cmdline():  # a zombie has no words
            return []
        return [leader, *leader.children(recursive=True)]
    except (psutil.NoSuchProcess, psutil.AccessDenied):  # the latter is another user's
        return []


def _psutil() -> ModuleType:
    try:
        import psutil
    except ImportError as error:
        raise BackendUnavailableError(
            "the target local needs psutil: pip install 'magtiles-seg[serve]'"
        ) from error
    module: ModuleType = psutil
    return module
