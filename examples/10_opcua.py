"""Serve each defect over OPC UA, and read as a client what came while it was away."""

import json
import socket
import time

from asyncua.sync import Client

from magtiles_seg import LineScanSegmenter, Segmenter
from magtiles_seg.dataset.synthetic.web import synthetic_web
from magtiles_seg.linescan.plant.address import open_door
from magtiles_seg.linescan.plant.opcua import NAMESPACE

with socket.create_server(("127.0.0.1", 0)) as free:
    port = free.getsockname()[1]
door = open_door(f"opcua://127.0.0.1:{port}", note=print)

rows = next(synthetic_web(684, seed=1, defect_fraction=1.0)).image
with Segmenter() as segmenter:
    web = LineScanSegmenter(684, segmenter)
    for defect in [*web.push(rows), *web.close()]:
        door.write(defect)
while door.state.waiting:
    time.sleep(0.1)

with Client(f"opc.tcp://127.0.0.1:{port}/magtiles-seg") as client:
    space = client.get_namespace_index(NAMESPACE)
    path = [f"{space}:VisionSystem", f"{space}:ResultManagement"]
    management = client.nodes.objects.get_child(path)
    results, forgotten = management.call_method(f"{space}:GetResultsAfter", "")
for result in map(json.loads, results):
    print(f"{result['id']}: {result['label']}, lines {result['first_line']}-{result['last_line']}")
print(f"{len(results)} results, {forgotten} no longer kept")
door.close()
