"""Receivers of a plant on loopback: a broker, a PLC; they can be ended and begun again."""

from __future__ import annotations

import asyncio
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from pymodbus.server import ModbusTcpServer
from pymodbus.simulator import DataType, SimData, SimDevice

MOSQUITTO = shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin")
PATIENCE_S = 30.0
_WRITE_COIL = 5


def free_port() -> int:
    """Return a port that nobody listens at."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def until(true: Callable[[], object], patience_s: float = PATIENCE_S) -> None:
    """Wait until something is true."""
    end_s = time.monotonic() + patience_s
    while not true():
        assert time.monotonic() < end_s, "waited too long"
        time.sleep(0.01)


def listens(port: int) -> bool:
    """Say whether somebody listens at a port."""
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


class Mosquitto:
    """The broker of Debian's package."""

    def __init__(self, port: int, folder: Path) -> None:
        self.port, self._settings = port, folder / "mosquitto.conf"
        self._settings.write_text(f"listener {port} 127.0.0.1\nallow_anonymous true\n")
        self.start()

    def start(self) -> None:
        """Begin, and wait until it answers."""
        assert MOSQUITTO is not None
        self._process = subprocess.Popen(
            [MOSQUITTO, "-c", str(self._settings)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        until(lambda: listens(self.port))

    def stop(self) -> None:
        """End."""
        self._process.terminate()
        self._process.wait(PATIENCE_S)


class InLoop:
    """A server of asyncio in a thread of its own."""

    def __init__(self, port: int) -> None:
        self.port = port
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.start()

    def call(self, work: Coroutine[Any, Any, object]) -> object:
        """Run a coroutine to its end."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(PATIENCE_S)

    def start(self) -> None:
        """Begin, and wait until it answers."""
        self.call(self.begin())
        until(lambda: listens(self.port))

    def stop(self) -> None:
        """End."""
        self.call(self.end())

    def leave(self) -> None:
        """End the thread."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(PATIENCE_S)
        self._loop.close()

    async def begin(self) -> None:
        """Begin the server."""
        raise NotImplementedError

    async def end(self) -> None:
        """End the server."""
        raise NotImplementedError


class Amqtt(InLoop):
    """A broker in Python, where there is no mosquitto."""

    async def begin(self) -> None:
        """Begin the broker."""
        from amqtt.broker import Broker

        settings = {"listeners": {"default": {"type": "tcp", "bind": f"127.0.0.1:{self.port}"}}}
        plugins = {"amqtt.plugins.authentication.AnonymousAuthPlugin": {"allow_anonymous": True}}
        self._broker = Broker({**settings, "plugins": plugins})
        await self._broker.start()

    async def end(self) -> None:
        """End the broker."""
        await self._broker.shutdown()


class Plc(InLoop):
    """A PLC with 100 registers and 16 coils. It sees every write, and acknowledges if told to."""

    def __init__(self, port: int, *, acknowledge: int | None = None) -> None:
        self.seen: list[list[int]] = []
        self.coil: list[bool] = []
        self._acknowledge = acknowledge
        super().__init__(port)

    async def begin(self) -> None:
        """Begin the server."""
        device = SimDevice(
            1,
            simdata=(
                [SimData(0, count=16, values=False, datatype=DataType.BITS)],  # coils
                [SimData(0, count=16, values=False, datatype=DataType.BITS)],
                [SimData(0, count=100, values=0, datatype=DataType.REGISTERS)],
                [SimData(0, count=100, values=0, datatype=DataType.REGISTERS)],
            ),
            action=self._act,
        )
        self._server = ModbusTcpServer(device, address=("127.0.0.1", self.port))
        await self._server.serve_forever(background=True)

    async def end(self) -> None:
        """End the server."""
        await self._server.shutdown()  # type: ignore[no-untyped-call]

    async def _act(
        self,
        function_code: int,
        start_address: int,
        _address: int,
        _count: int,
        current_registers: list[int],
        set_values: list[int] | list[bool] | None,
    ) -> None:
        if set_values is None:
            if self._acknowledge is not None and self.seen:
                current_registers[self._acknowledge - start_address] = self.seen[-1][0]
        elif function_code == _WRITE_COIL:
            self.coil.append(bool(set_values[0]))
        else:
            self.seen.append([int(value) for value in set_values])
