"""Runs the service under uvicorn: one process, or several that share a port and their metrics."""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import uvicorn
from uvicorn.supervisors import Multiprocess

from magtiles_seg.infer.backends.base import available_cores
from magtiles_seg.infer.manifest import manifest_path
from magtiles_seg.model.bundled import model_path
from magtiles_seg.serve.guard import PROTOCOL
from magtiles_seg.serve.limits import STOP_RESERVE_S
from magtiles_seg.serve.settings import Settings, unknown_variables

_APP = "magtiles_seg.serve.app:create_app"
_KEEP_ALIVE_S = 75  # longer than proxies keep theirs, so that the proxy closes first
_BACKLOG = 2048


def log_config() -> dict[str, Any]:
    """Return uvicorn's own logging, with this package's messages among them."""
    config = deepcopy(uvicorn.config.LOGGING_CONFIG)
    ours = {"handlers": ["default"], "level": "INFO", "propagate": False}
    config["loggers"]["magtiles_seg"] = ours
    config["loggers"]["python_multipart"] = {"level": "ERROR"}  # it warns of every damaged form
    return config


def run(settings: Settings, tell: Callable[[str], None]) -> None:
    """Serve until SIGTERM or Ctrl+C, then answer what was accepted and return.

    Args:
        settings: Handed to the processes through their environment.
        tell: Gets each line of what the service is about to do, without secrets.

    Raises:
        ConfigError, FileNotFoundError, ModelError, BackendUnavailableError: Of several workers, as
            of `create_app`: no process is started that could not serve.
    """
    plan = settings.plan(available_cores())
    settings = replace(settings, workers=plan.workers, threads=plan.threads)
    for name, value in settings.shown().items():
        tell(f"{name:<16}{value}")
    for remark in unknown_variables(os.environ):
        tell(remark)
    tell(
        f"{plan.workers} workers x {plan.streams} inferences at once x {plan.threads} threads, "
        f"batches of at most {plan.max_batch}"
    )
    _allow_many_connections()
    shared = _prepare_workers(settings) if plan.workers > 1 else None
    if shared:
        settings = replace(settings, model=str(_keep_model(settings, shared)))
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = shared
    os.environ.update(settings.to_environment())
    options: dict[str, Any] = {
        "factory": True,
        "host": settings.host,
        "port": settings.port,
        "workers": plan.workers,
        "access_log": False,
        "log_config": log_config(),
        "server_header": False,
        "timeout_keep_alive": _KEEP_ALIVE_S,
        "timeout_graceful_shutdown": _grace_s(settings),
        "backlog": _BACKLOG,
        "http": PROTOCOL,
        "ws": "none",
    }
    try:
        if shared:
            config = uvicorn.Config(_APP, **options)
            _Workers(config, [config.bind_socket()]).run()
        else:
            uvicorn.run(_APP, **options)
    finally:
        if shared:
            shutil.rmtree(shared, ignore_errors=True)


class _Workers(Multiprocess):
    """Worker processes that share a port, which closes when they are told to end.

    This process holds the port as well, and accepts nothing: clients that came while the workers
    give their last answers would wait for nobody, and be reset.
    """

    def terminate_all(self) -> None:
        """Tell all workers to end."""
        super().terminate_all()
        for port in self.sockets:
            port.close()


def _prepare_workers(settings: Settings) -> str:
    """Make the folder that workers share, once it is known that they will start.

    A worker that fails at its start is started again without end, and nobody reads why.
    """
    from magtiles_seg.serve.app import create_app

    create_app(settings)
    return tempfile.mkdtemp(prefix="magtiles-")


def _keep_model(settings: Settings, folder: str) -> Path:
    """Copy the model, with its manifest, to where nobody replaces it, and return the copy.

    A worker that takes a dead one's place would else load what lies there by then, and one port
    answer by two models.
    """
    model = model_path(settings.model)
    for path in (model, manifest_path(model)):
        if path.exists():
            shutil.copyfile(path, Path(folder, path.name))
    return Path(folder, model.name)


def _grace_s(settings: Settings) -> int:
    """Return how long uvicorn waits for open connections once it closes, in whole seconds.

    All requests are answered `STOP_RESERVE_S` before the end; streams and slow readers are cut.
    """
    return max(1, int(settings.stop_s - settings.drain_within_s - STOP_RESERVE_S / 2))


def _allow_many_connections() -> None:
    """Use as many file descriptors as the system lets this process have."""
    with suppress(ImportError, OSError, ValueError):
        import resource

        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


@contextmanager
def local_service(url: str | None = None) -> Iterator[str]:
    """Give the address of a running service, or of one in this process for as long as it is used.

    Args:
        url: Address of a running one; None, or an empty one, starts one on a free port.

    Example:
        >>> with local_service() as url:
        ...     httpx.post(f"{url}/analyze", files={"image": picture})
    """
    if url:
        yield url.rstrip("/")
        return
    from magtiles_seg.serve.app import create_app

    app = create_app(Settings(demo=False))
    server = uvicorn.Server(
        uvicorn.Config(app, port=0, log_level="warning", http=PROTOCOL, ws="none")
    )
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started and thread.is_alive():
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
