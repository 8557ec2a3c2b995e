"""How long one tile takes: the bundled model beside the same network in eager torch fp32."""

import statistics
import tempfile
import time
from pathlib import Path

from magtiles_seg import Segmenter
from magtiles_seg.dataset.synthetic import synthetic_tile
from magtiles_seg.model.checkpoint import save_checkpoint
from magtiles_seg.model.network import build_network

ROUNDS = 30

image = synthetic_tile(seed=0, size_hw=(288, 220)).image
bundled = Segmenter()
with tempfile.TemporaryDirectory() as folder:  # speed does not depend on the weights' values
    checkpoint = Path(folder) / "same.safetensors"
    save_checkpoint(checkpoint, build_network(bundled.spec.card.architecture), {})
    eager = Segmenter(checkpoint)

times_ms: dict[str, list[float]] = {"onnxruntime": [], "eager torch fp32": []}
for _ in range(ROUNDS):  # in turns, so that a busy moment meets both
    for name, segmenter in zip(times_ms, (bundled, eager), strict=True):
        segmenter(image)  # the other one has just had the caches
        start = time.perf_counter()
        segmenter(image)
        times_ms[name].append(1000 * (time.perf_counter() - start))

medians = {name: statistics.median(values) for name, values in times_ms.items()}
for name, median in medians.items():
    print(f"{name:<17}{median:7.1f} ms")
ratio = medians["eager torch fp32"] / medians["onnxruntime"]
print(f"onnxruntime is {ratio:.2f} times as fast ({bundled.spec.threads} threads)")
