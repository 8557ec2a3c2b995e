"""The stand-in of TensorRT and CUDA in place of the libraries, and an engine for it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fake_cuda import FakeCuda
from fake_tensorrt import make_tensorrt
from made_engines import TEN, write_engine


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    fake = FakeCuda()
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", fake)
    return fake


@pytest.fixture
def install(cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    def make(version: str) -> Any:  # noqa: ANN401
        library = make_tensorrt(version, cuda)
        monkeypatch.setitem(sys.modules, library.__name__, library)
        return library

    return make


@pytest.fixture
def engine(install: Callable[[str], Any], model: Path, tmp_path: Path) -> Path:
    install(TEN)
    return write_engine(tmp_path, model)
