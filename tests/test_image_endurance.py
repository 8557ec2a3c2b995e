"""Thousands of damaged pictures of all formats through `segment`: refused or answered, cheaply."""

from __future__ import annotations

import gc
import io
import random
import struct
import sys
import time
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from picturefiles import bmp_file, exif_block, tiff_file, tiff_tags
from pictures import encoded
from PIL import Image

import magtiles_seg
from magtiles_seg import image as door

MAX_PIXELS = 1_000_000
"""Lower than the package's own limit, so that 10,000 pictures take minutes."""
EXTREMES = (0, 1, 2, 7, 8, 32, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)


def seeds() -> list[bytes]:
    """Sound pictures of all formats and kinds that are read, and some that are not."""
    grey = np.random.default_rng(0).integers(0, 256, (40, 56), dtype=np.uint8)
    rgb = np.dstack([grey, grey[::-1], 255 - grey])
    pictures: dict[str, NDArray[Any] | Image.Image] = {
        "grey": grey,
        "rgb": rgb,
        "rgba": np.dstack([rgb, grey[:, ::-1]]),
        "deep": grey.astype(np.uint16) * 257,
        "palette": Image.fromarray(rgb).quantize(16),
        "one bit": Image.fromarray(grey).convert("1"),
        "cmyk": Image.fromarray(rgb).convert("CMYK"),
    }
    exif = exif_block(6)
    kinds: dict[str, tuple[tuple[str, ...], tuple[dict[str, Any], ...]]] = {
        "PNG": (("grey", "rgb", "rgba", "deep", "palette", "one bit"), ({}, {"exif": exif})),
        "BMP": (("grey", "rgb", "rgba", "palette", "one bit"), ({},)),
        "JPEG": (("grey", "rgb", "cmyk"), ({"exif": exif}, {"progressive": True})),
        "WEBP": (("rgb", "rgba"), ({"exif": exif}, {"lossless": True})),
        "TIFF": (
            ("grey", "rgb", "deep"),
            (
                *({"big_tiff": True}, {"exif": exif}),
                *({"compression": name} for name in ("tiff_lzw", "packbits", "zstd")),
            ),
        ),
    }
    found = [
        encoded(pictures[name], kind, **options)
        for kind, (names, variants) in kinds.items()
        for name in names
        for options in variants
    ]
    found += [encoded(pictures[name], "TIFF", compression="jpeg") for name in ("grey", "rgb")]
    found += [encoded(pictures["one bit"], "TIFF", compression=c) for c in ("group3", "group4")]
    return [*found, *written_by_field(grey)]


def written_by_field(grey: NDArray[np.uint8]) -> Iterator[bytes]:
    variants: tuple[dict[str, Any], ...] = (
        {"tile": (16, 16)},
        {"byteorder": ">", "rowsperstrip": 5},
        {"bigtiff": True, "compression": "zlib", "predictor": 2},
    )
    for options in variants:
        stream = io.BytesIO()
        tifffile.imwrite(stream, grey, photometric="miniswhite", **options)
        yield stream.getvalue()
    yield tiff_file(tiff_tags(grey, t34665=8, t330=8), grey.tobytes(), order=">")
    yield bmp_file(b"\0\2\xff\xff" * 99, (56, 40), 8, compression=1, palette=bytes(1024))
    yield bmp_file(grey.tobytes(), (56, -40), 8, palette=bytes(range(256)) * 4)


def mutated(content: bytes, other: bytes, chance: random.Random) -> bytes:
    """The file with some fields changed, cut, doubled or joined to another."""
    data = bytearray(content)
    for _ in range(chance.choice((1, 1, 2, 4, 16))):
        reach = chance.choice((32, 64, 256, len(data)))
        at = chance.randrange(min(reach, len(data)))
        way = chance.random()
        if way < 0.4:
            code = chance.choice(("<B", "<H", ">H", "<I", ">I"))
            size = struct.calcsize(code)
            value = chance.choice(EXTREMES) & ((1 << 8 * size) - 1)
            data[at : at + size] = struct.pack(code, value)
        elif way < 0.7:
            data[at] = chance.randrange(256)
        elif way < 0.8:
            del data[at : at + chance.choice((1, 2, 4, 100))]
        elif way < 0.9:
            data[at:at] = data[at : at + 200] * chance.choice((1, 5, 500))
        elif way < 0.95:
            data = data[: max(at, 8)]
        else:
            data[at:] = other[at:]
        data = data or bytearray(b"BM")
    return mended(bytes(data)) if chance.random() < 0.7 else bytes(data)


def mended(content: bytes) -> bytes:
    """A PNG with right checksums, so that what is changed is looked at; others as they are."""
    if not content.startswith(b"\x89PNG"):
        return content
    data, at = bytearray(content), 8
    while at + 12 <= len(data):
        end = at + 12 + int.from_bytes(data[at : at + 4], "big")
        if end > len(data):
            break
        data[end - 4 : end] = struct.pack(">I", zlib.crc32(data[at + 4 : end - 4]))
        at = end
    return bytes(data)


def memory_mb(field: str) -> float:
    status = Path("/proc/self/status").read_text()
    return int(status.split(f"{field}:")[1].split()[0]) / 1024


def cost(source: bytes | NDArray[np.uint8]) -> tuple[float, float, str]:
    """CPU seconds, MB beyond those at the start, and what became of it."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak is that of this picture
    before, start = memory_mb("VmRSS"), time.process_time()
    try:
        outcome: str = magtiles_seg.segment(source).verdict
    except magtiles_seg.ImageError as error:
        outcome = error.reason
    return time.process_time() - start, memory_mb("VmHWM") - before, outcome


@pytest.fixture
def small_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door.read_image, "__kwdefaults__", {"max_pixels": MAX_PIXELS})


def damaged_pictures(count: int) -> Iterator[bytes]:
    chance, sound = random.Random(21), seeds()
    for number in range(count):
        yield mutated(sound[number % len(sound)], chance.choice(sound), chance)


def test_segment_sound_seeds_are_mostly_read() -> None:
    refused = 0
    for content in seeds():
        try:
            door.read_image(content)
        except magtiles_seg.ImageError:
            refused += 1
    assert refused == 1  # the run-length encoded BMP


@pytest.mark.usefixtures("small_limit")
def test_segment_damaged_pictures_are_answered_or_refused_in_silence(
    capfd: pytest.CaptureFixture[str],
) -> None:
    magtiles_seg.segment(np.zeros((40, 56), np.uint8))
    capfd.readouterr()
    outcomes = Counter[str]()
    for content in damaged_pictures(200):
        try:
            outcomes[magtiles_seg.segment(content).verdict] += 1
        except magtiles_seg.ImageError as error:
            outcomes[error.reason] += 1
    assert capfd.readouterr() == ("", "")
    assert outcomes["invalid"] > 50
    assert outcomes.total() - outcomes["invalid"] > 20


@pytest.mark.endurance
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc")
@pytest.mark.usefixtures("small_limit")
def test_segment_10_000_damaged_pictures_cost_no_more_than_three_of_the_largest(
    capfd: pytest.CaptureFixture[str],
) -> None:
    largest = np.random.default_rng(0).integers(0, 256, (1000, 1000), dtype=np.uint8)
    cost(largest)
    most_s, most_mb, _ = cost(encoded(largest))
    gc.collect()
    start_mb, outcomes, worst = memory_mb("VmRSS"), Counter[str](), [0.0, 0.0]
    for content in damaged_pictures(10_000):
        seconds, megabytes, outcome = cost(content)
        outcomes[outcome] += 1
        worst = [max(worst[0], seconds), max(worst[1], megabytes)]
    assert capfd.readouterr() == ("", "")
    gc.collect()
    end_mb = memory_mb("VmRSS")
    figures = (
        f"{outcomes}; the largest takes {most_s:.2f} s and {most_mb:.0f} MB, the worst {worst}; "
        f"{start_mb:.0f} MB at the start, {end_mb:.0f} at the end"
    )
    with capfd.disabled():
        sys.stdout.write(f"\n{figures}\n")
    assert worst[0] <= 3 * most_s, figures
    assert worst[1] <= 3 * most_mb, figures
    assert end_mb <= 1.2 * start_mb, figures
