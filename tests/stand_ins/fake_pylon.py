"""A stand-in for pypylon: a GigE camera whose counter wraps, and whose frames fail or are lost."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Shot", "fake_pylon"]

Shot = dict[str, Any]
"""A frame: `rows` (None: it failed), `number`, and if told `time`, `skipped`, `chunk`."""


class Node:
    """A feature that takes any text."""

    def __init__(self, value: object, symbolics: tuple[str, ...] = ()) -> None:
        self.value, self.Symbolics = str(value), symbolics

    def IsValid(self) -> bool:  # noqa: N802 - pylon's name
        return True

    def ToString(self) -> str:  # noqa: N802
        return self.value

    def FromString(self, value: str) -> None:  # noqa: N802
        self.value = value


class Nodes(dict[str, Node]):
    def GetNode(self, name: str) -> Node | None:  # noqa: N802
        return self.get(name)


class Result:
    """What RetrieveResult returns; None: nothing came."""

    PaddingX = PaddingY = 0
    PixelType = "PixelType_Mono8"

    def __init__(self, shot: Shot | None) -> None:
        came = shot is not None
        self.IsValid = lambda: came
        shot = shot or {"number": 0, "rows": None}
        rows: NDArray[np.uint8] | None = shot["rows"]
        self.BlockID, self.TimeStamp = shot["number"], shot.get("time", 0)
        self.GrabSucceeded = lambda: rows is not None
        self.GetNumberOfSkippedImages = lambda: shot.get("skipped", 0)
        self.Height, self.Width = (0, 0) if rows is None else rows.shape
        self.ImageSize = self.Height * self.Width
        chunk: dict[str, int] = shot.get("chunk", {})
        self.IsChunkDataAvailable = lambda: bool(chunk)
        self.ChunkDataNodeMap = Nodes({name: Node(value) for name, value in chunk.items()})
        data = b"" if rows is None else rows.tobytes()
        self.GetImageBuffer = lambda: data + bytes(8 * len(chunk))

    def __enter__(self) -> Result:
        return self

    def __exit__(self, *_: object) -> None: ...


def fake_pylon(
    shots: Callable[[], Iterator[Shot | None]],
    *,
    width: int,
    height: int = 1,
    device: str = "BaslerGigE",
    removed: bool = False,
    **features: object,
) -> ModuleType:
    """Return a module in pypylon's place whose one camera delivers these frames."""
    values = {"Width": width, "Height": height, "PixelFormat": "Mono8", **features}
    nodes = Nodes({name: Node(value) for name, value in values.items()})
    taken = shots()
    camera = SimpleNamespace(
        Open=lambda: None,
        Close=lambda: None,
        IsGrabbing=lambda: False,
        StartGrabbing=lambda _: None,
        GetNodeMap=lambda: nodes,
        GetDeviceInfo=lambda: SimpleNamespace(GetDeviceClass=lambda: device),
        IsCameraDeviceRemoved=lambda: removed,
        RetrieveResult=lambda _timeout_ms, _handling: Result(next(taken, None)),
    )
    module: Any = ModuleType("pypylon.pylon")
    factory = SimpleNamespace(CreateFirstDevice=lambda: None)
    module.TlFactory = SimpleNamespace(GetInstance=lambda: factory)
    module.InstantCamera = lambda _: camera
    module.GenericException = type("GenericException", (Exception,), {})
    module.GrabStrategy_OneByOne = module.TimeoutHandling_Return = 0
    module.PixelType_Mono8 = "PixelType_Mono8"
    return module  # type: ignore[no-any-return]
