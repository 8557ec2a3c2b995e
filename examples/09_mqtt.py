"""Send each defect to an MQTT broker: QoS 1, in order, with an id by which a copy is known.

BROKER=mqtt://host/topic in the environment names one; without it, one is begun here.
"""

import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

from magtiles_seg import LineScanSegmenter, Segmenter
from magtiles_seg.dataset.synthetic.web import synthetic_web
from magtiles_seg.linescan.plant.address import open_door
from magtiles_seg.linescan.sources import ArraySource
from magtiles_seg.linescan.stream import inspect

broker, address = None, os.environ.get("BROKER")
if address is None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    settings = Path(tempfile.mkdtemp()) / "broker.yaml"
    settings.write_text(
        f"listeners: {{default: {{type: tcp, bind: '127.0.0.1:{port}'}}}}\n"
        "plugins: {amqtt.plugins.authentication.AnonymousAuthPlugin: {allow_anonymous: true}}\n"
    )
    program = [sys.executable, "-m", "amqtt.scripts.broker_script", "-c", str(settings)]
    broker = subprocess.Popen(program, stderr=subprocess.DEVNULL)
    address = f"mqtt://127.0.0.1:{port}/plant/line1?patience-s=30"

try:
    door = open_door(address, note=print)
    rows = next(synthetic_web(684, seed=1, defect_fraction=1.0)).image
    with Segmenter() as segmenter:
        inspect(ArraySource(rows), LineScanSegmenter(684, segmenter), [door])
    print(f"{door.state.delivered} confirmed by {door.state.name}, {door.state.dropped} dropped")
    print(f"row to confirmation: {door.state.latency_p50_ms:.0f} ms (median)")
finally:
    if broker is not None:
        broker.terminate()
        broker.wait()
