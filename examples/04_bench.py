"""How long a tile takes, end to end, by every backend here and beside eager torch, in one run."""

import sys

from magtiles_seg.bench.run import measure
from magtiles_seg.bench.table import as_markdown

word = sys.argv[1] if sys.argv[1:] else "3"
if not word.isdecimal() or int(word) < 1:
    sys.exit(f"the number of rounds is {word!r}; expected a whole number, at least 1")
rounds = int(word)
report = measure(rounds=rounds, reference=rounds >= 20)
print(as_markdown(report))
fastest = min((row for row in report.rows if row.candidate), key=lambda row: row.p50_ms)
print(f"\nfastest: {fastest.name}, {fastest.p50_ms:.1f} ms a tile")
