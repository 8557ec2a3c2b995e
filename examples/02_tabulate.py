"""Segment many pictures with one loaded model, and write all defects as one CSV table."""

from pathlib import Path

from magtiles_seg import Segmenter
from magtiles_seg.dataset.synthetic import synthetic_tile

CLASSES = (None, "blowhole", "break", "crack", "fray", "uneven")

tiles = [synthetic_tile(seed, defect=label) for seed, label in enumerate(CLASSES)]

with Segmenter() as segmenter:
    results = segmenter.batch([tile.image for tile in tiles])

rows = []
for tile, result in zip(tiles, results, strict=True):
    header, *lines = result.defects_csv().splitlines()
    rows += [f"{tile.label},{line}" for line in lines]
    print(f"{tile.label:<9}{result.verdict:<8}{result.score:.3f}  {len(result.defects)} defects")

Path("out").mkdir(exist_ok=True)
Path("out/defects.csv").write_text("\n".join([f"drawn,{header}", *rows]) + "\n", encoding="utf-8")
