"""What every format's reader returns, and how it refuses."""

from __future__ import annotations

from dataclasses import dataclass

from magtiles_seg.errors import ImageError


@dataclass(frozen=True, kw_only=True)
class Header:
    """A picture file, checked and reduced to what its pixels need.

    Attributes:
        format: Pillow's name of the format.
        height: In pixels, as stored: before the orientation is applied.
        width: Likewise.
        content: A file of the same pixels.
        orientation: EXIF's, 1..8.
        inverted: Whether 16-bit grey is stored with 0 as white.
        high_byte: Whether Pillow reads the samples, which have 16 bits, at their upper 8.
        work_px: Pixels that are decoded, where the file's tiles reach beyond the picture.
        lossy: What the file is, if it is of a kind that changes values.
    """

    format: str
    height: int
    width: int
    content: bytes
    orientation: int = 1
    inverted: bool = False
    high_byte: bool = False
    work_px: int = 0
    lossy: str = ""


def damaged(what: str, expected: str = "a whole picture file") -> ImageError:
    """Return the error for a file that contradicts its own format."""
    return ImageError(f"is damaged: it {what}; expected {expected}; copy or save it again")


def unsupported(what: str, expected: str) -> ImageError:
    """Return the error for a sound file of a kind that is not read."""
    return ImageError(
        f"{what}; expected {expected}; save the picture as an 8-bit PNG", reason="unsupported"
    )


def several(count: int | str) -> ImageError:
    """Return the error for a file of several pictures."""
    return ImageError(
        f"holds {count} frames or pages; expected a single picture; save each as a file of its own",
        reason="unsupported",
    )
