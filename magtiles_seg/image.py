"""The one door for pixels: a path, bytes, a Pillow image or an array becomes (H, W) uint8.

| input | what becomes of it |
|---|---|
| 8-bit grey | unchanged |
| colour | grey = 0.299 R + 0.587 G + 0.114 B, rounded; arrays are RGB, not BGR |
| alpha, transparent colour | composited over black: where nothing was seen is no light |
| palette, CMYK, YCbCr, HSV | converted to RGB by Pillow, then to grey |
| grey of 1, 2 or 4 bits | 0 and the highest level become 0 and 255 |
| 16-bit grey | value / 257, rounded: 65535 becomes 255 |
| 16-bit colour | an array as 16-bit grey; a file is read at 8 bits (its high byte) |
| 16-bit, brightest level 1 to 4095 | refused: unscaled 12-bit data would come out black |
| the same, colour of a file | refused, all black too: the high byte cannot tell them apart |
| 16-bit colour PNG with a transparent colour | refused: its high byte is not enough to find it |
| TIFF with white as zero | inverted: what is shown counts, as in every other file |
| TIFF, BigTIFF | grey, palette, RGB, CMYK; packed or as JPEG; three planes only of 8 bits |
| TIFF of other bits, signed, float, CIELab, old JPEG | refused, by its tags |
| TIFF, 4 samples, of which one is not named | refused: it may be anything |
| BMP | uncompressed, 1 to 32 bits; run-length encoded ones are refused |
| JPEG | baseline or progressive, of 8 bits; four colours only if Adobe's marker names them |
| JPEG without its end marker | refused: part of it may be missing |
| PNG whose data end before its last row | refused: the rest would be black |
| EXIF orientation | applied in all formats: height and width are those of the upright picture |
| float, bool, 32-bit or signed values | refused: their full scale is unknown |
| a numpy array with masked pixels | refused: what they show is not to be seen |
| several frames or pages | refused; a reduced copy behind a TIFF's page is passed over |
| a second picture in a JPEG (MPO, preview) | passed over: the first is read |
| profiles, previews, comments of any size | passed over |
| an area above `max_pixels` | refused, files before they are decoded |
| a side below 32 px | counts as 32 in that area: a model pads it, and that is what it costs |
| more than 16 bytes per pixel of `max_pixels`, and 64 MiB | a path is refused unread |
| 1 x 1 and up | accepted |

Colour profiles and gamma are ignored. Files may be PNG, JPEG, BMP, TIFF or WebP; what their headers
say is checked by `magtiles_seg.decoding` before anything is decoded.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import numpy as np

from magtiles_seg.decoding import FORMATS, Header, read_header
from magtiles_seg.decoding.header import damaged, several
from magtiles_seg.decoding.png import check_rows
from magtiles_seg.decoding.tiff import LAYOUT_TAGS, check_layout, errors_raised
from magtiles_seg.errors import ImageError
from magtiles_seg.names import is_address, working_folder

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL import Image

__all__ = [
    "FORMATS",
    "MAX_PIXELS",
    "MIN_SIDE_PX",
    "ImageSource",
    "pad_to_min_side",
    "read_colours",
    "read_image",
    "read_levels",
]

ImageSource: TypeAlias = "str | os.PathLike[str] | bytes | Image.Image | NDArray[Any]"

MAX_PIXELS = 64_000_000
"""The largest picture that is read: an 8192 x 4096 frame passes, 20,000 x 20,000 does not."""

MIN_SIDE_PX = 32
"""Least height and width that a model takes: `pad_to_min_side` mirrors shorter sides up to it."""

_RGB_MODES = {"RGB", "RGBA", "RGBa", "RGBX", "LA", "La", "P", "PA", "1", "CMYK", "YCbCr", "HSV"}
_UNSCALED_16_BIT_MAX = 4095
_MAX_BYTES_PX = 16
_MAX_BYTES_BESIDE = 64 << 20
"""A file may have 16 bytes per pixel, and 64 MiB of profiles and previews beside them."""
_LEAST_WORK_PX = 1 << 22


def read_image(source: ImageSource, *, max_pixels: int = MAX_PIXELS) -> NDArray[np.uint8]:
    """Read a picture as grey levels, by the rules in this module's table.

    Args:
        source: A file's path, a file's bytes, a Pillow image, or an array: uint8 or uint16 of shape
            (H, W), (H, W, 1), (H, W, 3) RGB or (H, W, 4) RGBA.
        max_pixels: Pictures of a larger area are refused, before they are decoded. A side below 32
            counts as 32, which is what a model pads it to.

    Returns:
        (H, W) uint8, C-contiguous and the caller's own: it shares no memory with `source`.

    Raises:
        FileNotFoundError: The path does not exist.
        TypeError: `source` is of none of these types.
        ImageError: The picture is damaged (`reason` "invalid"), of a kind that is not read
            ("unsupported"), or larger than `max_pixels` ("too_large").

    Example:
        >>> read_image(numpy.array([[[255, 0, 0], [9, 9, 9]]], dtype="uint8"))
        array([[76,  9]], dtype=uint8)
    """
    return _read(source, max_pixels, _grey_levels)


def read_levels(source: ImageSource, *, max_pixels: int = MAX_PIXELS) -> NDArray[np.uint8]:
    """Read a mask: the values as they are stored, where `read_image` gives brightness.

    The same files are opened by the same rules as by `read_image`, upright and of one page. A
    palette gives its indices, never its colours; grey of 1, 2 or 4 bits is spread over 0..255,
    16-bit grey keeps its values while none is above 255. Lossy files are refused.

    Args:
        source: A file's path, a file's bytes, a Pillow image, or an array of shape (H, W) or
            (H, W, 1), uint8 or uint16.
        max_pixels: As for `read_image`.

    Returns:
        (H, W) uint8, C-contiguous and the caller's own: it shares no memory with `source`.

    Raises:
        FileNotFoundError: The path does not exist.
        TypeError: `source` is of none of these types.
        ImageError: As `read_image`; and "unsupported": the mask has colour or is transparent
            anywhere, has a value above 255, or is of a lossy format, which changes values.

    Example:
        >>> read_levels(numpy.array([[0, 1, 4]], dtype="uint16"))
        array([[0, 1, 4]], dtype=uint8)
    """
    return _read(source, max_pixels, _stored_levels)


def read_colours(source: ImageSource, *, max_pixels: int = MAX_PIXELS) -> NDArray[np.int32]:
    """Read a mask of colours: one number of 24 bits a pixel, red << 16 | green << 8 | blue.

    The same files are opened by the same rules as by `read_image`, upright and of one page. What
    is wholly transparent is black, whatever colour lies under it. Grey levels and the colours of
    a palette count as colours.

    Args:
        source: As for `read_levels`, or an array of shape (H, W, 3) RGB or (H, W, 4) RGBA, uint8.
        max_pixels: As for `read_image`.

    Returns:
        (H, W) int32, 0..0xffffff, C-contiguous and the caller's own.

    Raises:
        FileNotFoundError: The path does not exist.
        TypeError: `source` is of none of these types.
        ImageError: As `read_image`; and "unsupported": the mask has 16-bit colour or grey above
            255, or is of a lossy format, which changes colours.

    Example:
        >>> read_colours(numpy.array([[[255, 0, 0], [0, 0, 9]]], dtype="uint8"))
        array([[16711680,        9]], dtype=int32)
    """
    return _read(source, max_pixels, _packed_colours)


def pad_to_min_side(pictures: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Mirror pictures at bottom and right up to the least side that a model takes.

    Args:
        pictures: (..., H, W) uint8, one picture or a stack of one size.

    Returns:
        (..., max(H, 32), max(W, 32)) uint8; `pictures` itself where no side is shorter.
    """
    *_, height, width = pictures.shape
    if min(height, width) >= MIN_SIDE_PX:
        return pictures
    missing = [(0, max(0, MIN_SIDE_PX - side)) for side in (height, width)]
    return np.pad(pictures, [(0, 0)] * (pictures.ndim - 2) + missing, mode="reflect")


class _Reduce(Protocol):
    """How an array or a decoded image becomes (H, W); `header` is of the image's file."""

    def __call__(
        self, picture: Image.Image | NDArray[Any], name: str, header: Header | None = None, /
    ) -> NDArray[Any]: ...


def _read(source: ImageSource, max_pixels: int, reduce: _Reduce) -> NDArray[Any]:
    """Open any source, check it and reduce its pixels to (H, W)."""
    if isinstance(source, np.ndarray):
        _check_array(source, "the array", max_pixels)
        return reduce(source, "the array")
    if isinstance(source, (str, os.PathLike)):
        name = f"'{os.fspath(source)}'"
        return _from_bytes(_content(Path(source), max_pixels), name, max_pixels, reduce)
    if isinstance(source, bytes):
        name = f"the picture ({len(source)} bytes)"
        return _from_bytes(source, name, max_pixels, reduce)
    pillow = sys.modules.get("PIL.Image")  # whoever holds a Pillow image has imported Pillow
    if pillow is not None and isinstance(source, pillow.Image):
        return _from_pillow(source, "the Pillow image", max_pixels, reduce)
    got = f"{type(source).__module__}.{type(source).__qualname__}"
    raise TypeError(
        f"cannot read a picture from {got}; expected a path, bytes, a PIL.Image or a numpy array; "
        f"{_remedy(source)}"
    )


def _remedy(source: object) -> str:
    """Return what somebody may do who handed over something else than a picture."""
    if source is None:
        return "was it read from a file that is not there, as by cv2.imread?"
    if isinstance(source, bytearray | memoryview):
        return "pass bytes(...) of it"
    if hasattr(source, "read"):
        return "pass what its .read() returns, in binary mode"
    if isinstance(source, Iterable) and not hasattr(source, "__array__"):
        return "pass one picture at a time; several go to Segmenter.batch"
    return "convert it, for instance with numpy.asarray(...)"


def _check_array(array: NDArray[Any], name: str, max_pixels: int) -> None:
    if isinstance(array, np.ma.MaskedArray) and np.ma.is_masked(array):
        raise ImageError(
            f"{name} is a masked array, of which some pixels are not to be seen; expected every "
            "pixel; say what they are, for instance black: array.filled(0)",
            reason="unsupported",
        )
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)):
        raise ImageError(
            f"{name} has shape {array.shape}; expected (H, W), (H, W, 1), (H, W, 3) RGB or "
            "(H, W, 4) RGBA; pass one picture at a time, channels last",
            reason="unsupported",
        )
    if array.dtype.kind != "u" or array.dtype.itemsize > 2:
        raise ImageError(
            f"{name} holds {array.dtype} values, whose full scale is unknown; expected uint8 "
            "(0..255) or uint16 (0..65535); scale it and convert with .astype(numpy.uint8)",
            reason="unsupported",
        )
    _check_size(array.shape[0], array.shape[1], name, max_pixels)


def _grey_levels(
    picture: Image.Image | NDArray[Any], name: str, header: Header | None = None
) -> NDArray[np.uint8]:
    """Brightness, (H, W) uint8, of a checked array or a decoded image."""
    if not isinstance(picture, np.ndarray) and header is not None and header.high_byte:
        _check_high_byte(picture, name)
    array = picture if isinstance(picture, np.ndarray) else _pillow_array(picture, name)
    if array.dtype == np.uint8 and array.ndim == 2:
        return np.array(array, order="C")
    grey = _to_8_bit(_to_grey(array), name)
    return 255 - grey if header is not None and header.inverted else grey


def _stored_levels(
    mask: Image.Image | NDArray[Any], name: str, header: Header | None = None
) -> NDArray[np.uint8]:
    """Stored values, (H, W) uint8, of a checked array or a decoded image."""
    _check_lossless(name, header)
    if isinstance(mask, np.ndarray):
        levels, kind = mask[..., 0] if mask.shape[2:] == (1,) else mask, f"shape {mask.shape}"
    else:
        levels, kind = np.asarray(mask.convert("L") if mask.mode == "1" else mask), mask.mode
    if isinstance(mask, np.ndarray) or mask.mode in ("RGB", "RGBA", "LA"):
        if header is None or not header.high_byte:  # low values would be 0
            levels = _grey_as_colour(levels)
    elif mask.mode == "P":
        _check_palette(levels, mask.getpalette("RGB") or [], name)
    if levels.ndim != 2 or levels.dtype.kind != "u":
        raise ImageError(
            f"{name} is a mask of {kind}; expected one channel of grey levels or class indices; "
            "save the mask as an 8-bit grey PNG",
            reason="unsupported",
        )
    if header is not None and header.inverted:
        levels = 65535 - levels
    if levels.max() > 255:
        raise ImageError(
            f"{name} is a 16-bit mask with the value {levels.max()}; expected at most 255; "
            "save the mask as an 8-bit grey PNG",
            reason="unsupported",
        )
    return np.array(levels, np.uint8, order="C")


def _packed_colours(
    mask: Image.Image | NDArray[Any], name: str, header: Header | None = None
) -> NDArray[np.int32]:
    """Colours, (H, W) int32, of a checked array or a decoded image."""
    if isinstance(mask, np.ndarray):
        grey = mask.shape[2:] in ((), (1,))
    else:
        grey = mask.mode not in _RGB_MODES - {"1"}
    if grey:
        return _stored_levels(mask, name, header) * np.int32(0x010101)
    _check_lossless(name, header)
    colours = mask if isinstance(mask, np.ndarray) else _pillow_array(mask, name)
    if colours.dtype != np.uint8 or (header is not None and header.high_byte):
        raise ImageError(
            f"{name} is a mask of 16-bit colour; expected 8 bits for each of red, green and blue; "
            "save the mask as an 8-bit PNG",
            reason="unsupported",
        )
    red, green, blue = (colours[..., channel].astype(np.int32) for channel in range(3))
    packed = (red << 16) + (green << 8) + blue
    return packed if colours.shape[2] == 3 else np.where(colours[..., 3] == 0, 0, packed)


def _check_lossless(name: str, header: Header | None) -> None:
    if header is not None and header.lossy:
        raise ImageError(
            f"{name} is a {header.lossy} file, which changes values; expected a lossless format: "
            "make it again as PNG",
            reason="unsupported",
        )


def _grey_as_colour(levels: NDArray[Any]) -> NDArray[Any]:
    """Reduce (H, W, C) of equal channels, and of full alpha where C is 2 or 4, to (H, W)."""
    if levels.ndim != 3 or levels.shape[2] not in (2, 3, 4) or levels.dtype.kind != "u":
        return levels
    colours = levels.shape[2] - 1 + levels.shape[2] % 2
    opaque = bool((levels[..., colours:] == np.iinfo(levels.dtype).max).all())
    equal = bool((levels[..., 1:colours] == levels[..., :1]).all())
    return levels[..., 0] if equal and opaque else levels


def _check_palette(levels: NDArray[Any], palette: list[int], name: str) -> None:
    """Refuse indices that a program has given to the greys of a mask in an order of its own."""
    colours, used = np.array(palette, np.int64).reshape(-1, 3), np.unique(levels)
    shown = colours[used[used < len(colours)]]
    brightness = shown[:, 0]
    upside_down = bool(used[0] == 0 and brightness[:1].max(initial=0) > 127)
    grey = (shown == shown[:, :1]).all() and (upside_down or (np.diff(brightness) < 0).any())
    black_beyond_0 = bool((~shown.any(axis=1)[used[: len(shown)] > 0]).any())
    if grey or (black_beyond_0 and colours[0].any()):
        raise ImageError(
            f"{name} is a mask with a palette {'of greys ' if grey else ''}in another order than "
            "its indices, as programs that shrink PNGs write it; expected index 0 to be black and "
            "higher greys brighter; save the mask as an 8-bit grey PNG",
            reason="unsupported",
        )


def _check_high_byte(image: Image.Image, name: str) -> None:
    """Refuse 16-bit colour, of which Pillow keeps the upper bytes, without a value above 4095."""
    highest = [np.asarray(image.getchannel(band)).max() for band in image.getbands() if band != "A"]
    if max(highest) <= _UNSCALED_16_BIT_MAX >> 8:
        raise ImageError(
            f"{name} has 16-bit colour but no value above {_UNSCALED_16_BIT_MAX}; expected values "
            "that fill 0..65535; it looks like unscaled 8- to 12-bit data: save it as 8-bit PNG"
        )


def _to_grey(array: NDArray[Any]) -> NDArray[Any]:
    """Reduce (H, W[, C]) uint8 or uint16 to (H, W) of the same depth."""
    import cv2

    array = np.array(array, dtype=array.dtype.newbyteorder("="), order="C")
    channels = array.shape[2] if array.ndim == 3 else 1
    if channels == 1:
        return array.reshape(array.shape[:2])
    if channels == 3:
        return np.asarray(cv2.cvtColor(array, cv2.COLOR_RGB2GRAY))
    grey = cv2.cvtColor(array, cv2.COLOR_RGBA2GRAY)
    opacity = np.ascontiguousarray(array[:, :, 3])
    return np.asarray(cv2.multiply(grey, opacity, scale=1 / float(np.iinfo(array.dtype).max)))


def _to_8_bit(grey: NDArray[Any], name: str) -> NDArray[np.uint8]:
    if grey.dtype == np.uint8:
        return grey
    import cv2

    brightest = int(grey.max())
    if 0 < brightest <= _UNSCALED_16_BIT_MAX:
        raise ImageError(
            f"{name} is 16-bit but holds no grey above {brightest}; expected values that fill "
            "0..65535; it looks like unscaled 8- to 12-bit data: shift it up (12-bit: array << 4) "
            "or convert it to uint8"
        )
    return np.asarray(cv2.convertScaleAbs(grey, alpha=1 / 257), dtype=np.uint8)


def _where_to_look(path: Path) -> str:
    if is_address(path):
        return "addresses are not opened: download it, and pass the file or its bytes"
    folder = working_folder()
    where = "the working folder is gone" if folder is None else f"now in '{folder}'"
    return f"check the path ({where})"


def _content(path: Path, max_pixels: int) -> bytes:
    """Return a file's bytes, unless they are more than a picture of `max_pixels` can need."""
    most = _MAX_BYTES_PX * max_pixels + _MAX_BYTES_BESIDE
    try:
        if path.exists() and not path.is_file():  # reading a pipe or a device might never end
            kind = "a directory" if path.is_dir() else "no regular file"
            raise ImageError(f"'{path}' is {kind}; expected a picture file; name the file itself")
        with path.open("rb") as file:
            content = file.read(most + 1)
    except FileNotFoundError:
        raise FileNotFoundError(
            f"no such file: '{path}'; expected a picture; {_where_to_look(path)}"
        ) from None
    except (OSError, ValueError) as error:
        if isinstance(error, ImageError):
            raise
        raise ImageError(
            f"'{path}' cannot be opened: {error}; expected a readable picture file; "
            "check its name and permissions"
        ) from error
    if len(content) > most:
        raise _too_large(f"'{path}' has more than {most:,} bytes; expected at most so many")
    return content


@contextmanager
def _as_image_error(name: str) -> Iterator[None]:
    """Turn whatever Pillow raises on hostile or damaged input into an ImageError."""
    from PIL import Image

    try:
        yield
    except ImageError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _too_large(f"{name} is larger than Pillow allows: {error}") from error
    except Exception as error:  # plugins raise SyntaxError, struct.error, KeyError and more
        raise ImageError(
            f"{name} cannot be decoded: {error or type(error).__name__}; "
            "expected an undamaged picture; copy or save the picture again"
        ) from error


def _from_bytes(content: bytes, name: str, max_pixels: int, reduce: _Reduce) -> NDArray[Any]:
    with _named(name):
        header = read_header(content)
    _check_size(header.height, header.width, name, max_pixels)
    if header.work_px > max(4 * max_pixels, _LEAST_WORK_PX):
        raise _too_large(f"{name} has tiles of {header.work_px:,} px; expected fewer")
    with _as_image_error(name):
        with _named(name):
            image = _decoded(header)
        with image:
            return _turned(reduce(image, name, header), header.orientation)


@contextmanager
def _named(name: str) -> Iterator[None]:
    """Put the picture's name before the message of an ImageError."""
    try:
        yield
    except ImageError as error:
        raise ImageError(f"{name} {error}", reason=error.reason) from None


def _decoded(header: Header) -> Image.Image:
    """Let Pillow decode a checked file."""
    from PIL import (
        BmpImagePlugin,
        JpegImagePlugin,
        PngImagePlugin,
        TiffImagePlugin,
        WebPImagePlugin,
    )

    decoders = {
        "PNG": PngImagePlugin.PngImageFile,
        "JPEG": JpegImagePlugin.JpegImageFile,
        "BMP": BmpImagePlugin.BmpImageFile,
        "TIFF": TiffImagePlugin.TiffImageFile,
        "WEBP": WebPImagePlugin.WebPImageFile,
    }
    image = decoders[header.format](BytesIO(header.content))
    if image.size != (header.width, header.height):
        raise damaged("contradicts itself about its size")
    with errors_raised() if header.format == "TIFF" else nullcontext():
        image.load()
    if header.format == "PNG":
        last_row = image.crop((0, header.height - 1, header.width, header.height))
        if last_row.getbbox(alpha_only=False) is None or "interlace" in image.info:
            check_rows(header.content)  # rows that never came are 0
    return image


def _turned(array: NDArray[Any], orientation: int) -> NDArray[Any]:
    """Return (H, W) upright, by EXIF's orientation 1..8."""
    if orientation >= 5:
        array = array.T
    if orientation in (3, 4, 7, 8):
        array = array[::-1]
    if orientation in (2, 3, 6, 7):
        array = array[:, ::-1]
    return np.ascontiguousarray(array)


def _from_pillow(image: Image.Image, name: str, max_pixels: int, reduce: _Reduce) -> NDArray[Any]:
    from PIL import ImageOps

    _check_size(image.height, image.width, name, max_pixels)
    if getattr(image, "is_animated", False) and image.format != "MPO":
        raise ImageError(f"{name} {several('several')}", reason="unsupported")
    with _as_image_error(name):
        header = _pillow_header(image, name)
        return reduce(ImageOps.exif_transpose(image), name, header)


def _pillow_header(image: Image.Image, name: str) -> Header | None:
    """Return what an image that Pillow opened says of its file, whose pixels it changes.

    Of a PNG it tells that until the pixels are loaded.
    """
    if image.format == "PNG" and not image.mode.startswith("I"):
        deep = any(str(tile[3]).endswith(";16B") for tile in getattr(image, "tile", ()))
        height, width = image.height, image.width
        return Header(format="PNG", height=height, width=width, content=b"", high_byte=deep)
    stored = getattr(image, "tag_v2", None)
    if image.format != "TIFF" or stored is None:
        return None
    tags = {tag: np.atleast_1d(stored[tag]) for tag in LAYOUT_TAGS if tag in stored}
    with _named(name):
        layout = check_layout(tags)
    return Header(
        format="TIFF",
        height=image.height,
        width=image.width,
        content=b"",
        inverted=layout.inverted,
        high_byte=layout.bits == 16 and layout.samples > 1,
    )


def _pillow_array(image: Image.Image, name: str) -> NDArray[Any]:
    """Return a decoded image as (H, W) or (H, W, C), uint8 or uint16."""
    transparent = image.has_transparency_data
    if image.mode == "L" and not transparent:
        return np.asarray(image)
    if image.mode.startswith("I;16"):
        levels = np.asarray(image)
        return np.where(levels == image.info["transparency"], 0, levels) if transparent else levels
    if image.mode == "L" or image.mode in _RGB_MODES:
        return np.asarray(image.convert("RGBA" if transparent else "RGB"))
    raise ImageError(
        f"{name} has the pixel mode '{image.mode}'{' with transparency' if transparent else ''}; "
        "expected 8-bit or 16-bit grey, palette or colour; save the picture as an 8-bit PNG",
        reason="unsupported",
    )


def _check_size(height: int, width: int, name: str, max_pixels: int) -> None:
    if height < 1 or width < 1:
        raise ImageError(
            f"{name} is {width} x {height} px; expected at least 1 x 1; check where it came from"
        )
    area_px = max(height, MIN_SIDE_PX) * max(width, MIN_SIDE_PX)
    if area_px > max_pixels:
        padded = (
            f", which counts as {area_px:,} (each side as at least {MIN_SIDE_PX})"
            if area_px > height * width
            else ""
        )
        raise _too_large(
            f"{name} is {width} x {height} px{padded}; expected at most {max_pixels:,} px"
        )


def _too_large(what: str) -> ImageError:
    return ImageError(f"{what}; cut the picture into parts", reason="too_large")
