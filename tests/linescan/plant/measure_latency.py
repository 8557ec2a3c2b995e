"""Measure how long a defect takes from its last row to the receiver's confirmation, door by door.

`PYTHONPATH=tests/stand_ins python tests/linescan/plant/measure_latency.py [findings]`
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import plant

from magtiles_seg.linescan.defects import WebDefect
from magtiles_seg.linescan.plant.address import open_door
from magtiles_seg.linescan.plant.outbox import Outbox
from magtiles_seg.linescan.sources import LineBlock

RATE_HZ = 20


def defect(line: int) -> WebDefect:
    """Return a defect of six lines."""
    return WebDefect(
        label="crack",
        score=0.75,
        area_px=12,
        bbox_xyxy_px=(5, line, 9, line + 6),
        centroid_xy_px=(6.5, line + 3.0),
        length_px=6.0,
        width_px=4.0,
        first_line=line,
        last_line=line + 5,
    )


def measure(box: Outbox, findings: int) -> str:
    """Deliver findings at a steady rate and return the latencies."""
    plant.until(lambda: box.state.error is None)
    box.write(defect(0))
    plant.until(lambda: box.state.delivered == 1)
    box.latencies.__init__()  # type: ignore[misc]
    rows = np.empty((6, 8), np.uint8)
    for line in range(10, 10 * (findings + 1), 10):
        box.lines(LineBlock(rows, line, time.perf_counter()))
        box.write(defect(line))
        time.sleep(1 / RATE_HZ)
    box.close()
    return f"{box.state.latency_p50_ms:.1f} ms  {box.state.latency_p99_ms:.1f} ms"


if __name__ == "__main__":
    findings = int(sys.argv[1]) if sys.argv[1:] else 500
    plc, port = plant.Plc(plant.free_port(), acknowledge=50), plant.free_port()
    with tempfile.TemporaryDirectory() as folder:
        broker = plant.Mosquitto(plant.free_port(), Path(folder))
        for address in (
            f"mqtt://127.0.0.1:{broker.port}/line1",
            f"opcua://127.0.0.1:{port}",
            f"modbus://127.0.0.1:{plc.port}?ack=50",
        ):
            sys.stdout.write(f"{address} {measure(open_door(address), findings)}\n")
        broker.stop()
