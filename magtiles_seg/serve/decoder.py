"""The process that decodes pictures for the service. `decoding` starts it, and may end it any time.

It reads requests on its standard input and answers on its standard output, until the input ends. A
picture gets so much CPU time and memory: the system ends the process, or refuses it the memory.
"""

from __future__ import annotations

import os
import signal
import struct
import sys
from contextlib import suppress
from typing import IO

import numpy as np
from numpy.typing import NDArray

from magtiles_seg.errors import ImageError
from magtiles_seg.image import read_image

REQUEST = struct.Struct("<QdQQ")
"""Bytes of the file that follows, CPU seconds it may cost, most pixels, most bytes of memory."""

REPLY = struct.Struct("<BQQ")
"""What became of it, an index of `OUTCOMES`, and height and width, or 0 and the message's bytes."""

OUTCOMES = ("pixels", "invalid", "unsupported", "too_large", "memory", "ready")
"""Pixels; the three reasons of an `ImageError`; the memory was used up; the process has started."""

_MAX_MESSAGE = 2000


def main() -> None:
    """Answer until the input ends."""
    requests, replies = _channels()
    _import_decoders()
    _send(replies, "ready", b"")
    with open(os.devnull, "wb") as nowhere:  # noqa: PTH123
        os.dup2(nowhere.fileno(), 2)  # libtiff and Pillow warn there of every damaged picture
    while head := _read(requests, REQUEST.size):
        size, cpu_s, max_pixels, memory = REQUEST.unpack(head)
        data = _read(requests, size)
        if len(data) < size:
            return
        _limit_cpu(cpu_s)
        try:
            _limit_memory(memory)
            answer: NDArray[np.uint8] | Exception = read_image(data, max_pixels=max_pixels)
        except (ImageError, MemoryError) as error:
            answer = error
        _limit_cpu(0)
        _answer(replies, answer)


def _channels() -> tuple[IO[bytes], IO[bytes]]:
    """Return both ends; what a library prints cannot get between the replies."""
    for name in ("SIGINT", "SIGTERM"):  # sent to a whole group, while the service still answers
        signal.signal(getattr(signal, name), signal.SIG_IGN)
    replies = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    return os.fdopen(0, "rb", buffering=0, closefd=False), replies


def _import_decoders() -> None:
    """Import now what the first picture would, before memory is counted."""
    import cv2
    from PIL import Image, ImageOps  # noqa: F401

    cv2.setNumThreads(1)
    Image.preinit()
    Image.init()


def _answer(replies: IO[bytes], answer: NDArray[np.uint8] | Exception) -> None:
    if isinstance(answer, np.ndarray):
        height, width = answer.shape
        _write(replies, REPLY.pack(OUTCOMES.index("pixels"), height, width))
        _write(replies, answer.data.cast("B"))
    elif _out_of_memory(answer):
        _send(replies, "memory", b"")
        raise SystemExit  # what is left of it is in pieces; a fresh process is cheaper
    else:
        assert isinstance(answer, ImageError)
        _send(replies, answer.reason, str(answer).encode("utf-8", "replace")[:_MAX_MESSAGE])


def _send(replies: IO[bytes], outcome: str, message: bytes) -> None:
    _write(replies, REPLY.pack(OUTCOMES.index(outcome), 0, len(message)) + message)


def _out_of_memory(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, MemoryError) or "Insufficient memory" in str(error):  # OpenCV's words
            return True
        error = error.__cause__
    return False


def _limit_cpu(seconds: float) -> None:
    """Have the system end this process after so much more CPU time; 0 takes the limit back."""
    if hasattr(signal, "setitimer"):  # its signal's default is to end the process
        signal.setitimer(signal.ITIMER_PROF, seconds)


def _limit_memory(more: int) -> None:
    """Let this process have so many bytes more than it has; on systems that tell what it has."""
    with suppress(ImportError, OSError, ValueError):
        import resource

        pages = int(open("/proc/self/statm").read().split()[5])  # noqa: PTH123, SIM115
        limit = pages * resource.getpagesize() + more
        resource.setrlimit(resource.RLIMIT_DATA, (limit, resource.RLIM_INFINITY))


def _read(file: IO[bytes], size: int) -> bytes:
    """Return so many bytes, or fewer where the file ends."""
    data = bytearray(size)
    with memoryview(data) as view:
        done = 0
        while done < size and (count := file.readinto(view[done:])):  # type: ignore[attr-defined]
            done += count
    return bytes(data) if done == size else bytes(data[:done])


def _write(file: IO[bytes], data: bytes | memoryview) -> None:
    view = memoryview(data)
    while view:
        view = view[file.write(view) :]


if __name__ == "__main__":
    try:
        main()
    except BrokenPipeError:
        sys.exit(0)
