"""Measures what a model makes of fresh synthetic tiles: rejected, falsely rejected, class right.

    python tests/dataset/measure_first_sight.py --seeds 101 102 103 --tiles 200 [--model FILE]

Half of the tiles are sound; the others take the classes in turn. A tile's class is that of its
largest region. The seeds that are reported are to be named beforehand, and not picked.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path

import numpy as np

from magtiles_seg import Segmenter
from magtiles_seg.dataset.synthetic import DEFECTS, EXPOSURES, synthetic_tile


def measure(segmenter: Segmenter, seed: int, tiles: int) -> Counter[str]:
    """Count sound, defective, rejected and rightly named tiles, and confusions."""
    counts: Counter[str] = Counter()
    for index in range(tiles):
        defect = DEFECTS[index // 2 % len(DEFECTS)] if index % 2 else None
        tile_seed = int(np.random.default_rng((seed, index)).integers(2**32))
        exposure = EXPOSURES[index % len(EXPOSURES)]
        result = segmenter(synthetic_tile(tile_seed, defect=defect, exposure=exposure).image)
        kind = "defective" if defect else "sound"
        counts[kind] += 1
        if result.verdict == "accept":
            counts[f"missed {defect}"] += defect is not None
            continue
        counts[f"{kind} rejected"] += 1
        if defect:
            found = result.defects[0].label if result.defects else "nothing"
            counts["right" if found == defect else f"{defect} as {found}"] += 1
    return counts


def main() -> None:
    """Print a line a seed, and one for all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seeds", type=int, nargs="+", default=[101, 102, 103])
    parser.add_argument("--tiles", type=int, default=200)
    parser.add_argument("--model", type=Path)
    arguments = parser.parse_args()
    total: Counter[str] = Counter()
    with Segmenter(arguments.model, threads=1) as segmenter:
        for seed in arguments.seeds:
            counts = measure(segmenter, seed, arguments.tiles)
            total += counts
            sys.stdout.write(f"seed {seed}: {describe(counts)}\n")
    sys.stdout.write(f"all: {describe(total)}\n")


def describe(counts: Counter[str]) -> str:
    """Return the three shares, and what went wrong."""
    rejected = counts["defective rejected"]
    wrong = {
        key: value for key, value in sorted(counts.items()) if " as " in key or "missed" in key
    }
    return (
        f"defective rejected {rejected / counts['defective']:.1%}, "
        f"sound rejected {counts['sound rejected'] / counts['sound']:.1%}, "
        f"class right {counts['right'] / max(1, rejected):.1%} {wrong}"
    )


if __name__ == "__main__":
    main()
