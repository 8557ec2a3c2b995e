"""How long a tile takes: the bundled model, end to end, beside the same network in eager torch."""

import sys

from magtiles_seg.export.bench import measure

rounds = int(sys.argv[1]) if sys.argv[1:] else 5
report = measure(rounds=rounds)

print(f"{report.height_px} x {report.width_px} px, {report.threads} threads, {report.architecture}")
print(f"eager torch fp32 {report.eager_ms:7.1f} ms")
print(f"Segmenter        {report.segmenter_ms:7.1f} ms, {report.provider}")
print(f"{report.speedup:.2f} times as fast, own overhead {report.overhead_fraction:.1%}")
