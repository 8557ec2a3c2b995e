"""Line cameras: Basler through pypylon, any GenTL producer through harvesters.

Both deliver frames of a fixed number of lines. A frame's number gives its lines their place on the
web, so that a frame which failed, or was lost on the way, is a gap and not a shift. Frames are
copied before their buffer goes back to the driver, which overwrites it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from magtiles_seg.errors import DataError
from magtiles_seg.infer.backends.vendor import import_vendor
from magtiles_seg.linescan.sources import LineBlock, frame

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["BaslerSource", "GenicamSource"]

_INSTALL = "pip install 'magtiles-seg[camera]'"
_FORMAT = "Mono8"
_CONTRADICTION = (
    "; so it is not known where a line begins: turn off chunk data and line padding at the camera, "
    "or choose a width that is a multiple of 8"
)


def lines_of(
    data: NDArray[np.uint8], *, width_px: int, height: int, padding: int, below: int
) -> NDArray[np.uint8]:
    """Return a Mono8 frame's lines, as a view.

    Args:
        data: (n,) uint8, the buffer.
        width_px: Pixels per line.
        height: Lines of the frame.
        padding: Bytes behind each line; of a buffer without them they have been cut off.
        below: Padding behind the last line: in bytes by the standard (GenTL), in lines by some.

    Raises:
        DataError: The buffer does not hold that many bytes: where a line begins is not known.
    """
    if data.size == width_px * height:
        return data.reshape(height, width_px)
    pitch = width_px + padding
    needed = pitch * height
    if min(padding, below) < 0 or data.size not in (needed, needed + below, needed + below * pitch):
        raise DataError(
            f"the frame has {data.size} bytes; expected {needed + below} for {height} lines of "
            f"{width_px} px with {padding} bytes of padding each and {below} below" + _CONTRADICTION
        )
    return data[:needed].reshape(height, pitch)[:, :width_px]


class BaslerSource:
    """A Basler camera. `PYLON_CAMEMU=1` in the environment gives an emulated one.

    Example:
        >>> camera = BaslerSource(features={"Width": 2048, "Height": 256})
    """

    def __init__(
        self,
        serial: str | None = None,
        *,
        features: dict[str, int | float | str] | None = None,
        frames: int | None = None,
        timeout_s: float = 5.0,
    ) -> None:
        """Open a camera.

        Args:
            serial: Its serial number; None: the first camera found.
            features: Set in this order, as in `{"Height": 256, "AcquisitionLineRate": 20000}`.
            frames: End after this many frames; None: never.
            timeout_s: A camera that delivers nothing for so long has broken off.

        Raises:
            BackendUnavailableError: pypylon is not installed.
            DataError: There is no such camera, it refuses a feature, or it does not deliver Mono8.
        """
        self._pylon: Any = import_vendor("pypylon.pylon", _INSTALL)
        self._frames, self._timeout_s = frames, timeout_s
        try:
            self._camera = self._open(serial)
            for name, value in (features or {}).items():
                self._camera.GetNodeMap().GetNode(name).SetValue(value)
            self._width_px, self._rows = self._camera.Width.Value, self._camera.Height.Value
            pixel_format = self._camera.PixelFormat.Value
        except Exception as error:
            raise DataError(f"the Basler camera cannot be set up: {error}") from error
        if pixel_format != "Mono8":
            raise DataError(f"the camera delivers {pixel_format}; expected Mono8: set PixelFormat")

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

    @property
    def width_px(self) -> int:
        """Pixels per line."""
        return int(self._width_px)

    def __iter__(self) -> Iterator[LineBlock]:
        """Yield frames as they come; one that failed has no rows, and so becomes a gap.

        Raises:
            DataError: The camera broke off.
        """
        pylon, camera = self._pylon, self._camera
        first, done = None, 0
        try:
            camera.StartGrabbing(pylon.GrabStrategy_OneByOne)
            while self._frames is None or done < self._frames:
                timeout_ms = int(1000 * self._timeout_s)
                with camera.RetrieveResult(timeout_ms, pylon.TimeoutHandling_ThrowException) as got:
                    arrived_s, number = time.perf_counter(), got.BlockID
                    first = number if first is None else first
                    done = number - first + 1
                    rows = np.empty((0, self.width_px), dtype=np.uint8)
                    if got.GrabSucceeded():
                        rows = self._copy(got)
                line = (number - first) * self._rows
                yield from frame(rows, line, lines=self._rows, arrived_s=arrived_s)
        except (pylon.GenericException, RuntimeError) as error:
            raise DataError(f"the Basler camera broke off: {error}") from error

    def _copy(self, got: Any) -> NDArray[np.uint8]:  # noqa: ANN401 - pypylon has no types
        """Return the lines of a frame.

        Raises:
            DataError: It is not one of the kind that the camera was set up for.
        """
        if got.PixelType != self._pylon.PixelType_Mono8:
            raise DataError(f"the camera delivered pixel type {got.PixelType}; expected {_FORMAT}")
        _check_width(got.Width, self.width_px)
        _check_height(got.Height, self._rows)
        return lines_of(
            np.frombuffer(got.GetImageBuffer(), np.uint8),
            width_px=got.Width,
            height=got.Height,
            padding=got.PaddingX,
            below=got.PaddingY,
        ).copy()

    def close(self) -> None:
        """Stop and free the camera."""
        if self._camera.IsGrabbing():
            self._camera.StopGrabbing()
        self._camera.Close()


class GenicamSource:
    """Any camera with a GenTL producer (a `.cti` file), through harvesters."""

    def __init__(
        self,
        producer: str,
        *,
        device: int = 0,
        frames: int | None = None,
        timeout_s: float = 5.0,
    ) -> None:
        """Open a camera.

        Args:
            producer: Path of the `.cti` file that the camera's vendor installs.
            device: Which of the cameras that it finds.
            frames: End after this many frames; None: never.
            timeout_s: A camera that delivers nothing for so long has broken off.

        Raises:
            BackendUnavailableError: harvesters is not installed.
            DataError: There is no such camera, or it does not deliver Mono8.
        """
        self._frames, self._timeout_s = frames, timeout_s
        self._harvester: Any = import_vendor("harvesters.core", _INSTALL).Harvester()
        try:
            self._harvester.add_file(producer)
            self._harvester.update()
            self._acquirer = self._harvester.create(device)
            nodes = self._acquirer.remote_device.node_map
            self._width_px, self._rows = int(nodes.Width.value), int(nodes.Height.value)
            pixel_format = nodes.PixelFormat.value
        except Exception as error:
            self._harvester.reset()
            raise DataError(f"the camera behind {producer} cannot be set up: {error}") from error
        if pixel_format != "Mono8":
            self.close()
            raise DataError(f"the camera delivers {pixel_format}; expected Mono8: set PixelFormat")

    @property
    def width_px(self) -> int:
        """Pixels per line."""
        return self._width_px

    def __iter__(self) -> Iterator[LineBlock]:
        """Yield frames as they come; of a partial one, the lines that were delivered.

        Raises:
            DataError: The camera broke off.
        """
        first, done = None, 0
        try:
            self._acquirer.start()
            while self._frames is None or done < self._frames:
                with self._acquirer.fetch(timeout=self._timeout_s) as buffer:
                    arrived_s, number = time.perf_counter(), int(buffer.module.frame_id)
                    first = number if first is None else first
                    done = number - first + 1
                    rows = self._copy(buffer)
                line = (number - first) * self._rows
                yield from frame(rows, line, lines=self._rows, arrived_s=arrived_s)
        except Exception as error:  # each producer has errors of its own
            raise DataError(f"the camera broke off: {type(error).__name__}: {error}") from error

    def _copy(self, buffer: Any) -> NDArray[np.uint8]:  # noqa: ANN401 - harvesters has no types
        """Return the lines of a frame that came, below which the buffer may hold older ones.

        Raises:
            DataError: It is no Mono8 picture of the camera's width, or contradicts itself.
        """
        components = buffer.payload.components
        if not components:
            return np.empty((0, self._width_px), np.uint8)
        picture = components[0]
        kind = getattr(picture, "data_format", _FORMAT)
        if kind != _FORMAT:
            raise DataError(f"the camera delivered {kind}; expected {_FORMAT}: set PixelFormat")
        _check_width(int(getattr(picture, "width", self._width_px)), self._width_px)
        height = int(getattr(picture, "height", self._rows))
        _check_height(height, self._rows)
        data = np.asarray(picture.data)
        if data.dtype != np.uint8:
            raise DataError(f"the camera delivered {data.dtype}; expected uint8: set PixelFormat")
        lines = lines_of(
            data.ravel(),
            width_px=self._width_px,
            height=height,
            padding=int(getattr(picture, "x_padding", 0)),
            below=int(getattr(picture, "y_padding", 0)),
        )
        delivered = int(getattr(picture, "delivered_image_height", 0))
        if not buffer.module.is_complete() or delivered > 0:
            lines = lines[:delivered]
        return lines.copy()

    def close(self) -> None:
        """Stop and free the camera."""
        self._acquirer.stop()
        self._acquirer.destroy()
        self._harvester.reset()


def _check_height(got: int, most: int) -> None:
    """Check a frame's lines; fewer are the end of a page, and a gap."""
    if got > most:
        raise DataError(
            f"the camera delivered a frame of {got} lines, and {most} lines when it was opened: "
            "leave its height alone while it runs, or start again"
        )


def _check_width(got_px: int, expected_px: int) -> None:
    if got_px != expected_px:
        raise DataError(
            f"the camera delivered lines of {got_px} px, and {expected_px} px when it was opened: "
            "leave its width alone while it runs, or start again"
        )
