"""Line cameras: Basler through pypylon, any GenTL producer through harvesters.

Both deliver frames of a fixed number of lines. A frame's number gives its lines their place on the
web, so that a frame which failed, or was lost on the way, is a gap and not a shift. Frames are
copied before their buffer goes back to the driver, which overwrites it.

Where a camera has no frame number, a counter that it sends as chunk data takes its place; where
there is none either, frames follow on by their order of arrival, and the report counts these lines
as `unnumbered_lines`, since a loss before them would go unnoticed.
"""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from magtiles_seg.decision import count
from magtiles_seg.errors import ConfigError, DataError
from magtiles_seg.infer.backends.vendor import first_line, import_vendor
from magtiles_seg.linescan.frames import (
    INVALID,
    Frame,
    FrameCounter,
    Places,
    blocks_of,
    check_height,
    check_width,
    lines_of,
)
from magtiles_seg.linescan.pixels import Levels
from magtiles_seg.linescan.settings import Nodes, Value, apply, is_triggered
from magtiles_seg.linescan.sources import LineBlock

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["BaslerSource", "GenicamSource"]

_INSTALL = "pip install 'magtiles-seg[camera]'"
_POLL_S = 0.5
_FREE_RUNNING_S = 5.0
_PERSISTENCE = "{05D8C294-F295-4dfb-9D01-096BD04049F4}"  # how GenApi's feature streams begin
_CHUNKS = ("ChunkFrameID", "ChunkFramecounter", "ChunkLineTriggerCounter")
_RANGES = {  # of BlockID, by pylon's device class; GigE with extended ids shows by its numbers
    "BaslerGigE": (1, 2**16 - 1),
    "BaslerUsb": (0, 2**64 - 2),
    "BaslerCamEmu": (0, 2**64 - 2),
}


def _silence_s(timeout_s: float | None, nodes: Nodes) -> float:
    """Return how long a camera may be silent.

    Raises:
        ConfigError: The limit is not above 0.
    """
    if timeout_s is None:
        return math.inf if is_triggered(nodes) else _FREE_RUNNING_S
    if not timeout_s > 0:
        raise ConfigError(f"timeout_s is {timeout_s!r}; expected seconds above 0, or inf")
    return timeout_s


class _PylonNodes:
    """pypylon's node map."""

    def __init__(self, pylon: Any, nodes: Any) -> None:  # noqa: ANN401 - pypylon has no types
        self._pylon, self._nodes = pylon, nodes

    def has(self, name: str) -> bool:
        node = self._nodes.GetNode(name)
        return node is not None and getattr(node, "IsValid", lambda: True)()

    def get(self, name: str) -> str:
        return str(self._nodes.GetNode(name).ToString())

    def set(self, name: str, value: str) -> None:
        self._nodes.GetNode(name).FromString(value)

    def choices(self, name: str) -> tuple[str, ...]:
        return tuple(self._nodes.GetNode(name).Symbolics)

    def load(self, path: Path) -> bool:
        with path.open(encoding="utf-8") as file:
            if _PERSISTENCE not in file.readline():
                return False
        self._pylon.FeaturePersistence.Load(str(path), self._nodes, True)
        return True


class _GenapiNodes:
    """harvesters' node map."""

    def __init__(self, nodes: Any) -> None:  # noqa: ANN401 - harvesters has no types
        self._nodes = nodes

    def has(self, name: str) -> bool:
        return bool(self._nodes.has_node(name))

    def get(self, name: str) -> str:
        return str(self._nodes.get_node(name).to_string())

    def set(self, name: str, value: str) -> None:
        self._nodes.get_node(name).from_string(value)

    def choices(self, name: str) -> tuple[str, ...]:
        return tuple(self._nodes.get_node(name).symbolics)

    def load(self, path: Path) -> bool:  # noqa: ARG002 - genicam has no loader
        return False


class _CameraSource(ABC):
    """What both kinds of camera share: how they are set up, and how frames become blocks."""

    _pixel_format = "Mono8"

    def __init__(self, frames: int | None) -> None:
        self._frames = None if frames is None else count("frames", frames)

    @property
    def width_px(self) -> int:
        """Pixels per line."""
        return self._width_px

    @cached_property
    def _levels(self) -> Levels:
        return Levels(self._pixel_format, self._width_px)

    @contextmanager
    def _setting_up(self, name: str) -> Iterator[None]:
        """Close a camera that cannot be set up.

        Raises:
            DataError: The camera, or its driver, refuses.
        """
        try:
            yield
        except (ConfigError, FileNotFoundError):
            self.close()
            raise
        except Exception as error:
            self.close()
            raise DataError(f"{name} cannot be set up: {first_line(error)}") from error

    def _set_up(
        self,
        nodes: Nodes,
        settings: str | Path | None,
        features: Mapping[str, Value] | None,
        timeout_s: float | None,
    ) -> None:
        apply(nodes, None if settings is None else Path(settings), features or {})
        self._silence_s = _silence_s(timeout_s, nodes)
        self._width_px, self._rows = int(nodes.get("Width")), int(nodes.get("Height"))
        self._pixel_format = nodes.get("PixelFormat")
        _ = self._levels  # an error of the format is one of setting up

    def _blocks(self, places: Places) -> Iterator[LineBlock]:
        return blocks_of(
            self._fetch,
            places,
            rows=self._rows,
            width_px=self._width_px,
            frames=self._frames,
            silence_s=self._silence_s,
        )

    @abstractmethod
    def _fetch(self) -> Frame | None:
        """Return the next frame, or None if none comes soon."""

    @abstractmethod
    def close(self) -> None:
        """Stop and free the camera."""


class BaslerSource(_CameraSource):
    """A Basler camera. `PYLON_CAMEMU=1` in the environment gives an emulated one.

    Example:
        >>> camera = BaslerSource(features={"width": 2048, "height": 256, "trigger": "Line1"})
    """

    def __init__(
        self,
        serial: str | None = None,
        *,
        settings: str | Path | None = None,
        features: Mapping[str, Value] | None = None,
        frames: int | None = None,
        timeout_s: float | None = None,
    ) -> None:
        """Open a camera.

        Args:
            serial: Its serial number; None: the first camera found.
            settings: A settings file, such as the `.pfs` of Pylon's Viewer; see `settings`.
            features: Set after it in this order, as in `{"Height": 256, "line-rate": 20000}`.
            frames: End after this many frames; None: never.
            timeout_s: A camera that delivers nothing for so long has broken off; `math.inf`: it may
                be silent for ever. None: for ever if it is triggered, since a web may stand still,
                and 5 s if it runs free. One that is unplugged is noticed at once.

        Raises:
            BackendUnavailableError: pypylon is not installed.
            FileNotFoundError: There is no such settings file.
            ConfigError: `timeout_s` is not above 0.
            DataError: There is no such camera, it refuses a feature, or it does not deliver grey.
        """
        self._pylon: Any = import_vendor("pypylon.pylon", _INSTALL)
        super().__init__(frames)
        self._camera: Any = None
        with self._setting_up("the Basler camera"):
            self._camera = self._open(serial)
            nodes = _PylonNodes(self._pylon, self._camera.GetNodeMap())
            self._set_up(nodes, settings, features, timeout_s)

    def _open(self, serial: str | None) -> Any:  # noqa: ANN401 - pypylon has no types
        factory = self._pylon.TlFactory.GetInstance()
        if serial is None:
            device = factory.CreateFirstDevice()
        else:
            info = self._pylon.DeviceInfo()
            info.SetSerialNumber(serial)
            device = factory.CreateDevice(info)
        camera = self._pylon.InstantCamera(device)
        camera.Open()
        return camera

    def __iter__(self) -> Iterator[LineBlock]:
        """Yield frames as they come; one that failed has no rows, and so becomes a gap.

        Raises:
            DataError: The camera broke off, or was silent for longer than `timeout_s`.
        """
        kind = str(self._camera.GetDeviceInfo().GetDeviceClass())
        low, high = _RANGES.get(kind, (0, 2**16 - 1))
        places = Places(self._rows, low=low, counter=FrameCounter(low=low, high=high))
        try:
            self._camera.StartGrabbing(self._pylon.GrabStrategy_OneByOne)
            yield from self._blocks(places)
        except (self._pylon.GenericException, RuntimeError) as error:
            raise DataError(f"the Basler camera broke off: {first_line(error)}") from error

    def _fetch(self) -> Frame | None:
        """Return the next frame, or None if none comes soon.

        Raises:
            DataError: The camera has been unplugged.
        """
        pylon, camera = self._pylon, self._camera
        got = camera.RetrieveResult(int(1000 * _POLL_S), pylon.TimeoutHandling_Return)
        if not got.IsValid():
            if camera.IsCameraDeviceRemoved():
                raise DataError("the Basler camera broke off: it has been unplugged")
            return None
        with got:
            arrived_s = time.perf_counter()
            good = got.GrabSucceeded()
            return Frame(
                self._copy(got) if good else np.empty((0, self._width_px), np.uint8),
                int(got.BlockID),
                arrived_s,
                int(got.TimeStamp) or None,
                int(got.GetNumberOfSkippedImages()),
                self._chunk(got) if good and got.IsChunkDataAvailable() else None,
            )

    def _chunk(self, got: Any) -> tuple[str, int] | None:  # noqa: ANN401 - pypylon has no types
        nodes = _PylonNodes(self._pylon, got.ChunkDataNodeMap)
        return _chunk_counter(nodes)

    def _copy(self, got: Any) -> NDArray[np.uint8]:  # noqa: ANN401 - pypylon has no types
        """Return the lines of a frame.

        Raises:
            DataError: It is not one of the kind that the camera was set up for.
        """
        expected = self._levels.pixel_format
        if got.PixelType != getattr(self._pylon, f"PixelType_{expected.replace('Pack', 'pack')}"):
            raise DataError(
                f"the camera delivered pixel type {got.PixelType}; expected {expected}: leave its "
                "format alone while it runs"
            )
        check_width(got.Width, self._width_px)
        check_height(got.Height, self._rows)
        data = np.frombuffer(got.GetImageBuffer(), np.uint8)
        if got.IsChunkDataAvailable():  # chunks stand behind the picture
            data = data[: got.ImageSize]
        lines = lines_of(
            data,
            line_bytes=self._levels.line_bytes,
            height=got.Height,
            padding=got.PaddingX,
            below=got.PaddingY,
        )
        return self._levels.read(lines)

    def close(self) -> None:
        """Stop and free the camera."""
        if self._camera is None:
            return
        with suppress(Exception):  # one that is gone cannot be stopped
            if self._camera.IsGrabbing():
                self._camera.StopGrabbing()
            self._camera.Close()


class GenicamSource(_CameraSource):
    """Any camera with a GenTL producer (a `.cti` file), through harvesters."""

    _incomplete = False

    def __init__(
        self,
        producer: str,
        *,
        device: int = 0,
        settings: str | Path | None = None,
        features: Mapping[str, Value] | None = None,
        frames: int | None = None,
        timeout_s: float | None = None,
    ) -> None:
        """Open a camera.

        Args:
            producer: Path of the `.cti` file that the camera's vendor installs.
            device: Which of the cameras that it finds, from 0.
            settings: A settings file; see `settings`.
            features: Set after it in this order, as in `{"Height": 256, "line-rate": 20000}`.
            frames: End after this many frames; None: never.
            timeout_s: As for `BaslerSource`; a triggered camera that is unplugged is noticed only
                if its producer tells.

        Raises:
            BackendUnavailableError: harvesters is not installed.
            FileNotFoundError: There is no such settings file.
            ConfigError: `timeout_s` is not above 0.
            DataError: There is no such producer or camera, or it does not deliver grey.
        """
        super().__init__(frames)
        self._acquirer: Any = None
        core = import_vendor("harvesters.core", _INSTALL)
        self._harvester: Any = core.Harvester()
        with self._setting_up(f"the camera behind {producer}"):
            self._acquirer = self._open(producer, device)
            _told(lambda: self._watch(core))
            self._nodes = _GenapiNodes(self._acquirer.remote_device.node_map)
            self._set_up(self._nodes, settings, features, timeout_s)
            if self._pixel_format == "Mono10Packed":  # takes 10 bits a pixel where there are 12
                raise DataError(
                    "harvesters cannot read Mono10Packed: set PixelFormat to Mono10p, Mono10 or "
                    "Mono8, as with --pixel-format Mono10p"
                )

    @cached_property
    def _unpacked(self) -> Levels:
        return self._levels.unpacked()

    def _open(self, producer: str, device: int) -> Any:  # noqa: ANN401 - harvesters has no types
        """Return the acquirer of a camera.

        Raises:
            DataError: There is no such producer, or it finds no such camera.
            OSError: The file cannot be loaded.
        """
        if not Path(producer).is_file():
            raise DataError(
                "there is no such file; expected the GenTL producer (.cti) that the camera's "
                "vendor installs, often in a folder that GENICAM_GENTL64_PATH names"
            )
        self._harvester.add_file(producer, check_validity=True)
        self._harvester.update()
        found = len(self._harvester.device_info_list)
        if device >= found:
            raise DataError(
                f"it finds {found} cameras and number {device} (from 0) is asked for; check cable, "
                "power and network, and that no other program holds the camera"
            )
        return self._harvester.create(device)

    def _watch(self, core: Any) -> None:  # noqa: ANN401 - harvesters has no types
        """Let harvesters tell of frames that came in part: it throws them away."""

        class Incomplete(core.Callback):  # type: ignore[misc]  # the library carries no types
            def emit(_, context: object = None) -> None:  # noqa: ARG002, N805
                self._incomplete = True

        self._acquirer.add_callback(self._acquirer.Events.INCOMPLETE_BUFFER, Incomplete())

    def __iter__(self) -> Iterator[LineBlock]:
        """Yield frames as they come; of a partial one, the lines that were delivered.

        Raises:
            DataError: The camera broke off, or was silent for longer than `timeout_s`.
        """
        kind = str(getattr(self._acquirer.device, "tl_type", ""))
        high = 2**64 - 2 if kind == "U3V" else 2**16 - 1
        counter = FrameCounter(low=0 if kind == "U3V" else 1, high=high)
        places = Places(self._rows, low=1 if kind == "GEV" else 0, counter=counter)
        try:
            self._acquirer.start()
            yield from self._blocks(places)
        except DataError:
            raise
        except Exception as error:  # each producer has errors of its own
            text = f"{type(error).__name__}: {first_line(error)}"
            raise DataError(f"the camera broke off: {text}") from error

    def _fetch(self) -> Frame | None:
        """Return the next frame, or None if none comes soon."""
        buffer = self._acquirer.try_fetch(timeout=_POLL_S)
        if buffer is None:
            partial, self._incomplete = self._incomplete, False
            nothing = np.empty((0, self._width_px), np.uint8)
            return Frame(nothing, INVALID, time.perf_counter()) if partial else None
        with buffer:
            return Frame(
                self._copy(buffer),
                int(_told(lambda: buffer.module.frame_id)),
                time.perf_counter(),
                int(_told(lambda: buffer.timestamp)) or None,
                chunk=_chunk_counter(self._nodes),
            )

    def _copy(self, buffer: Any) -> NDArray[np.uint8]:  # noqa: ANN401 - harvesters has no types
        """Return the lines of a frame that came, below which the buffer may hold older ones.

        Raises:
            DataError: It is no picture of the camera's format and width, or contradicts itself.
        """
        components = buffer.payload.components
        if not components:
            return np.empty((0, self._width_px), np.uint8)
        picture, expected = components[0], self._levels.pixel_format
        kind = getattr(picture, "data_format", expected)
        if kind != expected:
            raise DataError(f"the camera delivered {kind}; expected {expected}: set PixelFormat")
        check_width(int(getattr(picture, "width", self._width_px)), self._width_px)
        height = int(getattr(picture, "height", self._rows))
        check_height(height, self._rows)
        data = np.ascontiguousarray(picture.data)
        levels = self._unpacked if data.dtype == np.uint16 else self._levels
        lines = lines_of(
            data.view(np.uint8).ravel(),
            line_bytes=levels.line_bytes,
            height=height,
            padding=int(getattr(picture, "x_padding", 0)),
            below=int(getattr(picture, "y_padding", 0)),
        )
        delivered = int(getattr(picture, "delivered_image_height", 0))
        if not buffer.module.is_complete() or delivered > 0:
            lines = lines[:delivered]
        return levels.read(lines)

    def close(self) -> None:
        """Stop and free the camera."""
        steps = [self._harvester.reset]
        if self._acquirer is not None:
            steps = [self._acquirer.stop, self._acquirer.destroy, *steps]
        for step in steps:
            with suppress(Exception):  # one that is gone cannot be stopped
                step()


def _chunk_counter(nodes: Nodes) -> tuple[str, int] | None:
    """Return name and value of the first counter that a frame carries as chunk data."""
    for name in _CHUNKS:
        if nodes.has(name):
            value = _told(partial(nodes.get, name), None)
            if value is not None and str(value).isdecimal():
                return name, int(value)
    return None


def _told(ask: Callable[[], Any], otherwise: Any = 0) -> Any:  # noqa: ANN401 - vendors' values
    """Return what a driver tells, or another value where it has none to tell."""
    try:
        return ask()
    except Exception:  # each producer has errors of its own for what it does not support
        return otherwise
