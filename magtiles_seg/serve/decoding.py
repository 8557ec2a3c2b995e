"""Decodes pictures in processes that can be ended, so that no file holds up the service.

What a file costs is bounded three times: in CPU time and memory by the system, for each picture,
and in time by who waits: a process whose picture nobody waits for is ended. There are more of them
than inferences at once, so that pictures that use their time up do not keep others waiting.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace

import anyio.to_thread
import numpy as np
from anyio import CapacityLimiter
from numpy.typing import NDArray

from magtiles_seg.errors import ImageError, InferenceError
from magtiles_seg.serve.decoder import OUTCOMES, REPLY, REQUEST

SPARE = 2
"""Decoding processes more than inferences at once."""

_MAX_MESSAGE = 10_000
_COMMAND = (sys.executable, "-m", "magtiles_seg.serve.decoder")


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What decoding one picture may cost. The dearest legal pictures take a fifth of it.

    Attributes:
        max_pixels: Largest picture.
        max_bytes: Largest file.
    """

    max_pixels: int
    max_bytes: int

    def cpu_s(self, size: int) -> float:
        """Return the CPU time for a file of so many bytes, in seconds.

        A lossy WebP takes 0.07 s a megapixel, a PNG with alpha 0.05, a progressive JPEG 0.04.
        """
        return 0.5 + 0.25e-6 * self.max_pixels + 0.05e-6 * size

    @property
    def memory(self) -> int:
        """Bytes of memory over what the process has when idle."""
        return 64_000_000 + 40 * self.max_pixels + 4 * self.max_bytes


class DecoderEndedError(Exception):
    """A decoding process ended in the middle of a picture, or before it.

    Attributes:
        cause: `cpu`, `memory`, `crash`, or `start`: it never came so far as to ask for a picture.
    """

    def __init__(self, cause: str) -> None:
        super().__init__(cause)
        self.cause = cause


class Decoders:
    """A pool of processes that `magtiles_seg.image.read_image` runs in. Made in an event loop."""

    def __init__(
        self, processes: int, budget: Budget, *, ended: Callable[[str], None] = lambda _: None
    ) -> None:
        """Make a pool; its processes start when they are needed.

        Args:
            processes: The most of them.
            budget: What each picture may cost.
            ended: Called with the cause whenever a process was ended or ended by itself.
        """
        self._budget = budget
        self._ended = ended
        self._free = asyncio.Semaphore(processes)
        self._threads = CapacityLimiter(processes)
        self._idle: deque[_Process] = deque()
        self._all: set[_Process] = set()

    @property
    def pids(self) -> list[int]:
        """Ids of the processes that run now."""
        return [process.pid for process in self._all]

    async def warm(self) -> None:
        """Start a process and wait until it has imported what it needs.

        Raises:
            InferenceError: It does not start.
        """
        try:
            await self.decode(b"")
        except ImageError:
            return

    async def decode(self, data: bytes, *, own_px: int = 0) -> NDArray[np.uint8]:
        """Return a picture file as (H, W) uint8 grey levels. Cancelling ends the process.

        Args:
            data: The file.
            own_px: Pixels that are let through whatever the budget: for a picture of the service.

        Raises:
            ImageError: The picture is damaged, of a kind that is not read, too large, or it costs
                more than the budget.
            InferenceError: No decoding process can be started.
        """
        async with self._free:
            try:
                return await self._once(data, own_px)
            except DecoderEndedError as error:
                if error.cause == "cpu":
                    raise self._too_dear(data, "CPU time") from None
            try:  # a process that was ended from outside, or whose memory was in pieces: once more
                return await self._once(data, own_px, fresh=True)
            except DecoderEndedError as error:
                if error.cause == "start":
                    raise InferenceError("the decoding process does not start") from None
                if error.cause == "crash":
                    message = f"{_named(data)} made its decoder crash; copy or save it again"
                    raise ImageError(message) from None
                raise self._too_dear(
                    data, "CPU time" if error.cause == "cpu" else "memory"
                ) from None

    async def _once(self, data: bytes, own_px: int, *, fresh: bool = False) -> NDArray[np.uint8]:
        process = self._take(fresh=fresh)
        budget = replace(self._budget, max_pixels=max(self._budget.max_pixels, own_px))
        try:
            pixels = await anyio.to_thread.run_sync(
                process.decode, data, budget, abandon_on_cancel=True, limiter=self._threads
            )
        except ImageError:
            self._idle.append(process)
            raise
        except BaseException as error:
            self._end(process)
            self._ended(error.cause if isinstance(error, DecoderEndedError) else "deserted")
            self._idle.appendleft(self._start())  # it imports while others are used
            raise
        self._idle.append(process)
        return pixels

    def _take(self, *, fresh: bool) -> _Process:
        """Return an idle process: one that has worked already where there is one, or the newest."""
        while self._idle:
            process = self._idle.popleft() if fresh else self._idle.pop()
            if process.alive:
                return process
            self._end(process)
            self._ended("crash")
        return self._start()

    def _start(self) -> _Process:
        process = _Process()
        self._all.add(process)
        return process

    def _end(self, process: _Process) -> None:
        process.kill()
        self._all.discard(process)

    def close(self) -> None:
        """End all processes."""
        for process in list(self._all):
            self._end(process)
        self._idle.clear()

    def _too_dear(self, data: bytes, what: str) -> ImageError:
        cpu_s, memory = self._budget.cpu_s(len(data)), self._budget.memory
        limit = f"{cpu_s:.1f} s" if what == "CPU time" else f"{memory / 1e6:.0f} MB"
        return ImageError(
            f"{_named(data)} takes more {what} to decode than expected of any picture, {limit}; "
            "save it again, as PNG or JPEG",
            reason="too_large",
        )


def _named(data: bytes) -> str:
    return f"the picture ({len(data)} bytes)"


class _Process:
    """One decoding process, and its pipes."""

    def __init__(self) -> None:
        """Start it; it is not waited for."""
        paths = os.pathsep.join(path for path in sys.path if path)
        environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            _COMMAND,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            env=environment,
            start_new_session=True,  # Ctrl+C is for the service
        )
        self._ready = False

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def decode(self, data: bytes, budget: Budget) -> NDArray[np.uint8]:
        """Return the picture; blocks.

        Raises:
            ImageError: As `read_image` raised it there.
            DecoderEndedError: The process ended.
        """
        try:
            if not self._ready:
                self._reply(0)
                self._ready = True
            head = (len(data), budget.cpu_s(len(data)), budget.max_pixels, budget.memory)
            self._write(REQUEST.pack(*head))
            self._write(data)
            return self._reply(budget.max_pixels)
        except ImageError:
            raise
        except (OSError, ValueError, EOFError):  # ValueError: the pipes were closed meanwhile
            raise DecoderEndedError(self._cause()) from None

    def _cause(self) -> str:
        self._process.kill()
        status = self._process.wait()
        if not self._ready:
            return "start"
        return "cpu" if status == -getattr(signal, "SIGPROF", 0) else "crash"

    def _reply(self, max_pixels: int) -> NDArray[np.uint8]:
        code, height, width = REPLY.unpack(self._read(REPLY.size))
        outcome = OUTCOMES[code]
        if outcome == "ready":
            return np.empty((0, 0), np.uint8)
        if outcome == "pixels":
            if not 0 < height * width <= max_pixels:
                raise EOFError
            pixels = np.empty((height, width), np.uint8)
            self._fill(pixels.data.cast("B"))
            return pixels
        if outcome == "memory":
            raise DecoderEndedError("memory")
        message = self._read(min(width, _MAX_MESSAGE))
        raise ImageError(message.decode("utf-8", "replace"), reason=outcome)

    def _read(self, size: int) -> bytearray:
        data = bytearray(size)
        self._fill(memoryview(data))
        return data

    def _fill(self, view: memoryview) -> None:
        assert self._process.stdout is not None
        while view:
            count = self._process.stdout.readinto(view)  # type: ignore[attr-defined]
            if not count:
                raise EOFError
            view = view[count:]

    def _write(self, data: bytes) -> None:
        assert self._process.stdin is not None
        view = memoryview(data)
        while view:
            view = view[self._process.stdin.write(view) :]

    def kill(self) -> None:
        """End the process and forget it."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
