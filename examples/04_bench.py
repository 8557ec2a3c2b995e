"""How long a tile takes, end to end, by every backend here and beside eager torch, in one run."""

import argparse

from magtiles_seg import MagtilesError
from magtiles_seg.bench.run import measure
from magtiles_seg.bench.table import as_markdown

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("rounds", type=int, nargs="?", default=3, help="turns (default: 3)")
rounds = parser.parse_args().rounds
try:
    report = measure(rounds=rounds, reference=rounds >= 20)
except MagtilesError as error:
    parser.error(str(error))
print(as_markdown(report))
fastest = min((row for row in report.rows if row.candidate), key=lambda row: row.p50_ms)
print(f"\nfastest: {fastest.name}, {fastest.p50_ms:.1f} ms a tile")
