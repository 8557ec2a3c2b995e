"""The doors to the vendors' libraries: each imported when used, or an error that names the fix.

TensorRT and TensorRT-RTX are one library here: two packages of one interface.
"""

from __future__ import annotations

import os
import warnings
from importlib import import_module
from typing import Any

from magtiles_seg.errors import BackendUnavailableError, ConfigError

_MODULES = {"tensorrt": "tensorrt", "rtx": "tensorrt_rtx"}
_OLDEST = (10, 12)  # Before it, a strongly typed network is a lesser way of building.

FLAVOURS = tuple(_MODULES)
"""`"tensorrt"`: for data centres and Jetson, builds on the device. `"rtx"`: for workstation cards,
builds anywhere and finishes on the device."""


def import_vendor(module: str, fix: str) -> Any:  # noqa: ANN401  (a module without type information)
    """Return a vendor's module.

    Args:
        module: Its name.
        fix: The command that installs it.

    Raises:
        BackendUnavailableError: It is not installed, or a library that it needs is missing or does
            not fit: vendors' modules answer that with errors of many types while they load.
    """
    try:
        with warnings.catch_warnings():  # SWIG modules warn while loading; as errors that aborts
            warnings.simplefilter("ignore")
            return import_module(module)
    except ModuleNotFoundError as error:
        raise BackendUnavailableError(f"{module} is not installed ({error}): {fix}") from error
    except Exception as error:
        raise BackendUnavailableError(
            f"{module} cannot be loaded ({type(error).__name__}: {first_line(error)}): check the "
            f"driver and the libraries that it needs, or install it anew: {fix}"
        ) from error


def import_onnxruntime() -> Any:  # noqa: ANN401
    """Return onnxruntime, with its telemetry off unless `ORT_DISABLE_TELEMETRY` says otherwise.

    From 1.31 on it reports to its maker from a thread that starts with the import. Nobody asked
    for that, and a forked child that ends normally waits for the thread for good.

    Raises:
        BackendUnavailableError: It is not installed, or cannot be loaded.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    return import_vendor("onnxruntime", "pip install onnxruntime")


def import_tensorrt(flavour: str) -> Any:  # noqa: ANN401  (a module without type information)
    """Return the module of a flavour.

    Raises:
        ConfigError: There is no such flavour.
        BackendUnavailableError: It is not installed, cannot be loaded, or is too old.
    """
    if flavour not in _MODULES:
        raise ConfigError(f"unknown flavour {flavour!r}: expected one of {', '.join(FLAVOURS)}")
    fix = f"pip install 'magtiles-seg[{flavour}]'"
    library = import_vendor(_MODULES[flavour], fix)
    version = str(getattr(library, "__version__", "unknown"))
    if flavour == "tensorrt" and version_numbers(version) < _OLDEST:
        raise BackendUnavailableError(
            f"TensorRT {version} is too old, expected 10.12 or newer: {fix}"
        )
    return library


def version_numbers(version: str) -> tuple[int, ...]:
    """Return the numbers of a version for comparison, up to the first part that is none."""
    numbers = []
    for part in version.split("."):
        if not part.isdecimal():
            break
        numbers.append(int(part))
    return tuple(numbers)


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its type where it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


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
