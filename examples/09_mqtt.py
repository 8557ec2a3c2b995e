"""Send each defect to an MQTT broker: QoS 1, in order, with an id by which a copy is known.

BROKER=mqtt://host/topic in the environment names one; without it, one is begun here.
"""

import os
import subprocess
import sys
from socket import create_server
from tempfile import NamedTemporaryFile

from magtiles_seg import LineScanSegmenter, Segmenter
from magtiles_seg.dataset.synthetic.web import synthetic_web
from magtiles_seg.linescan.plant.address import open_door
from magtiles_seg.linescan.sources import ArraySource
from magtiles_seg.linescan.stream import inspect

broker, address = None, os.environ.get("BROKER") or None
if address is None:
    with create_server(("127.0.0.1", 0)) as free, NamedTemporaryFile("w", delete=False) as file:
        port = free.getsockname()[1]
        file.write(
            f"listeners: {{default: {{type: tcp, bind: '127.0.0.1:{port}'}}}}\n"
            "plugins: {amqtt.plugins.authentication.AnonymousAuthPlugin: {allow_anonymous: on}}\n"
        )
    program = [sys.executable, "-m", "amqtt.scripts.broker_script", "-c", file.name]
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
