from __future__ import annotations

import math
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from magtiles_seg.errors import BackendUnavailableError, ConfigError, DataError
from magtiles_seg.linescan.cameras import BaslerSource, GenicamSource
from magtiles_seg.linescan.pixels import Levels
from magtiles_seg.linescan.settings import read_features

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
    with pytest.raises(DataError, match=r"delivers BayerGR8; expected one of Mono8"):
        BaslerSource(features={"PixelFormat": "BayerGR8"})


@pytest.mark.usefixtures("emulator")
@pytest.mark.parametrize("pixel_format", ["Mono10", "Mono12"])
def test_basler_deep_pixels_come_as_8_bits(pixel_format: str) -> None:
    features = {**FEATURES, "TestImageSelector": "Testimage1", "pixel-format": pixel_format}
    source = BaslerSource(features=features, frames=2)
    blocks = list(source)
    source.close()
    assert [block.rows.shape for block in blocks] == [(64, 256)] * 2
    assert all(250 < int(block.rows.max()) <= 255 for block in blocks)


@pytest.mark.usefixtures("emulator")
def test_basler_is_set_up_by_pylons_file_and_then_by_name(tmp_path: Path) -> None:
    pylon = pytest.importorskip("pypylon.pylon")
    camera = pylon.InstantCamera(pylon.TlFactory.GetInstance().CreateFirstDevice())
    camera.Open()
    camera.Width.Value, camera.Height.Value = 512, 32
    camera.ExposureTimeAbs.Value = 777
    file = tmp_path / "line.pfs"
    pylon.FeaturePersistence.Save(str(file), camera.GetNodeMap())
    camera.Close()
    names = {one.name for one in read_features(file)}
    assert {"Width", "Height", "TriggerMode"} <= names
    source = BaslerSource(settings=file, features={"height": 16})
    assert (source.width_px, source._rows) == (512, 16)
    assert source._camera.ExposureTimeAbs.Value == 777
    source.close()
    plain = tmp_path / "line.txt"
    plain.write_text("# by hand\nWidth=640\nTriggerSelector\tFrameStart\nTriggerMode\tOn\n")
    source = BaslerSource(settings=plain)
    assert (source.width_px, source._silence_s) == (640, math.inf)
    source.close()


@pytest.mark.usefixtures("emulator")
def test_basler_triggered_camera_waits_and_delivers_when_it_is_triggered() -> None:
    source = BaslerSource(features={**FEATURES, "trigger": "Software"}, frames=1)
    assert source._camera.TriggerMode.Value == "On"
    blocks = iter(source)
    assert len(next(blocks).rows) == 0
    source._camera.ExecuteSoftwareTrigger()
    (lines,) = [len(block.rows) for block in blocks if len(block.rows)]
    source.close()
    assert lines == 64


@pytest.mark.usefixtures("emulator")
def test_basler_feature_that_it_has_not_is_named() -> None:
    with pytest.raises(DataError, match="no feature AcquisitionLineRate or AcquisitionLineRateAbs"):
        BaslerSource(features={"line-rate": 20_000})
    with pytest.raises(ConfigError, match="timeout_s is 0"):
        BaslerSource(timeout_s=0)
    with pytest.raises(FileNotFoundError):
        BaslerSource(settings="nowhere.pfs")


class FakeBuffer:
    """One buffer of a driver that overwrites it as soon as it is queued again."""

    def __init__(self, memory: np.ndarray[Any, Any], number: int, delivered: int) -> None:
        self._memory = memory
        memory[: delivered * 8] = number % 256
        complete = delivered == 4
        self.module = SimpleNamespace(frame_id=number, is_complete=lambda: complete)
        part = SimpleNamespace(data=memory, delivered_image_height=delivered)
        self.payload = SimpleNamespace(components=[part])

    def __enter__(self) -> FakeBuffer:
        return self

    def __exit__(self, *_: object) -> None:
        self._memory[:] = 255


@pytest.fixture
def producer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    """A stand-in for harvesters; its dict says which (number, delivered lines) come."""
    told: dict[str, Any] = {"frames": [(7, 4), (8, 4), (10, 2), (11, 4)], "format": "Mono8"}
    told["closed"] = []
    (tmp_path / "producer.cti").touch()
    monkeypatch.chdir(tmp_path)
    memory = np.zeros(32, np.uint8)

    def fetch(timeout: float) -> FakeBuffer | None:
        assert timeout > 0
        try:
            return FakeBuffer(memory, *next(told["iterator"]))
        except StopIteration:
            if "error" in told:
                raise told["error"] from None
            return None

    def create(_: int) -> SimpleNamespace:
        values = {"Width": "8", "Height": "4", "PixelFormat": told["format"]}
        nodes = SimpleNamespace(
            has_node=values.__contains__,
            get_node=lambda name: SimpleNamespace(to_string=lambda: values[name]),
        )
        told["iterator"] = iter(told["frames"])
        return SimpleNamespace(
            remote_device=SimpleNamespace(node_map=nodes),
            start=lambda: None,
            stop=lambda: told["closed"].append("stop"),
            destroy=lambda: told["closed"].append("destroy"),
            try_fetch=fetch,
            device=SimpleNamespace(tl_type="GEV"),
        )

    def add_file(path: str, check_validity: bool) -> None:
        assert check_validity
        if not path.endswith(".cti"):
            raise OSError("invalid ELF header")

    def harvester() -> SimpleNamespace:
        return SimpleNamespace(
            add_file=add_file,
            update=lambda: None,
            device_info_list=[0],
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
    lines = iter(GenicamSource("producer.cti", timeout_s=1e-9))
    next(lines)
    with pytest.raises(DataError, match="no frame came for"):
        next(lines)
    producer["error"] = OSError("stream lost")
    lines = iter(GenicamSource("producer.cti"))
    next(lines)
    with pytest.raises(DataError, match="broke off: OSError: stream lost"):
        next(lines)


def test_genicam_camera_that_is_gone_and_cannot_be_stopped_is_freed(
    producer: dict[str, Any],
) -> None:
    def lost() -> None:
        raise OSError("device lost")

    source = GenicamSource("producer.cti")
    source._acquirer.stop = lost
    source.close()
    assert producer["closed"] == ["destroy", "reset"]


def test_genicam_counter_of_16_bits_wraps(producer: dict[str, Any]) -> None:
    producer["frames"] = [(65_534, 4), (65_535, 4), (1, 4), (3, 4)]
    blocks = list(GenicamSource("producer.cti", frames=5))
    assert [block.start_line for block in blocks] == [0, 4, 8, 16]


def test_genicam_that_cannot_be_set_up_is_data_error(producer: dict[str, Any]) -> None:
    with pytest.raises(DataError, match=r"behind /missing\.cti cannot be set up: there is no such"):
        GenicamSource("/missing.cti")
    Path("producer.txt").touch()
    with pytest.raises(DataError, match=r"behind producer\.txt cannot be set up: invalid ELF"):
        GenicamSource("producer.txt")
    with pytest.raises(DataError, match=r"finds 1 cameras and number 3 \(from 0\) is asked for"):
        GenicamSource("producer.cti", device=3)
    producer["format"] = "Mono10Packed"  # harvesters takes too few bytes for it
    with pytest.raises(DataError, match="cannot read Mono10Packed: set PixelFormat to Mono10p"):
        GenicamSource("producer.cti")
    producer["format"] = "BayerRG8"
    with pytest.raises(DataError, match="delivers BayerRG8; expected one of Mono8"):
        GenicamSource("producer.cti")


@pytest.fixture
def viky() -> str:
    """The GenTL producer with virtual cameras that the package genicam brings."""
    pytest.importorskip("harvesters")
    genicam = pytest.importorskip("genicam")
    file = Path(str(genicam.__file__)).with_name("viky.cti")
    if not file.exists():
        pytest.skip("this genicam has no virtual camera")
    return str(file)


def test_genicam_real_producer_delivers_numbered_frames(viky: str, tmp_path: Path) -> None:
    file = tmp_path / "camera.txt"
    file.write_text("PixelFormat\tMono8\n")
    source = GenicamSource(viky, settings=file, frames=3)
    blocks = [block for block in source if len(block.rows)]
    source.close()
    assert source.width_px == 400
    assert [block.start_line for block in blocks] == [0, 400, 800]
    assert all(block.rows.shape == (400, 400) for block in blocks)
    assert all(block.numbered for block in blocks)


def test_genicam_frames_that_harvesters_throws_away_are_a_gap_at_once(
    viky: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    gentl = pytest.importorskip("genicam.gentl")
    source = GenicamSource(viky, features={"pixel-format": "Mono8"}, frames=5)
    came: dict[int, int] = {}

    def is_complete(buffer: Any) -> bool:  # noqa: ANN401
        return came.setdefault(buffer.frame_id, len(came)) in (0, 2)  # else packets were lost

    monkeypatch.setattr(gentl.Buffer, "is_complete", is_complete)
    with closing(source):
        blocks = [(block.start_line, len(block.rows)) for block in source]
    assert [block for block in blocks if block[1]] == [(0, 400), (800, 400)]
    assert blocks[-1] == (2000, 0)  # nothing whole follows, and yet it is known


def test_genicam_real_producer_without_such_a_camera_is_data_error(viky: str) -> None:
    with pytest.raises(DataError, match=r"finds 3 cameras and number 7"):
        GenicamSource(viky, device=7)
    with pytest.raises(DataError, match="it has no feature Exposure"):
        GenicamSource(viky, features={"exposure-us": 20})
    with pytest.raises(DataError, match="delivers RGBa8; expected one of Mono8"):
        GenicamSource(viky)


def test_genicam_file_that_is_no_producer_tells_the_loaders_reason(tmp_path: Path) -> None:
    pytest.importorskip("harvesters")
    file = tmp_path / "fake.cti"
    file.write_text("no library")
    with pytest.raises(DataError, match=r"fake\.cti cannot be set up: .*fake\.cti"):
        GenicamSource(str(file))


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


@pytest.mark.parametrize("pixel_format", ["Mono10p", "Mono12p", "Mono12Packed"])
def test_genicam_packed_pixels_are_read_as_harvesters_gives_them(pixel_format: str) -> None:
    harvesters = pytest.importorskip("harvesters.core")
    numbers = pytest.importorskip("harvesters.util.pfnc").dict_by_names
    levels = Levels(pixel_format, 16)
    data = np.random.default_rng(0).integers(0, 256, (3, levels.line_bytes), dtype=np.uint8)
    module = SimpleNamespace(
        raw_buffer=data.tobytes(),
        width=16,
        height=3,
        padding_x=0,
        padding_y=0,
        pixel_format=numbers[pixel_format],
        delivered_image_height=3,
        is_complete=lambda: True,
    )
    picture = harvesters.Component2DImage(buffer=module, node_map=object())
    source = object.__new__(GenicamSource)
    source._rows, source._width_px, source._pixel_format = 3, 16, pixel_format
    payload = SimpleNamespace(components=[picture])
    rows = source._copy(SimpleNamespace(payload=payload, module=module))
    assert (rows == levels.read(data)).all()


def genicam_frame(truth: np.ndarray[Any, Any], data: np.ndarray[Any, Any], **more: Any) -> Any:  # noqa: ANN401
    height, width = truth.shape
    facts = {
        "width": width,
        "height": height,
        "x_padding": 0,
        "y_padding": 0,
        "delivered_image_height": height,
        "data": data,
        "data_format": "Mono8",
        **more,
    }
    complete = facts.pop("complete", True)
    module = SimpleNamespace(frame_id=0, is_complete=lambda: complete)
    payload = SimpleNamespace(components=[SimpleNamespace(**facts)])
    return SimpleNamespace(payload=payload, module=module)


def genicam_copy(truth: np.ndarray[Any, Any], data: np.ndarray[Any, Any], **more: Any) -> Any:  # noqa: ANN401
    source = object.__new__(GenicamSource)
    source._rows, source._width_px = truth.shape
    source._levels = Levels("Mono8", truth.shape[1])
    return source._copy(genicam_frame(truth, data, **more))


@given(
    height=st.integers(1, 9),
    width=st.integers(1, 40),
    padding=st.integers(0, 12),
    below=st.integers(0, 40),
    surplus=st.integers(0, 60),
    told=st.booleans(),
    delivered=st.integers(1, 9),
)
def test_genicam_lines_are_right_or_refused(
    height: int, width: int, padding: int, below: int, surplus: int, told: bool, delivered: int
) -> None:
    truth = np.random.default_rng(0).integers(0, 255, (height, width), dtype=np.uint8)
    padded = np.pad(truth, ((0, 0), (0, padding)), constant_values=255).ravel()
    data = np.pad(padded, (0, below + surplus), constant_values=254)
    facts = {"x_padding": padding, "y_padding": below} if told else {}
    delivered = min(delivered, height)
    try:
        rows = genicam_copy(truth, data, delivered_image_height=delivered, **facts)
    except DataError:
        assert surplus or not told
        return
    assert (rows == truth[:delivered]).all()
    assert rows.shape == (delivered, width)


@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        ({"data_format": "Mono12"}, "delivered Mono12"),
        ({"data": np.zeros(24, np.uint16)}, "48 bytes; expected 24"),
        ({"width": 7}, "lines of 7 px"),
        ({"height": 9}, "frame of 9 lines"),
        ({"data": np.zeros(23, np.uint8)}, "23 bytes; expected 24"),
        ({"data": np.zeros(48, np.uint8)}, "48 bytes; expected 24"),
        ({"x_padding": -2}, "expected"),
    ],
)
def test_genicam_frame_that_contradicts_itself_is_refused(
    facts: dict[str, Any], reason: str
) -> None:
    truth = np.zeros((3, 8), np.uint8)
    data = np.zeros(25, np.uint8) if "x_padding" in facts else truth.ravel()
    with pytest.raises(DataError, match=reason):
        genicam_copy(truth, facts.pop("data", data), **facts)


def test_genicam_incomplete_frame_of_unknown_height_has_no_lines() -> None:
    truth = np.ones((3, 8), np.uint8)
    rows = genicam_copy(truth, truth.ravel(), complete=False, delivered_image_height=0)
    assert rows.shape == (0, 8)


def test_basler_padding_behind_each_line_is_cut_off() -> None:
    truth = np.arange(24, dtype=np.uint8).reshape(3, 8)
    source = object.__new__(BaslerSource)
    source._rows, source._width_px = truth.shape
    source._levels = Levels("Mono8", 8)
    source._pylon = SimpleNamespace(PixelType_Mono8=1)
    buffer = np.pad(truth, ((0, 0), (0, 4))).tobytes()
    facts: dict[str, Any] = {"PixelType": 1, "Width": 8, "Height": 3, "PaddingX": 4, "PaddingY": 0}
    facts["IsChunkDataAvailable"] = lambda: False
    got = SimpleNamespace(GetImageBuffer=lambda: buffer, **facts)
    assert (source._copy(got) == truth).all()
    with pytest.raises(DataError, match="36 bytes"):
        source._copy(SimpleNamespace(GetImageBuffer=lambda: buffer, **{**facts, "PaddingX": 0}))
    with pytest.raises(DataError, match="pixel type 2"):
        source._copy(SimpleNamespace(GetImageBuffer=lambda: buffer, **{**facts, "PixelType": 2}))
