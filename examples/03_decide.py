"""Try other thresholds on one prediction: nothing is computed a second time."""

import magtiles_seg
from magtiles_seg.dataset.synthetic import synthetic_tile

result = magtiles_seg.segment(synthetic_tile(seed=0, defect="blowhole", exposure=4).image)

print("threshold  defect pixels  defects")
for threshold in (0.2, 0.4, 0.6, 0.8):
    other = result.redecide(threshold=threshold)
    print(f"{threshold:9.1f}  {other.mask.sum():13d}  {len(other.defects):7d}")

careful = result.redecide(review_score=0.1, reject_score=0.9)
print(f"score {result.score:.3f}: {result.verdict}")
print(f"with a band from 0.1 to 0.9 that a person looks at: {careful.verdict}")
