"""Find the defects of one tile: verdict and sizes are printed, mask and overlay are written."""

from pathlib import Path

import cv2

import magtiles_seg
from magtiles_seg.dataset.synthetic import synthetic_tile

OUT = Path("out")

OUT.mkdir(exist_ok=True)
cv2.imwrite(str(OUT / "tile.png"), synthetic_tile(seed=3, defect="blowhole", exposure=3).image)

result = magtiles_seg.segment(OUT / "tile.png", mm_per_px=0.1)

print(f"verdict: {result.verdict} (score {result.score:.3f})")
for defect in result.defects:
    print(
        f"  {defect.label}: {defect.area_px} px at {defect.bbox_xyxy_px}, "
        f"{defect.length_mm:.1f} x {defect.width_mm:.1f} mm, score {defect.score:.2f}"
    )
result.save(OUT, stem="tile")
print(f"written: {', '.join(sorted(str(path) for path in OUT.glob('tile*')))}")
