"""What a picture file says of itself, read before any decoder sees it.

A decoder allocates by the file's own words and reads much that pixels do not need: profiles,
previews, comments, EXIF directories. Each module here reads one format's header within bounds,
refuses what would be decoded wrongly or at a cost that its size does not tell, and returns a file
of the same pixels without the rest: the decoder gets that one.
"""

from __future__ import annotations

from collections.abc import Callable

from magtiles_seg.decoding import bmp, jpeg, png, tiff, webp
from magtiles_seg.decoding.header import Header, damaged, unsupported
from magtiles_seg.errors import ImageError
from magtiles_seg.files import lfs_pointer

__all__ = ["FORMATS", "Header", "read_header"]

_READERS: dict[str, tuple[tuple[bytes, ...], Callable[[bytes], Header]]] = {
    "PNG": ((b"\x89PNG",), png.read_png),
    "JPEG": ((b"\xff\xd8\xff",), jpeg.read_jpeg),
    "BMP": ((b"BM",), bmp.read_bmp),
    "TIFF": ((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"), tiff.read_tiff),
    "WEBP": ((b"RIFF",), webp.read_webp),
}

FORMATS = tuple(_READERS)
"""The file formats that are read, by Pillow's names."""


def read_header(data: bytes) -> Header:
    """Return what a picture file says of itself, checked.

    Args:
        data: The whole file.

    Raises:
        ImageError: The file is damaged or of a kind that is not read. The message starts after the
            picture's name, which the caller knows.
    """
    if not data:
        raise ImageError("is empty; expected a whole picture file; copy or save it again")
    for signatures, read in _READERS.values():
        if data.startswith(signatures):
            return read(data)
    if said := lfs_pointer(data, "picture"):
        raise ImageError(said)
    known = [signature for signatures, _ in _READERS.values() for signature in signatures]
    if any(signature.startswith(data) for signature in known):
        raise damaged("ends within its first bytes")
    raise unsupported(
        f"is no picture in a format that is read: it starts with {data[:8]!r}", ", ".join(FORMATS)
    )
