from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from magtiles_seg.errors import DataError
from magtiles_seg.image import read_image
from magtiles_seg.linescan.pixels import FORMATS, Levels

BITS = {name: one.value_bits for name, one in FORMATS.items()}


def packed(values: list[int], pixel_format: str) -> bytes:
    """Pack one line, bit by bit, as the standards draw it."""
    if pixel_format.endswith("p"):
        bits = BITS[pixel_format]
        stream = sum(value << (bits * index) for index, value in enumerate(values))
        return stream.to_bytes(len(values) * bits // 8, "little")
    if pixel_format.endswith("Packed"):
        low = BITS[pixel_format] - 8
        mask = (1 << low) - 1
        return b"".join(
            bytes([one >> low, (one & mask) | (two & mask) << 4, two >> low])
            for one, two in zip(values[::2], values[1::2], strict=True)
        )
    size = 1 if pixel_format == "Mono8" else 2
    return b"".join(value.to_bytes(size, "little") for value in values)


@given(data=st.data(), pixel_format=st.sampled_from(sorted(FORMATS)), width=st.integers(1, 5))
def test_pixels_of_every_format_follow_the_16_bit_rule(
    data: st.DataObject, pixel_format: str, width: int
) -> None:
    bits, width_px = BITS[pixel_format], 4 * width
    values = data.draw(
        st.lists(st.integers(0, 2**bits - 1), min_size=width_px - 1, max_size=width_px - 1)
    )
    values.append(2**bits - 1)
    levels = Levels(pixel_format, width_px)
    line = np.frombuffer(packed(values, pixel_format), np.uint8).reshape(1, -1)
    assert line.shape[1] == levels.line_bytes
    rows = levels.read(line)
    shifted = np.array([values], np.uint16) << (16 - bits)
    expected = np.array([values], np.uint8) if bits == 8 else read_image(shifted)
    assert (rows == expected).all()
    assert rows.dtype == np.uint8
    assert rows.flags.owndata


@pytest.mark.parametrize("pixel_format", ["Mono10p", "Mono12p", "Mono10Packed", "Mono12Packed"])
def test_packed_pixels_are_unpacked_as_pylon_does(pixel_format: str) -> None:
    pylon = pytest.importorskip("pypylon.pylon")
    rng = np.random.default_rng(0)
    levels = Levels(pixel_format, 16)
    data = rng.integers(0, 256, (5, levels.line_bytes), dtype=np.uint8)
    name = pixel_format.replace("Pack", "pack")
    if pixel_format == "Mono10Packed":
        data[:, 1::3] &= 0x33  # bits that mean nothing
    image = pylon.PylonImage()
    kind = getattr(pylon, f"PixelType_{name}")
    image.AttachMemoryView(memoryview(bytearray(data.tobytes())), kind, 16, 5, 0)
    converter = pylon.ImageFormatConverter()
    converter.OutputPixelFormat = pylon.PixelType_Mono16
    converter.GetNodeMap().GetNode("OutputBitAlignment").FromString("MsbAligned")
    deep = np.asarray(converter.Convert(image).GetArray())
    shift = 16 - BITS[pixel_format]
    exact = (deep >> shift) << shift
    assert (levels.read(data) == np.rint(exact / 257)).all()


def test_value_that_does_not_fit_its_format_is_data_error() -> None:
    levels = Levels("Mono12", 4)
    with pytest.raises(DataError, match="value 4096 in Mono12; expected less than 4096"):
        levels.read(np.array([[0, 0, 0, 4096]], "<u2").view(np.uint8))


def test_mono16_that_holds_12_bits_is_refused_until_something_bright_came() -> None:
    levels = Levels("Mono16", 2)
    dark, bright = (np.array([[0, value]], "<u2").view(np.uint8) for value in (4095, 4096))
    with pytest.raises(DataError, match="looks like 12 bits in 16: set PixelFormat to Mono12"):
        levels.read(dark)
    assert levels.read(np.zeros((1, 4), np.uint8)).tolist() == [[0, 0]]
    assert levels.read(bright).tolist() == [[0, 16]]
    assert levels.read(dark).tolist() == [[0, 16]]


@pytest.mark.parametrize(
    ("pixel_format", "width_px", "reason"),
    [("RGB8", 8, "delivers RGB8; expected one of Mono8"), ("Mono12p", 7, "no whole bytes")],
)
def test_format_that_cannot_be_read_is_data_error(
    pixel_format: str, width_px: int, reason: str
) -> None:
    with pytest.raises(DataError, match=reason):
        Levels(pixel_format, width_px)
