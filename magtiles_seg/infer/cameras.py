"""Line cameras: Basler through pypylon, any GenTL producer through harvesters.

Both deliver frames of a fixed number of lines. A frame's number gives its lines their place on the
web, so that a frame which failed, or was lost on the way, is a gap and not a shift. Frames are
copied before their buffer goes back to the driver, which overwrites it.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator
from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np

from magtiles_seg.errors import BackendUnavailableError, DataError
from magtiles_seg.infer.sources import LineBlock, frame

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["BaslerSource", "GenicamSource"]


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
        self._pylon: Any = _needs("pypylon.pylon", "pypylon")
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
        """Pixels a line."""
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
                        rows = np.array(got.Array)
                line = (number - first) * self._rows
                yield from frame(rows, line, lines=self._rows, arrived_s=arrived_s)
        except (pylon.GenericException, RuntimeError) as error:
            raise DataError(f"the Basler camera broke off: {error}") from error

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
        self._harvester: Any = _needs("harvesters.core", "harvesters").Harvester()
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
        """Pixels a line."""
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
        """Return the lines of a frame that came, below which the buffer may hold older ones."""
        picture = buffer.payload.components[0]
        lines = self._rows
        if not buffer.module.is_complete():
            lines = min(lines, int(picture.delivered_image_height))
        rows = np.asarray(picture.data, dtype=np.uint8).reshape(-1, self._width_px)
        return rows[:lines].copy()

    def close(self) -> None:
        """Stop and free the camera."""
        self._acquirer.stop()
        self._acquirer.destroy()
        self._harvester.reset()


def _needs(module: str, package: str) -> Any:  # noqa: ANN401 - a module
    try:
        with warnings.catch_warnings():  # SWIG modules warn while loading; as errors that aborts
            warnings.simplefilter("ignore")
            return import_module(module)
    except ImportError as error:
        raise BackendUnavailableError(
            f"{package} is not installed: pip install 'magtiles-seg[camera]'"
        ) from error
