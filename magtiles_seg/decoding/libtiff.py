"""What libtiff calls an error while Pillow decodes: it prints it, and may go on with wrong rows."""

from __future__ import annotations

import ctypes
import functools
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from magtiles_seg.decoding.header import damaged

__all__ = ["errors_raised"]

_Handler = ctypes.CFUNCTYPE(None, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_void_p)
_heard = threading.local()


@contextmanager
def errors_raised() -> Iterator[None]:
    """Raise ImageError where libtiff reports an error in this thread, and keep it from stderr."""
    _listen()
    _heard.errors = []
    try:
        yield
        if _heard.errors:
            raise damaged(f"has damaged pixels, by {_heard.errors[0]}")
    finally:
        del _heard.errors


@functools.cache
def _listen() -> object:
    """Take libtiff's reports for the life of the process; pass on those of other users of Pillow.

    Where Pillow hides its libtiff (Windows), nothing is heard.
    """
    from PIL import _imaging

    try:
        replace = ctypes.CDLL(_imaging.__file__).TIFFSetErrorHandler
    except (AttributeError, OSError):
        return None
    replace.restype = ctypes.c_void_p
    replace.argtypes = [ctypes.c_void_p]
    former: list[object] = []

    def hear(module: bytes, message: bytes, values: int) -> None:
        if hasattr(_heard, "errors"):
            _heard.errors.append(
                b": ".join(filter(None, (module, message))).decode("ascii", "replace")
            )
        elif former:
            former[0](module, message, values)  # type: ignore[operator]

    handler = _Handler(hear)
    place = replace(ctypes.cast(handler, ctypes.c_void_p))
    if place:
        former.append(_Handler(place))
    return handler
