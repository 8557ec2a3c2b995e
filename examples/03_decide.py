"""Try other thresholds on one prediction: nothing is computed a second time."""

import magtiles_seg
from magtiles_seg.dataset.synthetic import synthetic_tile

result = magtiles_seg.segment(synthetic_tile(seed=5, defect="crack", exposure=4).image)

print("threshold  defect pixels  defects")
for threshold in (0.2, 0.4, 0.6, 0.8):
    other = result.redecide(threshold=threshold)
    print(f"{threshold:9.1f}  {other.mask.sum():13d}  {len(other.defects):7d}")

careful = result.redecide(reject_score=0.99, review_score=0.1)
print(f"score {result.score:.3f}: {result.verdict}; review from 0.1 to 0.99: {careful.verdict}")
