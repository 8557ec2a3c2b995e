"""Write each defect into the registers of a PLC, which acknowledges; here a simulated one."""

import asyncio
import socket
import threading

from pymodbus.server import ModbusTcpServer
from pymodbus.simulator import DataType, SimData, SimDevice

from magtiles_seg import LineScanSegmenter, Segmenter
from magtiles_seg.dataset.synthetic.web import synthetic_web
from magtiles_seg.linescan.plant.address import open_door
from magtiles_seg.linescan.sources import ArraySource
from magtiles_seg.linescan.stream import inspect

Values = list[int] | list[bool] | None
with socket.create_server(("127.0.0.1", 0)) as free:
    port = free.getsockname()[1]


async def scan(_: int, start: int, _a: int, _n: int, now: list[int], new: Values) -> None:
    """Act as the PLC's program: copy the sequence number (register 0) to register 20."""
    if new is not None:
        print(f"PLC: number {new[0]}, class {new[2]}, lines from {new[4] << 16 | new[5]}")
        now[20 - start] = new[0]


async def serve() -> None:
    """Run the PLC."""
    registers = [SimData(0, count=40, values=0, datatype=DataType.REGISTERS)]
    plc = SimDevice(1, simdata=registers, action=scan)
    await ModbusTcpServer(plc, address=("127.0.0.1", port)).serve_forever()


threading.Thread(target=asyncio.run, args=[serve()], daemon=True).start()
door = open_door(f"modbus://127.0.0.1:{port}?register=0&ack=20&min-score=0.3", note=print)
rows = next(synthetic_web(684, seed=1, defect_fraction=1.0)).image
with Segmenter() as segmenter:
    inspect(ArraySource(rows), LineScanSegmenter(684, segmenter), [door])
print(f"{door.state.delivered} acknowledged, {door.state.dropped} dropped")
