"""Inspect a web of tiles under a line camera: each defect once, wherever the blocks are cut.

TILES=5000 in the environment makes it a long run.
"""

import os

from magtiles_seg import LineScanSegmenter, Segmenter, WebDefect
from magtiles_seg.dataset.synthetic.web import synthetic_web
from magtiles_seg.linescan.sinks import JsonLinesSink, RejectSignal
from magtiles_seg.linescan.sources import ArraySource, Replay
from magtiles_seg.linescan.stream import inspect

TILES = os.environ.get("TILES") or "12"
if not TILES.isdecimal() or int(TILES) < 1:
    raise SystemExit(f"TILES={TILES}: expected a whole number, at least 1")
WIDTH_PX, PER_ROW = 684, 3

drawn = synthetic_web(WIDTH_PX, seed=1, defect_fraction=0.5, distinct=6)
web_count = -(-int(TILES) // PER_ROW)
web_rows = [next(drawn) for _ in range(min(20, web_count))]
pictures = (web_rows[index % len(web_rows)].image for index in range(web_count))
camera = Replay(ArraySource(pictures), lost_fraction=0.2, seed=2)


def reject(defect: WebDefect) -> None:
    """Stand in for the gate."""
    print(f"reject: {defect.label}, lines {defect.first_line}-{defect.last_line}")


gate = RejectSignal(reject, min_score=0.6, min_area_px=300)
with Segmenter() as segmenter:
    web = LineScanSegmenter(WIDTH_PX, segmenter, mm_per_px=0.1, strip_rows=512)
    report = inspect(camera, web, [JsonLinesSink("out/web.jsonl"), gate])

print(f"{report.lines} lines, {report.defects} defects, {report.uninspected_mm:.1f} mm not seen")
print(f"row to verdict: {report.latency_p99_ms:.0f} ms (p99)")
print(f"bookkeeping: {report.bookkeeping_s / report.model_s:.1%} of the model's time")
