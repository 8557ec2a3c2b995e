"""Makes synthetic magnetic tiles: seeded pictures with exact masks, in six exposures.

They stand in for the real pictures, which may not be redistributed, in tests, examples and docs. A
tile is drawn once (`textures`), gets at most one defect (`lifelike`) and is then photographed under
one of six exposures: those of one seed show the same physical tile and share the mask.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from magtiles_seg.dataset.synthetic.lifelike import draw_lifelike
from magtiles_seg.dataset.synthetic.textures import FloatImage, draw_surface
from magtiles_seg.errors import ConfigError, DataError
from magtiles_seg.files import free_bytes, write
from magtiles_seg.labels import BACKGROUND, FREE, LABELS

EXPOSURES: Final = (1, 2, 3, 4, 5, 6)
DEFECTS: Final = tuple(label for label in LABELS if label != BACKGROUND)
MIN_SIDE_PX: Final = 64
SYNTHETIC: Final = "synthetic:"
"""What the source of drawn tiles begins with, see `read_source`."""

# How often which format occurs in the public set: (weight, height, width).
_FORMATS: Final = (
    (172, 278, 210),
    (161, 362, 252),
    (124, 358, 490),
    (105, 318, 212),
    (97, 274, 116),
    (91, 362, 362),
    (116, 320, 520),
    (85, 240, 600),
    (90, 345, 300),
    (56, 400, 245),
    (33, 282, 150),
)
_FIRST_NUM: Final = (
    1_000_000  # above every number of the real set, whose known slips are listed by number
)
_TILE_BYTES: Final = 200_000  # six pictures and masks
_MOST_DIGITS: Final = 40
_DRAW, _DEFECT, _PHOTO = 1, 2, 3  # independent random streams of one seed


@dataclass(frozen=True, eq=False)
class SyntheticTile:
    """One photograph of a synthetic tile.

    Attributes:
        image: (H, W) uint8 picture.
        mask: (H, W) uint8, 0 sound / 1 defect, exact: outside it and a rim of 3 px the picture is
            that of the sound tile.
        label: Class of the defect, or `"free"`.
    """

    image: NDArray[np.uint8]
    mask: NDArray[np.uint8]
    label: str


def synthetic_tile(
    seed: int,
    *,
    defect: str | None = None,
    exposure: int = 1,
    size_hw: tuple[int, int] | None = None,
) -> SyntheticTile:
    """Draw one magnetic tile: the same arguments always give the same picture.

    Args:
        seed: Decides the tile; any whole number from 0.
        defect: One of the defect classes of `labels.LABELS`; None for a sound tile.
        exposure: 1 (dark) to 6 (bright): another light on the same tile and defect.
        size_hw: Height and width, each at least 64 px; None draws one as they occur in the real
            set, 222-403 x 103-632.

    Raises:
        ConfigError: An argument is invalid.

    Example:
        >>> tile = synthetic_tile(7, defect="blowhole", exposure=3)
        >>> tile.image.shape == tile.mask.shape, int(tile.mask.max())
        (True, 1)
    """
    _check(seed, defect, exposure, size_hw)
    size_hw = size_hw or _usual_size(_stream(seed, _DRAW, 0))
    surface = draw_surface(_stream(seed, _DRAW, 1), size_hw)
    brightness = surface.shade * (1 + surface.texture)
    mask = np.zeros(size_hw, dtype=np.uint8)
    if defect is not None:
        layer = draw_lifelike(_stream(seed, _DEFECT, DEFECTS.index(defect)), surface, defect)
        brightness += layer.alpha * (layer.brightness - brightness)
        mask = (layer.alpha >= 0.5).astype(np.uint8)
    image = _photograph(brightness, seed, exposure)
    return SyntheticTile(image=image, mask=mask, label=defect or FREE)


def write_dataset(
    root: Path,
    *,
    tiles: int = 50,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write a small data set in the public layout: `MT_<Class>/Imgs/exp<E>_num_<N>.{jpg,png}`.

    Every second tile is sound; the others take the defect classes in turn. A tile is six pictures
    whose numbers lie close together; the next tile's are more than 100 further, as in the real set.

    Args:
        root: Folder to write into; made when missing.
        tiles: How many physical tiles, six pictures each. Ten hold every class; with 50 each part
            of each fold does.
        seed: Decides all pictures.
        progress: Called with (tiles written, tiles) after each tile.

    Returns:
        `root`.

    Raises:
        ConfigError: `tiles` or `seed` is invalid.
        DataError: `root` already holds a data set, or its disk has no room for so many tiles.
    """
    if tiles < 1:
        msg = f"write_dataset: tiles must be at least 1, got {tiles}; ten hold every class"
        raise ConfigError(msg)
    _check(seed, None, EXPOSURES[0], None)
    root = Path(root)
    if any(root.glob("MT_*")):
        msg = f"{root}: expected no data set there, found MT_* folders; remove them or go elsewhere"
        raise DataError(msg)
    needed, free = tiles * _TILE_BYTES, free_bytes(root)
    if needed > free:
        raise DataError(
            f"{tiles:,} synthetic tiles take about {needed / 1e9:,.1f} GB, but the disk of {root} "
            f"has {free / 1e9:,.1f} GB left; ask for fewer, or go elsewhere"
        )
    for label in (*DEFECTS, FREE):
        (root / f"MT_{label.capitalize()}" / "Imgs").mkdir(parents=True)
    for index in range(tiles):
        defect = DEFECTS[index // 2 % len(DEFECTS)] if index % 2 else None
        _write_tile(root, index, seed, defect)
        if progress is not None:
            progress(index + 1, tiles)
    return root


def read_source(source: str, **usual: int) -> dict[str, int]:
    """Return the options of a source such as `synthetic:tiles=50,seed=0`; each may be left out.

    Args:
        source: Begins with `SYNTHETIC`.
        usual: The options that the reader knows, with the values of those that are left out.

    Raises:
        ConfigError: An option is unknown, or its value is no whole number.
    """
    options = dict(usual)
    for item in filter(None, source.removeprefix(SYNTHETIC).split(",")):
        name, _, value = (part.strip() for part in item.partition("="))
        if name not in usual or not value.isdecimal() or len(value) > _MOST_DIGITS:
            expected = ",".join(f"{name}={value}" for name, value in usual.items())
            raise ConfigError(
                f"source {source!r:.80}: option {item!r:.80} is unknown; expected "
                f"{SYNTHETIC}{expected}"
            )
        options[name] = int(value)
    return options


def _write_tile(root: Path, index: int, seed: int, defect: str | None) -> None:
    """Write the six exposures of one tile, each a JPEG with its PNG mask."""
    rng = np.random.default_rng((seed, index))
    tile_seed = int(rng.integers(2**32))
    num = _FIRST_NUM + 300 * index
    for exposure in EXPOSURES:
        tile = synthetic_tile(tile_seed, defect=defect, exposure=exposure)
        folder = root / f"MT_{tile.label.capitalize()}" / "Imgs"
        stem = folder / f"exp{exposure}_num_{num}"
        _write(stem.with_suffix(".jpg"), tile.image, [cv2.IMWRITE_JPEG_QUALITY, 95])
        _write(stem.with_suffix(".png"), tile.mask * np.uint8(255), [])
        num += int(rng.integers(12, 36))


def _write(path: Path, image: NDArray[np.uint8], options: list[int]) -> None:
    """Encode by the suffix and write; `cv2.imwrite` would swallow a failure and some paths."""
    _, encoded = cv2.imencode(path.suffix, image, options)
    write(path, encoded.tobytes())


def _photograph(brightness: FloatImage, seed: int, exposure: int) -> NDArray[np.uint8]:
    """Return the picture, (H, W) uint8: exposure time, lamp position, sensor noise, saturation."""
    h, w = brightness.shape
    albedo = float(np.exp(_stream(seed, _PHOTO, 0).normal(0, 0.12)))
    rng = _stream(seed, _PHOTO, exposure)
    grey = albedo * (49 + 17 * exposure) * float(rng.uniform(0.96, 1.04))
    tilt_x, tilt_y = rng.normal(0, 0.04, 2).astype(np.float32)
    light_x = grey * (1 + tilt_x * np.linspace(-1, 1, w, dtype=np.float32))
    light_y = 1 + tilt_y * np.linspace(-1, 1, h, dtype=np.float32)
    contrast = np.float32(rng.uniform(0.94, 1.06))
    lit = (brightness * contrast + (1 - contrast)) * light_x[None, :] * light_y[:, None]
    lit += rng.standard_normal((h, w), dtype=np.float32)
    return np.asarray(np.clip(np.rint(lit), 0, 255), dtype=np.uint8)


def _usual_size(rng: np.random.Generator) -> tuple[int, int]:
    """Return (height, width) as they occur in the real set."""
    weights = np.array([weight for weight, _, _ in _FORMATS], dtype=np.float64)
    _, height, width = _FORMATS[int(rng.choice(len(_FORMATS), p=weights / weights.sum()))]
    h = int(np.clip(round(height * rng.normal(1, 0.03)), 222, 403))
    w = int(np.clip(round(width * rng.normal(1, 0.03)), 103, 632))
    return h, w


def _stream(seed: int, purpose: int, part: int) -> np.random.Generator:
    """Return the generator of one purpose: changing one part of a tile leaves the others alone."""
    return np.random.default_rng((seed, purpose, part))


def _check(seed: int, defect: str | None, exposure: int, size_hw: tuple[int, int] | None) -> None:
    if seed < 0:
        msg = f"synthetic tile: seed must be 0 or more, got {seed}"
        raise ConfigError(msg)
    if defect is not None and defect not in DEFECTS:
        msg = f"synthetic tile: defect must be None or one of {', '.join(DEFECTS)}, got {defect!r}"
        raise ConfigError(msg)
    if exposure not in EXPOSURES:
        msg = f"synthetic tile: exposure must be 1 to 6, got {exposure}"
        raise ConfigError(msg)
    if size_hw is not None and min(size_hw) < MIN_SIDE_PX:
        msg = f"synthetic tile: both sides must be at least {MIN_SIDE_PX} px, got size_hw={size_hw}"
        raise ConfigError(msg)
