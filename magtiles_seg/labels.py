"""The classes: their order, names and colours. Nothing else in the package lists them."""

from __future__ import annotations

BACKGROUND = "background"

LABELS: tuple[str, ...] = (BACKGROUND, "blowhole", "break", "crack", "fray", "uneven")
"""Class names by index: what `Segmentation.classes` holds. Index 0 is sound surface."""

FREE = "free"
"""What a picture without any defect is filed under in the public data set (no class of its own)."""

_PALETTE_RGB: tuple[tuple[int, int, int], ...] = (
    (0, 0, 0),
    (230, 25, 75),
    (245, 130, 48),
    (255, 225, 25),
    (0, 160, 255),
    (60, 200, 90),
    (200, 70, 230),
    (70, 240, 240),
    (250, 190, 212),
    (170, 110, 40),
)


def color_rgb(class_index: int) -> tuple[int, int, int]:
    """Return the colour of a class as (R, G, B), each 0..255.

    Args:
        class_index: Index into a model's labels; 0 is background and black. Past the palette's
            end the colours repeat.
    """
    if class_index == 0:
        return _PALETTE_RGB[0]
    return _PALETTE_RGB[1 + (class_index - 1) % (len(_PALETTE_RGB) - 1)]
