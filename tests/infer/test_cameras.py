from __future__ import annotations

import sys
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from magtiles_seg.errors import BackendUnavailableError, DataError
from magtiles_seg.infer.cameras import BaslerSource, GenicamSource

FEATURES: dict[str, int | float | str] = {"Width": 256, "Height": 64}


@pytest.fixture
def emulator(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pypylon")
    monkeypatch.setenv("PYLON_CAMEMU", "1")


@pytest.mark.usefixtures("emulator")
def test_basler_delivers_copied_frames_numbered_by_line() -> None:
    source = BaslerSource(features={**FEATURES, "TestImageSelector": "Testimage2"}, frames=12)
    assert source.width_px == 256
    blocks = list(source)
    kept = [block.rows.copy() for block in blocks]
    source.close()
    assert [block.start_line for block in blocks] == [64 * index for index in range(12)]
    assert all(block.rows.shape == (64, 256) for block in blocks)
    assert all(block.rows.flags.owndata for block in blocks)
    assert all((one.rows == other).all() for one, other in zip(blocks, kept, strict=True))
    assert (kept[0] != kept[1]).any()  # the test picture moves


@pytest.mark.usefixtures("emulator")
def test_basler_frames_that_failed_are_a_gap() -> None:
    source = BaslerSource(features=FEATURES, frames=6)
    blocks = []
    for block in source:
        blocks.append(block)
        if len(blocks) == 1:
            source._camera.ForceFailedBufferCount.Value = 1
            source._camera.ForceFailedBuffer.Execute()
    source.close()
    lengths = [len(block.rows) for block in blocks]
    failed = lengths.index(0)
    assert lengths[failed : failed + 2] == [0, 0]  # where it began and where it ended
    starts = [block.start_line for block in blocks]
    assert starts.pop(failed + 1) == 64 * (failed + 1)
    assert starts == [64 * index for index in range(6)]


@pytest.mark.usefixtures("emulator")
def test_basler_camera_that_is_not_there_or_not_grey_is_data_error() -> None:
    with pytest.raises(DataError, match="cannot be set up"):
        BaslerSource("no such serial")
    with pytest.raises(DataError, match=r"cannot be set up: .*Wdith"):
        BaslerSource(features={"Wdith": 3})
    with pytest.raises(DataError, match="delivers Mono16; expected Mono8"):
        BaslerSource(features={"PixelFormat": "Mono16"})


class FakeBuffer:
    """One buffer of a driver that overwrites it as soon as it is queued again."""

    def __init__(self, memory: np.ndarray[Any, Any], number: int, delivered: int) -> None:
        self._memory = memory
        memory[: delivered * 8] = number
        complete = delivered == 4
        self.module = SimpleNamespace(frame_id=number, is_complete=lambda: complete)
        part = SimpleNamespace(data=memory, delivered_image_height=delivered)
        self.payload = SimpleNamespace(components=[part])

    def __enter__(self) -> FakeBuffer:
        return self

    def __exit__(self, *_: object) -> None:
        self._memory[:] = 255


@pytest.fixture
def producer(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A stand-in for harvesters; its dict says which (number, delivered lines) come."""
    told: dict[str, Any] = {"frames": [(7, 4), (8, 4), (10, 2), (11, 4)], "format": "Mono8"}
    told["closed"] = []
    memory = np.zeros(32, np.uint8)

    def fetch(timeout: float) -> FakeBuffer:
        assert timeout > 0
        try:
            return FakeBuffer(memory, *next(told["iterator"]))
        except StopIteration:
            raise TimeoutError("no frame came") from None

    def value(name: str) -> SimpleNamespace:
        return SimpleNamespace(value=told[name])

    def create(_: int) -> SimpleNamespace:
        nodes = SimpleNamespace(
            Width=SimpleNamespace(value=8),
            Height=SimpleNamespace(value=4),
            PixelFormat=value("format"),
        )
        told["iterator"] = iter(told["frames"])
        return SimpleNamespace(
            remote_device=SimpleNamespace(node_map=nodes),
            start=lambda: None,
            stop=lambda: told["closed"].append("stop"),
            destroy=lambda: told["closed"].append("destroy"),
            fetch=fetch,
        )

    def add_file(path: str) -> None:
        if not path.endswith(".cti"):
            raise FileNotFoundError(path)

    def harvester() -> SimpleNamespace:
        return SimpleNamespace(
            add_file=add_file,
            update=lambda: None,
            create=create,
            reset=lambda: told["closed"].append("reset"),
        )

    core = ModuleType("harvesters.core")
    core.Harvester = harvester  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "harvesters.core", core)
    return told


def test_genicam_frames_are_copied_and_partial_ones_cut(producer: dict[str, Any]) -> None:
    source = GenicamSource("producer.cti", frames=5)
    blocks = list(source)
    source.close()
    assert [(block.start_line, block.rows.shape) for block in blocks] == [
        (0, (4, 8)),
        (4, (4, 8)),
        (12, (2, 8)),
        (16, (0, 8)),
        (16, (4, 8)),
    ]
    assert [set(block.rows.ravel().tolist()) for block in blocks] == [
        {7},
        {8},
        {10},
        set(),
        {11},
    ]
    assert producer["closed"] == ["stop", "destroy", "reset"]


def test_genicam_camera_that_stops_delivering_is_data_error(producer: dict[str, Any]) -> None:
    producer["frames"] = [(1, 4)]
    lines = iter(GenicamSource("producer.cti"))
    next(lines)
    with pytest.raises(DataError, match="broke off: TimeoutError: no frame came"):
        next(lines)


def test_genicam_that_cannot_be_set_up_is_data_error(producer: dict[str, Any]) -> None:
    with pytest.raises(DataError, match=r"behind producer\.txt cannot be set up"):
        GenicamSource("producer.txt")
    producer["format"] = "BayerRG8"
    with pytest.raises(DataError, match="delivers BayerRG8; expected Mono8"):
        GenicamSource("producer.cti")


@pytest.mark.parametrize(
    ("module", "make"),
    [("pypylon.pylon", BaslerSource), ("harvesters.core", lambda: GenicamSource("a.cti"))],
)
def test_camera_without_its_package_names_the_install_command(
    module: str, make: Callable[[], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(BackendUnavailableError, match=r"pip install 'magtiles-seg\[camera\]'"):
        make()
