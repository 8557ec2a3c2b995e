"""The one door for pixels: a path, bytes, a Pillow image or an array becomes (H, W) uint8.

| input | what becomes of it |
|---|---|
| 8-bit grey | unchanged |
| colour | grey = 0.299 R + 0.587 G + 0.114 B, rounded; arrays are RGB, not BGR |
| alpha, transparent colour | composited over black: where nothing was seen is no light |
| palette, 1-bit, CMYK, YCbCr, HSV | converted to RGB by Pillow, then to grey |
| 16-bit grey | value / 257, rounded: 65535 becomes 255 |
| 16-bit, brightest grey 1 to 4095 | refused: unscaled 12-bit data would come out black |
| 16-bit colour | an array as 16-bit grey; a file is read at 8 bits (its high byte) |
| EXIF orientation | applied: height and width are those of the upright picture |
| float, bool, 32-bit or signed values | refused: their full scale is unknown |
| several frames or pages | refused |
| more than `max_pixels` | refused, files before they are decoded |
| 1 x 1 and up | accepted |

Colour profiles are ignored. Files may be PNG, JPEG, BMP, TIFF or WebP.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeAlias

import numpy as np

from magtiles_seg.errors import ImageError

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL import Image

__all__ = ["FORMATS", "MAX_PIXELS", "ImageSource", "read_image", "read_levels"]

ImageSource: TypeAlias = "str | os.PathLike[str] | bytes | Image.Image | NDArray[Any]"

FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP")
"""The file formats that are read, by Pillow's names."""

MAX_PIXELS = 64_000_000
"""The largest picture that is read: an 8192 x 4096 frame passes, 20,000 x 20,000 does not."""

_SIGNATURES = (b"\x89PNG", b"\xff\xd8\xff", b"BM", b"II*\0", b"MM\0*", b"RIFF")
_RGB_MODES = {"RGB", "RGBA", "RGBa", "RGBX", "LA", "La", "P", "PA", "1", "CMYK", "YCbCr", "HSV"}
_UNSCALED_16_BIT_MAX = 4095


def read_image(source: ImageSource, *, max_pixels: int = MAX_PIXELS) -> NDArray[np.uint8]:
    """Read a picture as grey levels, by the rules in this module's table.

    Args:
        source: A file's path, a file's bytes, a Pillow image, or an array: uint8 or uint16 of shape
            (H, W), (H, W, 1), (H, W, 3) RGB or (H, W, 4) RGBA.
        max_pixels: Larger pictures are refused, before they are decoded.

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
    palette gives its indices, never its colours; 1-bit gives 0 and 255, 16-bit grey its values
    while none is above 255.

    Args:
        source: A file's path, a file's bytes, a Pillow image, or an array of shape (H, W) or
            (H, W, 1), uint8 or uint16.
        max_pixels: Larger masks are refused, before they are decoded.

    Returns:
        (H, W) uint8, C-contiguous and the caller's own: it shares no memory with `source`.

    Raises:
        FileNotFoundError: The path does not exist.
        TypeError: `source` is of none of these types.
        ImageError: As `read_image`; and "unsupported": the mask has colour or alpha, or a value
            above 255.

    Example:
        >>> read_levels(numpy.array([[0, 1, 4]], dtype="uint16"))
        array([[0, 1, 4]], dtype=uint8)
    """
    return _read(source, max_pixels, _stored_levels)


_Reduce: TypeAlias = "Callable[[Image.Image | NDArray[Any], str], NDArray[np.uint8]]"


def _read(source: ImageSource, max_pixels: int, reduce: _Reduce) -> NDArray[np.uint8]:
    """Open any source, check it and reduce its pixels to (H, W) uint8."""
    if isinstance(source, np.ndarray):
        _check_array(source, "the array", max_pixels)
        return reduce(source, "the array")
    if isinstance(source, (str, os.PathLike)):
        with _opened(Path(source)) as file:
            return _from_file(file, f"'{os.fspath(source)}'", max_pixels, reduce)
    if isinstance(source, bytes):
        return _from_file(BytesIO(source), f"the picture ({len(source)} bytes)", max_pixels, reduce)
    pillow = sys.modules.get("PIL.Image")  # whoever holds a Pillow image has imported Pillow
    if pillow is not None and isinstance(source, pillow.Image):
        with _as_image_error("the Pillow image"):
            return reduce(_upright(source, "the Pillow image", max_pixels), "the Pillow image")
    got = f"{type(source).__module__}.{type(source).__qualname__}"
    raise TypeError(
        f"cannot read a picture from {got}; expected a path, bytes, a PIL.Image or a numpy array; "
        "convert it, for instance with numpy.asarray(...)"
    )


def _check_array(array: NDArray[Any], name: str, max_pixels: int) -> None:
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


def _grey_levels(picture: Image.Image | NDArray[Any], name: str) -> NDArray[np.uint8]:
    """Brightness, (H, W) uint8, of a checked array or an upright image."""
    array = picture if isinstance(picture, np.ndarray) else _pillow_array(picture, name)
    if array.dtype == np.uint8 and array.ndim == 2:
        return np.array(array, order="C")
    return _to_8_bit(_to_grey(array), name)


def _stored_levels(mask: Image.Image | NDArray[Any], name: str) -> NDArray[np.uint8]:
    """Stored values, (H, W) uint8, of a checked array or an upright image."""
    if isinstance(mask, np.ndarray):
        levels, kind = mask[..., 0] if mask.shape[2:] == (1,) else mask, f"shape {mask.shape}"
    else:
        levels, kind = np.asarray(mask.convert("L") if mask.mode == "1" else mask), mask.mode
    if levels.ndim != 2 or levels.dtype.kind != "u":
        raise ImageError(
            f"{name} is a mask of {kind}; expected one channel of grey levels or class indices; "
            "save the mask as an 8-bit grey PNG",
            reason="unsupported",
        )
    if levels.max() > 255:
        raise ImageError(
            f"{name} is a 16-bit mask with the value {levels.max()}; expected at most 255; "
            "save the mask as an 8-bit grey PNG",
            reason="unsupported",
        )
    return np.array(levels, np.uint8, order="C")


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


@contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    try:
        if path.exists() and not path.is_file():  # reading a pipe or a device might never end
            kind = "a directory" if path.is_dir() else "no regular file"
            raise ImageError(f"'{path}' is {kind}; expected a picture file; name the file itself")
        file = path.open("rb")
    except FileNotFoundError:
        raise FileNotFoundError(
            f"no such file: '{path}'; expected a picture; check the path (now in '{Path.cwd()}')"
        ) from None
    except (OSError, ValueError) as error:
        raise ImageError(
            f"'{path}' cannot be opened: {error}; expected a readable picture file; "
            "check its name and permissions"
        ) from error
    with file:
        yield file


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


def _from_file(file: IO[bytes], name: str, max_pixels: int, reduce: _Reduce) -> NDArray[np.uint8]:
    from PIL import Image, UnidentifiedImageError

    with _as_image_error(name):
        try:
            image = Image.open(file, formats=FORMATS)
        except UnidentifiedImageError as error:
            raise _unidentified(file, name) from error
        with image:
            return reduce(_upright(image, name, max_pixels), name)


def _unidentified(file: IO[bytes], name: str) -> ImageError:
    file.seek(0)
    start = file.read(8)
    if not start or start.startswith(_SIGNATURES):
        what = "has a damaged header" if start else "is empty"
        return ImageError(f"{name} {what}; expected a whole picture file; copy or save it again")
    return ImageError(
        f"{name} is no picture in a format that is read; expected {', '.join(FORMATS)}; "
        f"got a file that starts with {start!r}; save the picture as PNG",
        reason="unsupported",
    )


def _upright(image: Image.Image, name: str, max_pixels: int) -> Image.Image:
    """Return a single picture of a legal size, decoded and turned upright."""
    from PIL import ImageOps

    _check_size(image.height, image.width, name, max_pixels)
    frames = getattr(image, "n_frames", 1)
    if frames > 1:
        raise ImageError(
            f"{name} holds {frames} frames or pages; expected a single picture; "
            "save each as a file of its own",
            reason="unsupported",
        )
    return ImageOps.exif_transpose(image)


def _pillow_array(image: Image.Image, name: str) -> NDArray[Any]:
    """Return a decoded image as (H, W) or (H, W, C), uint8 or uint16."""
    transparent = image.has_transparency_data
    if image.mode == "L" and not transparent:
        return np.asarray(image)
    if image.mode.startswith("I;16") and not transparent:
        return np.asarray(image)
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
            f"{name} is {height} x {width} px; expected at least 1 x 1; check where it came from"
        )
    if height * width > max_pixels:
        raise _too_large(f"{name} is {height} x {width} px; expected at most {max_pixels:,} px")


def _too_large(what: str) -> ImageError:
    return ImageError(f"{what}; cut the picture into parts", reason="too_large")
