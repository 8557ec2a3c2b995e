"""The classes: their order, names and colours. Nothing else in the package lists them."""

from __future__ import annotations

from collections.abc import Sequence

BACKGROUND = "background"

LABELS: tuple[str, ...] = (BACKGROUND, "blowhole", "break", "crack", "fray", "uneven")
"""Class names by index: what `Segmentation.classes` holds. Index 0 is sound surface."""

FREE = "free"
"""What a picture without any defect is filed under in the public data set (no class of its own)."""

IGNORE = "ignore"
"""What a region is called that is neither trained on nor scored (no class of its own)."""

IGNORED = 255
"""Value of its pixels among class indices."""

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


MAX_LABELS = IGNORED
"""Class indices are uint8, and the last value is no class."""


def mistake_of_labels(labels: Sequence[str]) -> str | None:
    """Return what keeps names from being class names by index, or None."""
    got = f"got {list(labels)}"
    if len(labels) < 2 or len(labels) > MAX_LABELS:
        return f"expected {BACKGROUND!r} and 1 to {MAX_LABELS - 1} classes, {got}"
    if labels[0] != BACKGROUND:
        return f"expected {BACKGROUND!r} first, for the index 0 of a mask is sound; {got}"
    if any(not label.strip() or label != label.strip() for label in labels):
        return f"expected names without spaces around them, {got}"
    if not all(label.isprintable() for label in labels):
        return f"expected names without line breaks or characters that cannot be seen, {got}"
    folded = [label.casefold() for label in labels]
    if len(set(folded)) < len(labels):
        return f"expected names that differ by more than case, {got}"
    if FREE in folded:
        return f"{FREE!r} is what pictures without a defect are filed under; name the class else"
    if IGNORE in folded:
        return f"{IGNORE!r} is what is neither trained on nor scored; name the class else"
    return None


def color_rgb(class_index: int) -> tuple[int, int, int]:
    """Return the colour of a class as (R, G, B), each 0..255.

    Args:
        class_index: Index into a model's labels; 0 is background and black. Past the palette's
            end the colours repeat.
    """
    if class_index == 0:
        return _PALETTE_RGB[0]
    return _PALETTE_RGB[1 + (class_index - 1) % (len(_PALETTE_RGB) - 1)]
