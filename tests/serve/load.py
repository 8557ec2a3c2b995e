"""Loads a real server on this machine and prints what it bore. Not a test: run it by hand.

python tests/serve/load.py throughput      64 clients beside a bare loop; p99 at half the load
python tests/serve/load.py soak 600        200 clients, memory, and a SIGTERM in the middle
python tests/serve/load.py large 600       the same with pictures of 4 megapixels
python tests/serve/load.py overload 60     such pictures: goodput at capacity and at 4 times of it
"""

from __future__ import annotations

import asyncio
import io
import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType

import numpy as np
from PIL import Image

from magtiles_seg import Segmenter
from magtiles_seg.dataset.synthetic import synthetic_tile
from magtiles_seg.infer.backends.base import available_cores

CLIENTS, SOAK_CLIENTS = 64, 200
SIZE_HW = (288, 220)


class Server:
    """`magtiles-seg serve` as a process of its own, on a port that the system chooses."""

    def __init__(self, *flags: str, environment: dict[str, str] | None = None) -> None:
        command = [
            sys.executable,
            "-u",
            "-c",
            "from magtiles_seg.cli import main; main()",
            "serve",
            "--port",
            "0",
            *flags,
        ]
        if "--demo" not in flags:
            command += ["--demo", "false"]
        self.lines: list[str] = []
        self.stopped_after_s = self._told = 0.0
        self.process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, **(environment or {})},
        )
        self.port = self._started()
        self._reader = threading.Thread(target=self._read_on)  # a full pipe would stop the server
        self._reader.start()

    def _started(self) -> int:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line)
            found = re.search(r"running on http://[\w.:]+:(\d+)", line)
            if found:
                return int(found[1])
        raise RuntimeError("the server did not start:\n" + "".join(self.lines))

    def _read_on(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as said:
            self.lines.extend(said)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def wait_ready(self, seconds: float = 60) -> None:
        """Return when `/readyz` says so."""
        end = time.monotonic() + seconds
        while asyncio.run(ask(self.port, b"GET /readyz HTTP/1.1\r\nHost: x\r\n\r\n")) != 200:
            if time.monotonic() > end:
                raise RuntimeError("the server did not become ready")
            time.sleep(0.1)

    def terminate(self) -> None:
        """Send SIGTERM."""
        self._told = time.monotonic()
        self.process.send_signal(signal.SIGTERM)

    def stop(self) -> int:
        """Send SIGTERM, read what is still said, and return the exit code."""
        if self.process.poll() is None and not self._told:
            self.terminate()
        self.process.wait(timeout=120)
        self.stopped_after_s = time.monotonic() - self._told
        self._reader.join(5)
        return self.process.returncode

    def memory_mb(self) -> float:
        """Return the memory that the process and its children hold."""
        pages = [Path(f"/proc/{pid}/statm").read_text().split()[1] for pid in self.pids()]
        return sum(map(int, pages)) * os.sysconf("SC_PAGE_SIZE") / 1e6

    def pids(self) -> list[int]:
        """Return the process, and all that it started."""
        found = [self.process.pid]
        for pid in found:
            for tasks in Path(f"/proc/{pid}/task").glob("*/children"):
                found += map(int, tasks.read_text().split())
        return found

    def __enter__(self) -> Server:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()


async def ask(port: int, request: bytes) -> int:
    """Send one request on a connection of its own and return the status; 0 where none came."""
    client = Client(port, request)
    try:
        return await client.send()
    except OSError:
        return 0
    finally:
        client.close()


class Client:
    """One connection that sends the same bytes again and again, as cheaply as can be."""

    def __init__(self, port: int, request: bytes) -> None:
        self._port = port
        self._request = request
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def send(self) -> int:
        """Return the status of one request.

        Raises:
            ConnectionRefusedError: Nobody listens.
            OSError, asyncio.IncompleteReadError: The connection broke.
        """
        if self._streams is not None and self._streams[0].at_eof():
            self.close()  # the server has closed the idle connection: a client opens another
        if self._streams is None:
            try:
                self._streams = await asyncio.open_connection("127.0.0.1", self._port)
            except ConnectionResetError as error:  # the port closed while this one queued there
                raise ConnectionRefusedError(*error.args) from error
        reader, writer = self._streams
        writer.write(self._request)
        await writer.drain()
        head = await reader.readuntil(b"\r\n\r\n")
        found = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
        await reader.readexactly(int(found[1]) if found else 0)
        if b"connection: close" in head.lower():
            self.close()
        return int(head.split(b" ", 2)[1])

    def close(self) -> None:
        """Leave."""
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


def tile_jpeg() -> bytes:
    """Return a synthetic tile as a JPEG file."""
    file = io.BytesIO()
    Image.fromarray(synthetic_tile(3, defect="blowhole", size_hw=SIZE_HW).image).save(file, "JPEG")
    return file.getvalue()


def large_jpeg() -> bytes:
    """Return a JPEG file of 2000 x 2000 px, the largest that the service takes unless told."""
    file = io.BytesIO()
    tile = synthetic_tile(3, defect="blowhole", size_hw=SIZE_HW).image
    Image.fromarray(np.tile(tile, (7, 10))[:2000, :2000]).save(file, "JPEG", quality=85)
    return file.getvalue()


def upload(data: bytes) -> bytes:
    """Return the bytes of a request to `/analyze`, as curl sends it."""
    form = b'--edge\r\nContent-Disposition: form-data; name="image"; filename="tile.jpg"\r\n'
    form += b"Content-Type: image/jpeg\r\n\r\n" + data + b"\r\n--edge--\r\n"
    head = "POST /analyze HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=edge"
    return f"{head}\r\nContent-Length: {len(form)}\r\n\r\n".encode() + form


async def flood(port: int, clients: int, seconds: float) -> float:
    """Return the answers a second that so many clients get, each sending when answered."""
    request, end, answered = upload(tile_jpeg()), time.perf_counter() + seconds, 0

    async def one() -> None:
        nonlocal answered
        client = Client(port, request)
        while time.perf_counter() < end:
            assert await client.send() == 200
            answered += 1
        client.close()

    start = time.perf_counter()
    await asyncio.gather(*(one() for _ in range(clients)))
    return answered / (time.perf_counter() - start)


async def trickle(port: int, rate: float, seconds: float) -> list[float]:
    """Return the latencies of requests that come by chance, so many a second on average."""
    request, latencies = upload(tile_jpeg()), []
    idle = [Client(port, request) for _ in range(CLIENTS)]

    async def one() -> None:
        start = time.perf_counter()
        client = idle.pop() if idle else Client(port, request)
        assert await client.send() == 200
        latencies.append(time.perf_counter() - start)
        idle.append(client)

    end, tasks = time.perf_counter() + seconds, []
    while time.perf_counter() < end:
        tasks.append(asyncio.create_task(one()))
        await asyncio.sleep(random.expovariate(rate))
    await asyncio.gather(*tasks)
    return latencies


def bare_loop(segmenter: Segmenter, streams: int, seconds: float) -> float:
    """Return the pictures per second, from JPEG to Segmentation, without any server."""
    data, end = tile_jpeg(), time.perf_counter() + seconds

    def loop(_: int) -> int:
        done = 0
        while time.perf_counter() < end:
            segmenter(data)
            done += 1
        return done

    start = time.perf_counter()
    with ThreadPoolExecutor(streams) as pool:
        done = sum(pool.map(loop, range(streams)))
    return done / (time.perf_counter() - start)


def throughput(rounds: int = 5, seconds: float = 6.0) -> dict[str, float]:
    """Compare bare loops and 64 clients in turns, then look at latencies."""
    cores = available_cores()
    one, many = Segmenter(threads=cores), Segmenter(threads=1)
    rows, singles, halves = [], [], []
    with Server() as server:
        server.wait_ready()
        asyncio.run(flood(server.port, CLIENTS, 2))
        for _ in range(rounds):
            loops = bare_loop(one, 1, seconds), bare_loop(many, cores, seconds)
            rows.append((*loops, asyncio.run(flood(server.port, CLIENTS, seconds))))
            alone = asyncio.run(trickle_alone(server.port, seconds / 2))
            half = asyncio.run(trickle(server.port, rows[-1][2] / 2, seconds))
            singles.append(float(np.median(alone)))
            halves.append(float(np.quantile(half, 0.99)))
    loop, pool, served = np.array(rows).T
    return {
        "one_loop_per_s": float(np.median(loop)),
        "loop_a_core_per_s": float(np.median(pool)),
        "served_per_s": float(np.median(served)),
        "served_to_one_loop": float(np.median(served / loop)),
        "served_to_loop_a_core": float(np.median(served / pool)),
        "single_ms": float(np.median(singles)) * 1e3,
        "p99_at_half_ms": float(np.median(halves)) * 1e3,
        "p99_at_half_to_single": float(np.median(np.array(halves) / np.array(singles))),
    }


async def trickle_alone(port: int, seconds: float) -> list[float]:
    """Return the latencies of one client that sends when answered."""
    client, latencies, end = Client(port, upload(tile_jpeg())), [], time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        assert await client.send() == 200
        latencies.append(time.perf_counter() - start)
    client.close()
    return latencies


async def crowd(
    server: Server, clients: int, seconds: float, picture: bytes | None = None
) -> tuple[Counter[str], list[float]]:
    """Load a server, end it by SIGTERM at full load, and count what became of every request."""
    outcomes: Counter[str] = Counter()
    request, memory = upload(picture or tile_jpeg()), []
    ended = asyncio.Event()

    async def one() -> None:
        client = Client(server.port, request)
        while True:
            try:
                status = await client.send()
            except ConnectionRefusedError:
                outcomes["refused after SIGTERM" if ended.is_set() else "refused"] += 1
                return
            except (OSError, asyncio.IncompleteReadError):
                outcomes["lost after SIGTERM" if ended.is_set() else "lost"] += 1
                client.close()
                return
            outcomes[f"{status} after SIGTERM" if ended.is_set() else str(status)] += 1
            if status == 503:
                await asyncio.sleep(random.uniform(0.2, 1.0))

    tasks = [asyncio.create_task(one()) for _ in range(clients)]
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        await asyncio.sleep(min(5.0, seconds / 4))
        memory.append(server.memory_mb())
    ended.set()
    server.terminate()
    await asyncio.gather(*tasks)
    return outcomes, memory


async def goodput(port: int, clients: int, seconds: float, picture: bytes) -> dict[str, float]:
    """Return the answers a second of clients that send when answered, and what became of all."""
    outcomes: Counter[int] = Counter()
    request, end = upload(picture), time.perf_counter() + seconds
    latencies = []

    async def one() -> None:
        client = Client(port, request)
        while time.perf_counter() < end:
            start = time.perf_counter()
            status = await client.send()
            outcomes[status] += 1
            if status == 200:
                latencies.append(time.perf_counter() - start)
            else:
                await asyncio.sleep(random.uniform(0.2, 1.0))
        client.close()

    start = time.perf_counter()
    await asyncio.gather(*(one() for _ in range(clients)))
    seconds = time.perf_counter() - start
    return {
        "clients": clients,
        "answers_per_s": outcomes[200] / seconds,
        "refusals_per_s": outcomes[503] / seconds,
        "others": outcomes.total() - outcomes[200] - outcomes[503],
        "p50_s": float(np.median(latencies)),
        "p99_s": float(np.quantile(latencies, 0.99)),
    }


def overload(seconds: float) -> list[dict[str, float]]:
    """Return the goodput of 4-megapixel pictures at capacity, at 4 times of it, and beyond."""
    capacity = 4 * available_cores()
    with Server() as server:
        server.wait_ready()
        asyncio.run(goodput(server.port, 2, 5, large_jpeg()))
        return [
            {**row, "memory_mb": server.memory_mb()}
            for clients in (capacity, 4 * capacity, capacity, 4 * capacity, SOAK_CLIENTS)
            for row in [asyncio.run(goodput(server.port, clients, seconds, large_jpeg()))]
        ]


def soak(
    seconds: float, clients: int = SOAK_CLIENTS, picture: bytes | None = None
) -> dict[str, object]:
    """Return what became of the requests, the memory over time, and the server's own count."""
    server = Server()
    server.wait_ready()
    outcomes, memory = asyncio.run(crowd(server, clients, seconds, picture))
    server.stop()
    accepted = re.findall(r"accepted .*", "".join(server.lines))
    return {
        "outcomes": dict(outcomes),
        "answers_per_s": outcomes["200"] / seconds,
        "memory_mb": [round(value) for value in memory],
        "accepted_answered": accepted,
        "stopped_after_s": server.stopped_after_s,
    }


def main() -> None:
    """Run what the command line names."""
    what = sys.argv[1] if sys.argv[1:] else "throughput"
    number = float(sys.argv[2]) if sys.argv[2:] else 0.0
    report: object
    if what == "overload":
        report = overload(number or 60)
    elif what in ("soak", "large"):
        report = soak(number or 600, picture=large_jpeg() if what == "large" else None)
    else:
        report = throughput(int(number or 5))
    sys.stdout.write(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
