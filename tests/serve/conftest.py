"""The service in this process, for quick tests, and as a process of its own, for true ones."""

from __future__ import annotations

import io
import runpy
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

pytest.importorskip("starlette")
pytest.importorskip("httpx2")
pytest.importorskip("prometheus_client")

from starlette.testclient import TestClient

from magtiles_seg.dataset.synthetic import synthetic_tile
from magtiles_seg.serve.app import create_app
from magtiles_seg.serve.settings import Settings

OpenClient = Callable[..., TestClient]


def encoded(kind: str = "PNG", size_hw: tuple[int, int] = (70, 90), seed: int = 3) -> bytes:
    """Return a synthetic tile as a picture file."""
    file = io.BytesIO()
    tile = synthetic_tile(seed, defect="blowhole", size_hw=size_hw)
    Image.fromarray(tile.image).save(file, kind)
    return file.getvalue()


@pytest.fixture(scope="session")
def png() -> bytes:
    return encoded()


@pytest.fixture(scope="session")
def open_client(model: Path) -> Iterator[OpenClient]:
    """Return a function that starts a service with the small model and gives a client of it."""
    with ExitStack() as stack:

        def start(**settings: Any) -> TestClient:  # noqa: ANN401
            app = create_app(Settings(model=str(model), demo=False, **settings))
            return stack.enter_context(TestClient(app, raise_server_exceptions=False))

        yield start


@pytest.fixture(scope="session")
def client(open_client: OpenClient) -> TestClient:
    return open_client()


@pytest.fixture(scope="session")
def server_class() -> Any:  # noqa: ANN401
    """`load.Server`: `magtiles-seg serve` as a process."""
    return runpy.run_path(str(Path(__file__).with_name("load.py")))["Server"]
