"""What every test may use: a small model, a picture, and the service as a process."""

from __future__ import annotations

import io
import os
import runpy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

# No deadline: on a busy machine any example may take long. In CI one commit has the same examples
# every time: chance finds faults where people develop, and refuses no change for what it left.
settings.register_profile("untimed", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("untimed")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with what takes longest, so that no worker is left alone with it at the end."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(autouse=True)
def _no_backend_of_the_user_s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests run the defaults, whatever the machine's user has selected by `bench --select`."""
    monkeypatch.setenv("MAGTILES_CONFIG", str(tmp_path / "nothing-selected.json"))


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Path of a checkpoint whose answers vary over the picture and cross 0.5."""
    import torch
    from torch import nn

    from magtiles_seg.model.checkpoint import save_checkpoint
    from magtiles_seg.model.network import build_network

    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = build_network("nano")
        nn.init.normal_(network.defect_head.weight, 0, 0.5)
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.weight, 1, 0.2)
                nn.init.normal_(module.bias, 0, 0.2)
    path = tmp_path_factory.mktemp("checkpoint") / "nano.safetensors"
    save_checkpoint(path, network, {"training": {"seed": 0}, "epoch": 3})
    return path


@pytest.fixture(scope="session")
def model(checkpoint: Path) -> Path:
    """Path of that checkpoint as an ONNX file, weights stored as fp16."""
    from magtiles_seg.export.graph import export_onnx

    path = checkpoint.with_name("nano.onnx")
    export_onnx(checkpoint, path)
    return path


@pytest.fixture(scope="session")
def png() -> bytes:
    """A synthetic tile, 70 x 90 px, as a PNG file."""
    from PIL import Image

    from magtiles_seg.dataset.synthetic import synthetic_tile

    file = io.BytesIO()
    Image.fromarray(synthetic_tile(3, defect="blowhole", size_hw=(70, 90)).image).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """The Chromium that is installed; tests that take it are marked by NEEDS_CHROMIUM."""
    from screens import chromium

    pytest.importorskip("playwright")
    with chromium() as opened:
        yield opened


@pytest.fixture(params=["laptop", "phone"])
def screen(request: pytest.FixtureRequest) -> str:
    """Name of each of `screens.SCREENS` in turn."""
    return str(request.param)


@pytest.fixture(scope="session")
def server_class() -> Any:  # noqa: ANN401
    """`load.Server`: `magtiles-seg serve` as a process."""
    return runpy.run_path(str(Path(__file__).parent / "serve" / "load.py"))["Server"]
