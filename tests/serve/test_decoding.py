"""Decoding in processes of its own: what it costs is bounded, and it survives what kills it."""

from __future__ import annotations

import asyncio
import io
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("anyio")

from magtiles_seg.errors import ImageError, InferenceError
from magtiles_seg.image import read_image
from magtiles_seg.serve import decoding
from magtiles_seg.serve.decoder import OUTCOMES, REPLY
from magtiles_seg.serve.decoding import Budget, Decoders, _Process

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="its limits are of POSIX")

BUDGET = Budget(max_pixels=4_000_000, max_bytes=16_000_000)


class Tight(Budget):
    """A budget that a picture of 4 megapixels does not keep."""

    def cpu_s(self, size: int) -> float:
        return 0.5 if size < 100_000 else 0.01


def encoded(side: int, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    noise = np.random.default_rng(3).integers(0, 256, (side, side), np.uint8)
    Image.fromarray(noise).save(file, kind)
    return file.getvalue()


def run(
    scenario: Callable[[Decoders], Awaitable[None]], *, processes: int = 1, budget: Budget = BUDGET
) -> list[str]:
    """Run a scenario with a pool; return why its processes were ended. None of them is left."""
    ended: list[str] = []

    async def main() -> list[int]:
        pool = Decoders(processes, budget, ended=ended.append)
        try:
            await asyncio.wait_for(scenario(pool), 60)
            return pool.pids
        finally:
            pool.close()

    assert not [pid for pid in asyncio.run(main()) if Path(f"/proc/{pid}").exists()]
    return ended


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP", "TIFF", "WEBP"])
def test_decode_gives_what_read_image_gives(kind: str) -> None:
    data = encoded(300, kind)

    async def scenario(pool: Decoders) -> None:
        for _ in range(2):
            assert np.array_equal(await pool.decode(data), read_image(data))
        assert len(pool.pids) == 1

    assert run(scenario) == []


def test_decode_of_a_bad_picture_is_the_librarys_error_and_the_process_stays() -> None:
    async def scenario(pool: Decoders) -> None:
        with pytest.raises(ImageError) as wanted:
            read_image(b"\xff\xd8\xff broken")
        for _ in range(2):
            with pytest.raises(ImageError) as caught:
                await pool.decode(b"\xff\xd8\xff broken")
            assert (str(caught.value), caught.value.reason) == (str(wanted.value), "invalid")
        with pytest.raises(ImageError, match="expected at most 4,000,000 px") as caught:
            await pool.decode(encoded(2001))
        assert caught.value.reason == "too_large"

    assert run(scenario) == []


def test_decode_over_the_cpu_budget_is_ended_and_the_next_picture_is_read() -> None:
    async def scenario(pool: Decoders) -> None:
        with pytest.raises(ImageError, match="more CPU time to decode than expected") as caught:
            await pool.decode(encoded(2000))
        assert caught.value.reason == "too_large"
        assert (await pool.decode(encoded(64))).shape == (64, 64)

    assert run(scenario, budget=Tight(max_pixels=4_000_000, max_bytes=16_000_000)) == ["cpu"]


@pytest.mark.skipif(sys.platform != "linux", reason="needs RLIMIT_DATA that counts mappings")
def test_decode_over_the_memory_budget_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Budget, "memory", 2_000_000)

    async def scenario(pool: Decoders) -> None:
        with pytest.raises(ImageError, match="more memory to decode than expected") as caught:
            await pool.decode(encoded(2000))
        assert caught.value.reason == "too_large"
        assert (await pool.decode(encoded(64))).shape == (64, 64)

    assert run(scenario) == ["memory", "memory"]


def test_decode_nobody_waits_for_is_ended_at_once() -> None:
    async def scenario(pool: Decoders) -> None:
        await pool.warm()
        (pid,) = pool.pids
        os.kill(pid, signal.SIGSTOP)  # a decoder that never comes to an end
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(pool.decode(encoded(64)), 0.2)
        assert pid not in pool.pids
        assert (await pool.decode(encoded(64))).shape == (64, 64)

    assert run(scenario) == ["deserted"]


def test_decode_slow_pictures_do_not_keep_others_waiting() -> None:
    async def scenario(pool: Decoders) -> None:
        slow = []
        for _ in range(2):
            known = set(pool.pids)
            await pool.decode(encoded(64))
            for pid in set(pool.pids) - known:
                os.kill(pid, signal.SIGSTOP)
            slow.append(asyncio.create_task(pool.decode(encoded(64))))
            await asyncio.sleep(0)  # it has the stopped process now
        start = time.monotonic()
        assert (await pool.decode(encoded(64))).shape == (64, 64)
        assert time.monotonic() - start < 30
        for task in slow:
            task.cancel()
        await asyncio.gather(*slow, return_exceptions=True)

    run(scenario, processes=4)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_decode_survives_the_death_of_idle_processes(number: int) -> None:
    async def scenario(pool: Decoders) -> None:
        await asyncio.gather(*(pool.decode(encoded(64)) for _ in range(3)))
        for pid in pool.pids:
            os.kill(pid, number)
        assert (await pool.decode(encoded(64))).shape == (64, 64)

    assert set(run(scenario, processes=3)) <= {"crash", "start"}


def test_decode_survives_the_signals_that_the_service_gets() -> None:
    async def scenario(pool: Decoders) -> None:
        await pool.warm()
        for number in (signal.SIGTERM, signal.SIGINT):
            os.kill(pool.pids[0], number)
        await asyncio.sleep(0.1)
        assert (await pool.decode(encoded(64))).shape == (64, 64)

    assert run(scenario) == []


def test_decode_without_a_process_that_starts_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "_COMMAND", (sys.executable, "-c", "pass"))

    async def scenario(pool: Decoders) -> None:
        with pytest.raises(InferenceError, match="does not start"):
            await pool.decode(encoded(64))

    assert set(run(scenario)) == {"start"}


def test_decoder_imports_neither_a_framework_nor_a_runtime() -> None:
    code = "import sys, magtiles_seg.serve.decoder; print(*sys.modules)"
    import subprocess

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "onnxruntime", "starlette", "asyncio"} & set(done.stdout.split())


def test_reply_that_claims_more_pixels_than_are_allowed_takes_no_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    claim = REPLY.pack(OUTCOMES.index("pixels"), 10**6, 10**6)
    monkeypatch.setattr(_Process, "_read", lambda *_: bytearray(claim))
    with pytest.raises(EOFError):
        object.__new__(_Process)._reply(10**6)
