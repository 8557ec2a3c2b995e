"""Send each defect to an MQTT broker: QoS 1, in order, with an id by which a copy is known.

BROKER=mqtt://host/topic in the environment names one; without it, amqtt's is begun here.
"""

import os
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from socket import create_server
from tempfile import TemporaryDirectory

from magtiles_seg import LineScanSegmenter, MagtilesError
from magtiles_seg.dataset.synthetic.web import synthetic_web
from magtiles_seg.linescan.plant.address import open_door
from magtiles_seg.linescan.sources import ArraySource
from magtiles_seg.linescan.stream import inspect

with ExitStack() as at_end:
    address = os.environ.get("BROKER")
    if not address:
        from amqtt.scripts import broker_script

        with create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        settings = Path(at_end.enter_context(TemporaryDirectory()), "broker.yaml")
        settings.write_text(f"listeners: {{default: {{type: tcp, bind: '127.0.0.1:{port}'}}}}\n")
        program = [sys.executable, "-m", broker_script.__name__, "-c", str(settings)]
        broker = at_end.enter_context(subprocess.Popen(program, stderr=subprocess.DEVNULL))
        at_end.callback(broker.terminate)
        address = f"mqtt://127.0.0.1:{port}/plant/line1?patience-s=30"
    rows = next(synthetic_web(684, seed=1, defect_fraction=1.0)).image
    try:
        door = open_door(address, note=print)
        inspect(ArraySource(rows), LineScanSegmenter(684), [door])
    except MagtilesError as error:
        raise SystemExit(str(error)) from error
    print(f"{door.state.delivered} confirmed by {door.state.name}, {door.state.dropped} dropped")
    print(f"row to confirmation: {door.state.latency_p50_ms:.0f} ms (median)")
