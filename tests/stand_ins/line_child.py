"""A line PC in a process of its own: a web of specks and a scratch, under a model of one threshold.

`python line_child.py SOURCE [options of stream]`
"""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import cv2
import numpy as np
from bright_web import bright_segmenter

from magtiles_seg.cli import build_parser
from magtiles_seg.linescan.open import stream
from magtiles_seg.progress import print_above

WIDTH_PX, PICTURE_ROWS = 40, 64


def draw_web(folder: Path, pictures: int) -> list[tuple[int, int]]:
    """Write a web of pictures; return first and last line of its defects.

    A speck of two lines every 32 lines, and scratches of 300 lines with 100 between them.
    """
    rows = np.zeros((PICTURE_ROWS * pictures, WIDTH_PX), np.uint8)
    defects = []
    for top in range(10, len(rows) - 2, 32):
        rows[top : top + 2, 7:9] = 255
        defects.append((top, top + 1))
    for top in range(50, len(rows) - 300, 400):
        rows[top : top + 300, 30] = 255
        defects.append((top, top + 299))
    folder.mkdir()
    for number in range(pictures):
        piece = rows[PICTURE_ROWS * number : PICTURE_ROWS * (number + 1)]
        assert cv2.imwrite(str(folder / f"{number}.png"), piece)
    return sorted(defects)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    arguments = build_parser().parse_args(["stream", *sys.argv[1:]])
    stream(bright_segmenter(), arguments, tell=print_above)
