"""A small archive, and a job over it with the small model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

pytest.importorskip("pyarrow")

from magtiles_seg.batch import Job

PICTURES, PART_ROWS, BROKEN_EVERY = 60, 7, 20


@pytest.fixture(scope="session")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 60 pictures in three sizes; every twentieth is broken."""
    folder = tmp_path_factory.mktemp("archive")
    _write_archive(folder, PICTURES)
    return folder


@pytest.fixture
def make_archive(tmp_path: Path) -> Callable[[int], Path]:
    """Make such a folder of any number of pictures."""

    def make(count: int) -> Path:
        folder = tmp_path / "archive"
        folder.mkdir()
        _write_archive(folder, count)
        return folder

    return make


def _write_archive(folder: Path, count: int) -> None:
    rng = np.random.default_rng(0)
    for index in range(count):
        path = folder / f"line-{index % 3}" / f"{index:05d}.jpg"
        path.parent.mkdir(exist_ok=True)
        pixels = rng.integers(0, 256, (40 + index % 3, 64), np.uint8)
        data = cv2.imencode(".jpg", pixels)[1].tobytes()
        path.write_bytes(data[:90] if index % BROKEN_EVERY == 0 else data)


@pytest.fixture
def make_job(archive: Path, model: Path, tmp_path: Path) -> Callable[..., Job]:
    """Make a job over the archive with the small model; arguments override."""

    def make(**changes: object) -> Job:
        usual: dict[str, object] = {
            "source": str(archive),
            "out": tmp_path / "out",
            "segmenter": {"model": model, "threads": 1},
            "part_rows": PART_ROWS,
            "patience_s": 0.0,
        }
        return Job(**{**usual, **changes})  # type: ignore[arg-type]  # the tests' own words

    return make
