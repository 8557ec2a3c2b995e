"""Modbus/TCP: findings into the registers of a PLC, or as pulses of a coil at a reject gate."""

from __future__ import annotations

import logging
import time

from magtiles_seg.errors import BackendUnavailableError, ConfigError
from magtiles_seg.labels import LABELS
from magtiles_seg.linescan.defects import WebDefect
from magtiles_seg.linescan.messages import Message

try:
    from pymodbus.client import ModbusTcpClient
    from pymodbus.pdu import ModbusPDU
except ImportError as error:
    raise BackendUnavailableError(
        f"modbus:// needs pymodbus ({error}): pip install 'magtiles-seg[plant]'"
    ) from error

REGISTERS = (
    "sequence", "kind", "class", "score_permille", "first_line_high", "first_line_low",
    "last_line_high", "last_line_low", "x0_px", "x1_px", "area_px_high", "area_px_low", "age_ms",
)  # fmt: skip
"""What the holding registers hold from the first on, 16 bits each.

`sequence` is 0 at the start, counts 1..65,535 and then 1 again, and is written in one request with
the others: where it has changed, there is a new finding. `kind` is 1: defect, 2: uninspected lines,
3: uninspected lines whose end is unknown. `x1_px` is exclusive, and 65,535 where lines are
uninspected as far as the web's border. `class` is the label's index, 0 where it is unknown.
`age_ms` is the time since the arrival of its last line, at most 65,535.
"""

_POLL_S = 0.002
logging.getLogger("pymodbus").addHandler(logging.NullHandler())  # else its errors go to stderr


class ModbusDoor:
    """Writes to a PLC or an I/O module, which is the Modbus server.

    With registers, all of a finding is written in one request; written again after a broken
    connection, it has the same sequence number, so the PLC acts once. With an acknowledge register
    the next finding is written when the PLC has copied the sequence number there; without one,
    each stands for `hold_s`. A coil is switched on for `hold_s` for each defect and for each
    interval of uninspected lines; when the connection breaks in a pulse, it is given again.
    """

    def __init__(
        self,
        host: str,
        *,
        port: int = 502,
        unit: int = 1,
        register: int | None = None,
        ack: int | None = None,
        coil: int | None = None,
        hold_s: float = 0.05,
        timeout_s: float = 2.0,
        labels: tuple[str, ...] = LABELS,
    ) -> None:
        """Prepare; nothing is connected yet.

        Args:
            host: Of the server.
            port: Of the server.
            unit: Its device number.
            register: Address of the first of `REGISTERS`; None: 0 if there is no coil.
            ack: Address of the register where the PLC acknowledges, none of `REGISTERS`; None: it
                does not.
            coil: Address of the coil to pulse; None: none.
            hold_s: How long a finding stands and a pulse lasts.
            timeout_s: The longest wait for an answer, and for the acknowledgement.
            labels: Class names by index.

        Raises:
            ConfigError: A number is out of its range.
        """
        if register is None and coil is None:
            register = 0
        for name, value in (("register", register), ("ack", ack), ("coil", coil)):
            if value is not None and not 0 <= value <= 0xFFFF:
                raise ConfigError(f"{name} is {value}; expected 0..65535")
        if not 0 <= unit <= 0xFF:
            raise ConfigError(f"unit is {unit}; expected 0..255")
        if register is not None and register > 0x10000 - len(REGISTERS):
            raise ConfigError(
                f"register is {register}; expected at most {0x10000 - len(REGISTERS)}, as "
                f"{len(REGISTERS)} registers are written from there"
            )
        if ack is not None and register is None:
            raise ConfigError("ack needs the registers: add register=ADDRESS")
        if ack is not None and register is not None and 0 <= ack - register < len(REGISTERS):
            raise ConfigError(
                f"ack is {ack}, one of the {len(REGISTERS)} registers from {register} on that are "
                "written here; expected one that the PLC alone writes"
            )
        if not 0 <= hold_s <= 60:
            raise ConfigError(f"hold_s is {hold_s}; expected 0..60")
        self._host, self._port, self._unit = host, port, unit
        self._register, self._ack, self._coil = register, ack, coil
        self._hold_s, self._timeout_s, self._labels = hold_s, timeout_s, labels
        self._client: ModbusTcpClient | None = None
        self._greeted = False

    def connect(self) -> None:
        """Connect, and clear what an earlier run or a broken connection left.

        The coil is switched off each time; the registers become 0 once, so that the first finding
        of a run is new to the PLC even where the run before ended on the same sequence number.

        Raises:
            OSError: The server is not there or refuses.
        """
        self._client = ModbusTcpClient(
            self._host, port=self._port, timeout=self._timeout_s, retries=0
        )
        if not self._client.connect():  # type: ignore[no-untyped-call]
            raise ConnectionRefusedError(f"no Modbus server answers at {self._host}:{self._port}")
        if self._coil is not None:
            self._switch(on=False)
        if self._register is not None and not self._greeted:
            self._put([0] * len(REGISTERS))
            self._stand(0)
            self._greeted = True

    def check(self) -> None:
        """Do nothing: Modbus knows no sign of life."""

    def send(self, message: Message) -> None:
        """Write the finding, and return when it has been acknowledged or has stood long enough.

        Raises:
            OSError: The connection broke, the server refuses, or no acknowledgement came.
        """
        if self._register is not None:
            self._put(self._values(message))
        if self._coil is not None:
            self._switch(on=True)
        self._stand(_sequence(message))
        if self._coil is not None:
            self._switch(on=False)

    def close(self) -> None:
        """Disconnect."""
        client, self._client = self._client, None
        if client is not None:
            client.close()  # type: ignore[no-untyped-call]

    @property
    def _connected(self) -> ModbusTcpClient:
        if self._client is None:
            raise ConnectionError("there is no connection to the Modbus server")
        return self._client

    def _put(self, values: list[int]) -> None:
        assert self._register is not None
        _checked(self._connected.write_registers(self._register, values, device_id=self._unit))

    def _stand(self, sequence: int) -> None:
        """Let what was written stand until the PLC has acknowledged it, or long enough."""
        if self._ack is not None:
            self._await(sequence)
        if self._coil is not None or self._ack is None:
            time.sleep(self._hold_s)

    def _values(self, message: Message) -> list[int]:
        found = message.found
        age_ms = round(1e3 * (time.perf_counter() - message.arrived_s))
        if isinstance(found, WebDefect):
            label = self._labels.index(found.label) if found.label in self._labels else 0
            x0, _, x1, _ = found.bbox_xyxy_px
            what, area = [1, label, round(1000 * found.score)], found.area_px
            last_line = found.last_line
        else:
            end_line = found.end_line
            what, area = [3 if end_line is None else 2, 0, 0], 0
            x0, x1 = found.x0_px, 0xFFFF if found.x1_px is None else found.x1_px
            last_line = found.first_line if end_line is None else end_line - 1
        lines = [*_words(found.first_line), *_words(last_line)]
        sizes = [min(x0, 0xFFFF), min(x1, 0xFFFF), *_words(area)]
        return [_sequence(message), *what, *lines, *sizes, min(max(age_ms, 0), 0xFFFF)]

    def _switch(self, *, on: bool) -> None:
        assert self._coil is not None
        _checked(self._connected.write_coil(self._coil, on, device_id=self._unit))

    def _await(self, sequence: int) -> None:
        assert self._ack is not None
        until_s = time.monotonic() + self._timeout_s
        while True:
            answer = self._connected.read_holding_registers(
                self._ack, count=1, device_id=self._unit
            )
            if _checked(answer).registers[0] == sequence:
                return
            if time.monotonic() > until_s:
                raise TimeoutError(
                    f"the PLC did not acknowledge {sequence} in register {self._ack} "
                    f"within {self._timeout_s:g} s"
                )
            time.sleep(_POLL_S)


def _sequence(message: Message) -> int:
    return 1 + (message.number - 1) % 0xFFFF


def _words(value: int) -> tuple[int, int]:
    """Return the high and the low 16 of a number's low 32 bits."""
    return (value >> 16) & 0xFFFF, value & 0xFFFF


def _checked(answer: ModbusPDU) -> ModbusPDU:
    if answer.isError():
        raise ConnectionError(f"the Modbus server refuses: {answer}")
    return answer
