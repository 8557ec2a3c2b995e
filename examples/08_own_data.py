"""Draw a data set of another kind, cloth with stains and cuts, as `layout: folder` reads it."""

from pathlib import Path

import cv2
import numpy as np

LABELS = ("background", "stain", "cut")
OUT, COUNT, H, W = Path("cloth"), 120, 256, 320


def cloth(rng: np.random.Generator) -> np.ndarray:
    """Return sound cloth, (H, W) float: warp and weft, uneven light, grain."""
    y, x = np.mgrid[:H, :W]
    across, along = rng.uniform(5, 8, 2)
    weave = 14 * np.sin(2 * np.pi * x / across) * np.sin(2 * np.pi * y / along)
    light = cv2.resize(rng.normal(120, 15, (3, 3)), (W, H), interpolation=cv2.INTER_CUBIC)
    return np.asarray(light + weave + rng.normal(0, 5, (H, W)))


def defect(rng: np.random.Generator, label: str) -> np.ndarray:
    """Return where a defect lies, (H, W) uint8 0 or 255."""
    mask = np.zeros((H, W), np.uint8)
    x, y = int(rng.uniform(0.2, 0.8) * W), int(rng.uniform(0.2, 0.8) * H)
    if label == "stain":
        axes = (int(rng.uniform(8, 30)), int(rng.uniform(8, 30)))
        return cv2.ellipse(mask, (x, y), axes, float(rng.uniform(0, 180)), 0, 360, 255, -1)
    dx, dy = (int(value) for value in rng.normal(0, 40, 2))
    return cv2.line(mask, (x, y), (x + dx, y + dy), 255, int(rng.integers(2, 5)))


for folder in ("images", "masks"):
    (OUT / folder).mkdir(parents=True, exist_ok=True)
for number in range(COUNT):
    rng, index = np.random.default_rng(number), number % 4 % 3  # every second one is sound
    mask = defect(rng, LABELS[index]) if index else np.zeros((H, W), np.uint8)
    change = cv2.GaussianBlur(mask, (5, 5), 1) / 255 * rng.uniform(18, 45) * (-1, -1, 1)[index]
    cv2.imwrite(f"{OUT}/images/{number:03}.png", (cloth(rng) + change).clip(0, 255).astype("u1"))
    cv2.imwrite(f"{OUT}/masks/{number:03}.png", mask // 255 * index)
print(f"{COUNT} pictures and masks of class indices in {OUT}/: {', '.join(LABELS)}")
