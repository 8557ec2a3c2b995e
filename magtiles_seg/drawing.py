"""How an answer is shown to people: one drawing for the command line, `save`, demo and reports.

A region has the colour of its own class, an outline, and the number of its row in the tables. The
panel puts the input beside it, with the verdict, a legend, and enlargements of small regions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from magtiles_seg.labels import color_rgb

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from magtiles_seg.regions import Defect
    from magtiles_seg.result import Segmentation

NUMBERED: Final = 30
"""So many regions get a number, the largest first; more numbers hide the picture."""

_TINT = 0.35
_SIDE_PX, _PANEL_SIDE_PX = 900, 560
_MOST_ENLARGED = 4
_RING_PX = 14  # a region that is drawn smaller gets a ring
_INSETS, _INSET_PX, _SMALL = 4, 150, 1 / 7
_GAP_PX, _LINE_PX = 14, 24
_THEMES: Final = {
    "light": ("#ffffff", "#1f2328", "#59636e"),
    "dark": ("#0d1117", "#f0f6fc", "#9198a1"),
}
_VERDICT_RGB: Final = {"accept": "#1a7f37", "review": "#9a6700", "reject": "#cf222e"}


def draw_overlay(
    image: NDArray[np.uint8], classes: NDArray[np.uint8], alpha: float
) -> NDArray[np.uint8]:
    """Tint each defect pixel of a picture with its class's colour.

    Args:
        image: (H, W) uint8.
        classes: (H, W) uint8; 0 is left as it is.
        alpha: Share of the colour, 0..1.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    drawn = np.repeat(image[:, :, None], 3, axis=2)
    inside = classes > 0
    palette = np.array([color_rgb(index) for index in range(int(classes.max()) + 1)])
    tinted = (1 - alpha) * image[inside, None] + alpha * palette[classes[inside]]
    drawn[inside] = np.rint(tinted).astype(np.uint8)
    return drawn


def region_classes(result: Segmentation) -> NDArray[np.uint8]:
    """Return the class of the region that each pixel belongs to, (H, W) uint8; 0 is sound.

    `result.classes` tells the pixels of a region apart; what is drawn has one colour a region.
    """
    drawn = np.zeros_like(result.mask)
    if not result.defects:
        return drawn
    _, parts, stats, _ = cv2.connectedComponentsWithStats(result.mask, connectivity=8)
    places = [tuple(row) for row in stats[1:, [4, 1, 0]].tolist()]  # area, top, left
    order = sorted(range(len(places)), key=lambda at: (-places[at][0], *places[at][1:]))
    palette = np.zeros(len(stats), dtype=np.uint8)
    for part, defect in zip(order, result.defects, strict=True):  # both are sorted alike
        palette[part + 1] = result.labels.index(defect.label)
    return np.asarray(palette[parts], dtype=np.uint8)


def draw_mask(result: Segmentation) -> NDArray[np.uint8]:
    """Return the mask as a picture, (H, W) uint8: 0 sound, 255 defect."""
    return result.mask * np.uint8(255)


def draw_heat(result: Segmentation) -> NDArray[np.uint8]:
    """Return the probability as colours from black (0) to pale yellow (1): (H, W, 3) uint8 RGB."""
    return _heat(result.probability * 255)


def _heat(levels: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Colour levels 0..255 from black to pale yellow: (H, W, 3) uint8 RGB."""
    colours = cv2.applyColorMap(np.rint(levels).astype(np.uint8), cv2.COLORMAP_INFERNO)
    return np.asarray(cv2.cvtColor(colours, cv2.COLOR_BGR2RGB), dtype=np.uint8)


def draw_numbered(result: Segmentation) -> NDArray[np.uint8]:
    """Draw the regions on the picture: tinted, outlined, numbered as in the table.

    Returns:
        (f H, f W, 3) uint8 RGB; a small picture is enlarged by a whole factor up to 4.
    """
    factor = _factor(result)
    classes = region_classes(result)
    drawn = _scaled(draw_overlay(result.image, classes, _TINT), factor, cv2.INTER_LINEAR)
    drawn = _outlined(drawn, classes, factor)
    _write_numbers(drawn, result, factor)
    return drawn


def draw_plain(result: Segmentation) -> NDArray[np.uint8]:
    """Return the picture itself as large as `draw_numbered` draws it: (f H, f W, 3) uint8 RGB."""
    grey = np.repeat(result.image[:, :, None], 3, axis=2)
    return _scaled(grey, _factor(result), cv2.INTER_LINEAR)


def _factor(result: Segmentation) -> int:
    longest: int = max(result.mask.shape)
    return min(_MOST_ENLARGED, max(1, _SIDE_PX // longest))


def draw_panel(result: Segmentation, *, theme: str = "light") -> NDArray[np.uint8]:
    """Draw the input and the answer side by side, with verdict, legend and enlargements.

    A picture that is not accepted and has no region shows its heat map and why.

    Args:
        result: The answer.
        theme: "light" or "dark", of the ground.

    Returns:
        (h, w, 3) uint8 RGB.
    """
    ground, ink, faint = _THEMES[theme]
    scale = _panel_scale(result.mask.shape)
    left = _scaled(np.repeat(result.image[:, :, None], 3, axis=2), scale, cv2.INTER_LINEAR)
    right, captions = _answer(result, scale)
    insets = _insets(result)
    rows, upright = _arrange(left, right)
    width = max(rows.size[0], len(insets) * (_INSET_PX + _GAP_PX) - _GAP_PX, 420)
    legend = _legend_lines(result, captions, width)
    below = _LINE_PX * len(legend) + (_INSET_PX + _GAP_PX if insets else 0)
    size = (width + 2 * _GAP_PX, 48 + rows.size[1] + _GAP_PX + below + _GAP_PX)
    panel = Image.new("RGB", size, ground)
    pen = ImageDraw.Draw(panel)
    _write_header(pen, result, ink, faint, narrow=width < 520)
    ground_rows = Image.new("RGB", rows.size, ground)
    ground_rows.paste(rows, (0, 0), _gap_mask(left, right, upright))
    panel.paste(ground_rows, (_GAP_PX, 48))
    y = 48 + rows.size[1] + _GAP_PX
    for color, text in legend:
        if color is not None:
            pen.rounded_rectangle((_GAP_PX, y + 3, _GAP_PX + 16, y + 19), 3, fill=color)
        at = (_GAP_PX + (24 if color is not None else 0), y + 11)
        pen.text(at, text, fill=ink, font=_font(15), anchor="lm")
        y += _LINE_PX
    for index, inset in enumerate(insets):
        panel.paste(Image.fromarray(inset), (_GAP_PX + index * (_INSET_PX + _GAP_PX), y + 4))
    return np.asarray(panel, dtype=np.uint8)


def plate(
    drawn: NDArray[np.uint8], text: str, place_px: tuple[int, int, int], color: tuple[int, int, int]
) -> None:
    """Write a short text on a coloured plate, above a box, or beside it where there is no room.

    Args:
        drawn: (H, W, 3) uint8, is written on.
        text: A number.
        place_px: Left, top and right of the box.
        color: Of the plate.
    """
    left, top, right = place_px
    (width, height), _ = cv2.getTextSize(text, cv2.FONT_HERSHEY_DUPLEX, 0.7, 1)
    width, height = width + 10, height + 10
    x, y = (left + right - width) // 2, top - height - 6
    if y < 0:  # no room above: beside it, which hides nothing of it
        y = max(0, top)
        x = right + 6 if right + 6 + width <= drawn.shape[1] else left - width - 6
    x = int(np.clip(x, 0, max(0, drawn.shape[1] - width)))
    cv2.rectangle(drawn, (x, y), (x + width, y + height), color, cv2.FILLED)
    at = (x + 5, y + height - 5)
    cv2.putText(drawn, text, at, cv2.FONT_HERSHEY_DUPLEX, 0.7, (0, 0, 0), 1, cv2.LINE_AA)


def _scaled(picture: NDArray[np.uint8], scale: float, how: int) -> NDArray[np.uint8]:
    if scale == 1:
        return picture.copy()
    how = cv2.INTER_AREA if scale < 1 and how == cv2.INTER_LINEAR else how
    height, width = (max(1, round(side * scale)) for side in picture.shape[:2])
    return np.asarray(cv2.resize(picture, (width, height), interpolation=how), dtype=np.uint8)


def _outlined(
    drawn: NDArray[np.uint8], classes: NDArray[np.uint8], scale: float
) -> NDArray[np.uint8]:
    enlarged = _scaled(classes, scale, cv2.INTER_NEAREST)
    for index in np.unique(enlarged[enlarged > 0]).tolist():
        outlines, _ = cv2.findContours(
            (enlarged == index).astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE
        )
        cv2.drawContours(drawn, outlines, -1, color_rgb(index), max(1, int(scale) // 2))
    return drawn


def _write_numbers(drawn: NDArray[np.uint8], result: Segmentation, scale: float) -> None:
    for number, defect in enumerate(result.defects[:NUMBERED], start=1):
        x0, y0, x1, y1 = (round(scale * side) for side in defect.bbox_xyxy_px)
        color = color_rgb(result.labels.index(defect.label))
        if max(x1 - x0, y1 - y0) < _RING_PX:
            centre = ((x0 + x1) // 2, (y0 + y1) // 2)
            cv2.circle(drawn, centre, _RING_PX, color, 2, cv2.LINE_AA)
            x0, y0 = x0 - _RING_PX // 2, y0 - _RING_PX // 2
        plate(drawn, str(number), (x0, y0, x1), color)


def _panel_scale(shape_hw: tuple[int, ...]) -> float:
    scale = _PANEL_SIDE_PX / max(shape_hw)
    return min(float(_MOST_ENLARGED), float(int(scale))) if scale >= 1 else scale


def _answer(result: Segmentation, scale: float) -> tuple[NDArray[np.uint8], list[str]]:
    """Return the answer as a picture, and what must be said of it."""
    if result.defects or result.verdict == "accept":
        classes = region_classes(result)
        drawn = _scaled(draw_overlay(result.image, classes, _TINT), scale, cv2.INTER_LINEAR)
        drawn = _outlined(drawn, classes, scale)
        _write_numbers(drawn, result, scale)
        return drawn, [] if result.defects else ["no region found"]
    strongest = max(1e-6, float(result.probability.max()))
    heat = _heat(result.probability * (255 / strongest))
    grey = np.repeat(result.image[:, :, None], 3, axis=2)
    mixed = cv2.addWeighted(grey, 0.45, heat, 0.75, 0)
    why = [
        f"heat map, not regions: nowhere {result.decision.min_area_px} px or more together reach "
        f"{result.decision.threshold:.2f} (highest: {strongest:.2f});",
        f"the score is made of the {result.decision.score_top_k_px} likeliest pixels together",
    ]
    return _scaled(np.asarray(mixed, np.uint8), scale, cv2.INTER_LINEAR), why


def _arrange(left: NDArray[np.uint8], right: NDArray[np.uint8]) -> tuple[Image.Image, bool]:
    """Put two pictures beside each other, or below where they are wide; tell whether below."""
    height, width = left.shape[:2]
    below = width > 1.5 * height
    axis = 0 if below else 1
    gap = np.zeros((_GAP_PX, width, 3) if below else (height, _GAP_PX, 3), np.uint8)
    return Image.fromarray(np.concatenate([left, gap, right], axis=axis)), below


def hatch(picture: NDArray[np.uint8], rgb: tuple[int, int, int], *, text: str = "") -> None:
    """Strike a part of a picture out: darkened, with slanted lines, and a word where it fits.

    Args:
        picture: (H, W, 3) uint8, a view; is drawn on.
        rgb: Of the lines and the word.
        text: Says why.
    """
    height, width = picture.shape[:2]
    if not height or not width:
        return
    slant = np.add.outer(np.arange(height), np.arange(width)) % 16 < 3
    picture[:] = picture // 3
    picture[slant] = rgb
    (wide, high), _ = cv2.getTextSize(text, cv2.FONT_HERSHEY_DUPLEX, 0.6, 1)
    if text and wide + 16 <= width and high + 16 <= height:
        x, y = (width - wide) // 2, (height + high) // 2
        picture[y - high - 6 : y + 8, x - 8 : x + wide + 8] = 20
        drawn = np.ascontiguousarray(picture)
        cv2.putText(drawn, text, (x, y), cv2.FONT_HERSHEY_DUPLEX, 0.6, rgb, 1, cv2.LINE_AA)
        picture[:] = drawn


def _gap_mask(left: NDArray[np.uint8], right: NDArray[np.uint8], below: bool) -> Image.Image:
    solid = [np.full(part.shape[:2], 255, np.uint8) for part in (left, right)]
    height, width = left.shape[:2]
    gap = np.zeros((_GAP_PX, width) if below else (height, _GAP_PX), np.uint8)
    return Image.fromarray(np.concatenate([solid[0], gap, solid[1]], axis=0 if below else 1))


def _write_header(
    pen: ImageDraw.ImageDraw, result: Segmentation, ink: str, faint: str, *, narrow: bool
) -> None:
    word = result.verdict.upper()
    font = _font(18)
    wide = int(font.getlength(word)) + 24
    pen.rounded_rectangle((_GAP_PX, 10, _GAP_PX + wide, 38), 6, fill=_VERDICT_RGB[result.verdict])
    pen.text((_GAP_PX + wide / 2, 24), word, fill="white", font=font, anchor="mm")
    x = _GAP_PX + wide + 12
    score = f"score {result.score:.3f}"
    pen.text((x, 24), score, fill=ink, font=font, anchor="lm")
    limit = f"reject from {result.decision.reject_score:.3f}"
    if not narrow:
        limit += "   input | answer"
    pen.text((x + font.getlength(score) + 14, 25), limit, fill=faint, font=_font(15), anchor="lm")


def _legend_lines(
    result: Segmentation, captions: list[str], width_px: int
) -> list[tuple[tuple[int, int, int] | None, str]]:
    """Return a colour and a text a line: a line a class, with the numbers of its regions."""
    by_label: dict[str, list[tuple[int, Defect]]] = {}
    for number, defect in enumerate(result.defects, start=1):
        by_label.setdefault(defect.label, []).append((number, defect))
    lines: list[tuple[tuple[int, int, int] | None, str]] = []
    for label, regions in by_label.items():
        each = [
            f"{number}: {defect.area_px} px, p {defect.score:.2f}" for number, defect in regions
        ]
        shown = each
        while len(shown) > 1 and _font(15).getlength(f"{label}   {'; '.join(shown)}; ...") > (
            width_px - 24
        ):
            shown = shown[:-1]
        more = "" if len(shown) == len(each) else f"; and {len(each) - len(shown)} more"
        lines.append((color_rgb(result.labels.index(label)), f"{label}   {'; '.join(shown)}{more}"))
    return lines + [(None, piece) for text in captions for piece in _wrapped(text, width_px)]


def _wrapped(text: str, width_px: int) -> list[str]:
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if _font(15).getlength(longer) > width_px and lines[-1]:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


def _insets(result: Segmentation) -> list[NDArray[np.uint8]]:
    """Return enlargements of the regions that are small, (150, 150, 3) uint8 RGB each."""
    height, width = result.mask.shape
    classes = region_classes(result)
    insets: list[NDArray[np.uint8]] = []
    for number, defect in enumerate(result.defects[:NUMBERED], start=1):
        x0, y0, x1, y1 = defect.bbox_xyxy_px
        side = max(x1 - x0, y1 - y0)
        if side > _SMALL * max(height, width) or len(insets) == _INSETS:
            continue
        reach = min(max(2 * side, 24), height, width)
        top = int(np.clip((y0 + y1 - reach) // 2, 0, height - reach))
        left = int(np.clip((x0 + x1 - reach) // 2, 0, width - reach))
        window = (slice(top, top + reach), slice(left, left + reach))
        scale = _INSET_PX / reach
        close = _scaled(np.repeat(result.image[window][:, :, None], 3, 2), scale, cv2.INTER_CUBIC)
        close = _outlined(close, classes[window], scale)
        color = color_rgb(result.labels.index(defect.label))
        cv2.rectangle(close, (0, 0), (_INSET_PX - 1, _INSET_PX - 1), color, 3)
        plate(close, str(number), (0, 0, 0), color)
        insets.append(close)
    return insets


def _font(size_px: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size_px)
