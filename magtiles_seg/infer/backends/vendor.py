"""TensorRT and TensorRT-RTX as one library: two packages of one interface, imported when used."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from magtiles_seg.errors import BackendUnavailableError, ConfigError

_MODULES = {"tensorrt": "tensorrt", "rtx": "tensorrt_rtx"}
_OLDEST = (10, 12)  # Before it, a strongly typed network is a lesser way of building.

FLAVOURS = tuple(_MODULES)
"""`"tensorrt"`: for data centres and Jetson, builds on the device. `"rtx"`: for workstation cards,
builds anywhere and finishes on the device."""


def import_tensorrt(flavour: str) -> Any:  # noqa: ANN401  (a module without type information)
    """Return the module of a flavour.

    Raises:
        ConfigError: There is no such flavour.
        BackendUnavailableError: It is not installed, cannot be loaded, or is too old.
    """
    if flavour not in _MODULES:
        raise ConfigError(f"unknown flavour {flavour!r}: expected one of {', '.join(FLAVOURS)}")
    name = _MODULES[flavour]
    fix = f"pip install 'magtiles-seg[{flavour}]'"
    try:
        library = import_module(name)
    except (ImportError, OSError) as error:
        raise BackendUnavailableError(f"{name} cannot be imported ({error}): {fix}") from error
    version = tuple(int(part) for part in library.__version__.split(".")[:2])
    if flavour == "tensorrt" and version < _OLDEST:
        raise BackendUnavailableError(
            f"TensorRT {library.__version__} is too old, expected 10.12 or newer: {fix}"
        )
    return library


def runtime_name(flavour: str) -> str:
    """Return what manifests call the package: `"tensorrt"` or `"tensorrt-rtx"`."""
    return _MODULES[flavour].replace("_", "-")


def make_logger(library: Any) -> Any:  # noqa: ANN401  (a class of the library)
    """Return a logger that prints nothing and keeps the errors, as `errors`, for our messages."""

    class ErrorLog(library.ILogger):  # type: ignore[misc]  # the library carries no types
        def __init__(self) -> None:
            library.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, msg: str) -> None:  # noqa: ANN401
            if severity in (library.ILogger.ERROR, library.ILogger.INTERNAL_ERROR):
                self.errors.append(" ".join(msg.split()))

        def last(self) -> str:
            """Return the newest error, which is the nearest to the cause."""
            return self.errors[-1] if self.errors else "no reason given"

    return ErrorLog()
