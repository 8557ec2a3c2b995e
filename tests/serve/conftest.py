"""The service in this process, for quick tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("starlette")
pytest.importorskip("httpx2")
pytest.importorskip("prometheus_client")

from starlette.testclient import TestClient

from magtiles_seg.serve.app import create_app
from magtiles_seg.serve.settings import Settings

OpenClient = Callable[..., TestClient]


@pytest.fixture(scope="module")
def open_client(model: Path) -> Iterator[OpenClient]:
    """Return a function that starts a service with the small model and gives a client of it.

    It ends with the file's tests: its checks would go on beside those of other files.
    """
    with ExitStack() as stack:

        def start(**settings: Any) -> TestClient:  # noqa: ANN401
            app = create_app(Settings(model=str(model), demo=False, **settings))
            return stack.enter_context(TestClient(app, raise_server_exceptions=False))

        yield start


@pytest.fixture(scope="module")
def client(open_client: OpenClient) -> TestClient:
    return open_client()
