"""Draws the pictures of README and model card from one synthetic tile.

python docs/pictures/draw.py
"""

from __future__ import annotations

from pathlib import Path

from magtiles_seg import segment
from magtiles_seg.dataset.synthetic import synthetic_tile
from magtiles_seg.drawing import draw_panel
from magtiles_seg.marking import encode_result

HERE = Path(__file__).parent


def main() -> None:
    """Write the panel of a tile with a crack, for light and dark pages."""
    result = segment(synthetic_tile(0, defect="crack", exposure=4, size_hw=(320, 240)).image)
    for theme, name in (("light", "tile.png"), ("dark", "tile-dark.png")):
        (HERE / name).write_bytes(encode_result(draw_panel(result, theme=theme)))


if __name__ == "__main__":
    main()
