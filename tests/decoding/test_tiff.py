"""TIFF by its tags: the truth, or a refusal that names the reason; never something else."""

from __future__ import annotations

import io
import struct
import warnings
from typing import Any

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from picturefiles import Values, tiff_file, tiff_tags
from pictures import GREY, RGB, RGBA, encoded
from PIL import Image

from magtiles_seg.errors import ImageError
from magtiles_seg.image import read_image, read_levels

GREY_16 = GREY.astype(np.uint16) * 257
DTYPES = ("u1", "u2", "i1", "i2", "u4", "f2", "f4", "f8")
COLOURS = (
    *(("minisblack", 1), ("miniswhite", 1), ("minisblack", 2), ("minisblack", 3), ("rgb", 3)),
    *(("rgb", 4), ("rgb", 5), ("separated", 4), ("cielab", 3), ("ycbcr", 3), ("cfa", 1)),
)
EXTRA = ("unassalpha", "assocalpha", "unspecified")


def truth(levels: NDArray[Any], photometric: str, extra: str) -> NDArray[Any]:
    """Grey levels, 0..255, of (H, W, C) stored ones, as the TIFF standard and our table say."""
    share = levels / np.iinfo(levels.dtype).max
    if photometric == "separated":
        share = (1 - share[..., :3]) * (1 - share[..., 3:])
    alpha = share[..., -1] if levels.shape[2] in (2, 4) and extra == "unassalpha" else 1
    colours = 3 if share.shape[2] >= 3 else 1
    grey = share[..., :3] @ [0.299, 0.587, 0.114] if colours == 3 else share[..., 0]
    return (1 - grey if photometric == "miniswhite" else grey * alpha) * 255


@st.composite
def varieties(draw: st.DrawFn) -> tuple[NDArray[Any], dict[str, Any]]:
    """Stored levels, (H, W, C), and how tifffile is to write them."""
    dtype = np.dtype(draw(st.sampled_from(DTYPES + ("u1", "u2") * 4)))
    photometric, samples = draw(st.sampled_from(COLOURS))
    shape = (draw(st.integers(1, 40)), draw(st.integers(2, 40)), samples)
    random = np.random.default_rng(draw(st.integers(0, 99)))
    if dtype.kind == "f":
        levels: NDArray[Any] = random.random(shape).astype(dtype)
    else:
        bounds = np.iinfo(dtype)
        levels = random.integers(bounds.min, bounds.max, shape, dtype, endpoint=True)
    levels[0, 0] = 1 if dtype.kind == "f" else bounds.max  # so that 16 bits are seen to be filled
    levels[-1, -1] = 0
    options: dict[str, Any] = {
        "photometric": photometric,
        "byteorder": draw(st.sampled_from("<>")),
        "bigtiff": draw(st.booleans()),
        "compression": draw(st.sampled_from([None, "zlib", "deflate"])),
        "predictor": draw(st.sampled_from([None, 2, 3])),
        "tile": draw(st.sampled_from([None, (16, 32)])),
        "rowsperstrip": draw(st.sampled_from([None, 1, 7])),
    }
    if options["tile"] is not None or shape[0] == 1:
        options["rowsperstrip"] = None
    beyond = samples - {"rgb": 3, "ycbcr": 3, "cielab": 3, "separated": 4}.get(photometric, 1)
    options["extrasamples"] = [draw(st.sampled_from(EXTRA))] * beyond
    options["planarconfig"] = draw(st.sampled_from(["contig", "separate"])) if samples > 1 else None
    return levels, options


def written(levels: NDArray[Any], options: dict[str, Any]) -> bytes | None:
    """The file, or None where tifffile does not write this kind."""
    if options["planarconfig"] == "separate":
        levels = np.moveaxis(levels, 2, 0)
    elif levels.shape[2] == 1:
        levels = levels[..., 0]
    stream = io.BytesIO()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tifffile.imwrite(stream, levels, metadata=None, **options)
    except (ValueError, KeyError, TypeError, NotImplementedError):
        return None
    return stream.getvalue()


@settings(max_examples=300)
@given(varieties())
def test_read_image_any_tiff_is_the_truth_or_refused(variety: tuple[NDArray[Any], Any]) -> None:
    levels, options = variety
    extra = (options["extrasamples"] or [""])[0]
    if extra == "assocalpha" and levels.dtype.kind == "u" and levels.shape[2] in (2, 4):
        levels[..., :-1] = np.minimum(levels[..., :-1], levels[..., -1:])
    content = written(levels, options)
    if content is None:
        return
    picture, refusal = outcome(content)
    if picture is None:
        assert refusal == "unsupported"
        assert not is_usual(levels, options)
        return
    expected = truth(levels, options["photometric"], extra)
    assert np.abs(picture - expected).max() <= most_off(levels)


def most_off(levels: NDArray[Any]) -> float:
    """Grey levels that an answer may be off by rounding.

    Of 16-bit colours Pillow keeps the high byte: a level of the colour, another of its alpha.
    """
    if levels.shape[2] == 1:
        return 0.51
    return 2.5 if levels.dtype == "u2" and levels.shape[2] > 3 else 2.0


def outcome(content: bytes) -> tuple[NDArray[np.uint8] | None, str]:
    try:
        return read_image(content), ""
    except ImageError as error:
        return None, error.reason


def is_usual(levels: NDArray[Any], options: dict[str, Any]) -> bool:
    """Whether any viewer opens it."""
    grey_or_rgb = options["photometric"] in ("minisblack", "miniswhite", "rgb")
    simple = options["predictor"] != 3 and options["planarconfig"] != "separate"
    return levels.dtype in ("u1", "u2") and grey_or_rgb and simple and not options["extrasamples"]


def test_read_image_16_bit_white_is_zero_is_inverted() -> None:
    for order in "<>":
        stored = (65535 - GREY_16).astype(order + "u2")
        content = tiff_file(tiff_tags(stored, t262=0), stored.tobytes(), order=order)
        assert np.array_equal(read_image(content), GREY)
        mask = (65535 - GREY.astype(np.uint16)).astype(order + "u2")
        content = tiff_file(tiff_tags(mask, t262=0), mask.tobytes(), order=order)
        assert np.array_equal(read_levels(content), GREY)


def test_read_image_16_bit_white_is_zero_as_pillow_image_is_inverted() -> None:
    stored = 65535 - GREY_16
    content = tiff_file(tiff_tags(stored, t262=0), stored.tobytes())
    assert np.array_equal(read_image(Image.open(io.BytesIO(content))), GREY)


def test_read_image_planar_16_bit_colour_is_refused_as_file_and_as_pillow_image() -> None:
    deep = RGB.astype("<u2") * 257
    planes, size = np.moveaxis(deep, 2, 0).tobytes(), deep[..., 0].nbytes
    parts = {"t273": [8, 8 + size, 8 + 2 * size], "t279": [size] * 3}
    content = tiff_file(tiff_tags(deep, t284=2, **parts), planes)
    for source in (content, Image.open(io.BytesIO(content))):
        with pytest.raises(ImageError, match=r"3 planes of 16 bits per sample \(Planar") as caught:
            read_image(source)
        assert caught.value.reason == "unsupported"


def test_read_image_planar_grey_is_grey() -> None:
    for levels in (GREY, GREY_16):
        content = tiff_file(tiff_tags(levels, t284=2), levels.tobytes())
        assert np.array_equal(read_image(content), GREY)


@pytest.mark.parametrize("bits", [1, 2, 4])
@pytest.mark.parametrize("photometric", [0, 1])
@pytest.mark.parametrize("fill_order", [1, 2])
@pytest.mark.parametrize("order", "<>")
def test_read_image_packed_grey_is_unpacked(
    bits: int, photometric: int, fill_order: int, order: str
) -> None:
    highest = (1 << bits) - 1
    levels = np.random.default_rng(bits).integers(0, highest + 1, (9, 13), dtype=np.uint8)
    single = np.unpackbits(levels[..., None], axis=2)[..., -bits:].reshape(9, -1)
    packed = np.packbits(single, axis=1)
    if fill_order == 2:
        packed = np.packbits(np.unpackbits(packed, bitorder="little")).reshape(packed.shape)
    tags = tiff_tags(levels, t258=bits, t262=photometric, t266=fill_order)
    shown = levels if photometric else highest - levels
    expected = shown.astype(int) * 255 // highest
    content = tiff_file(tags, packed.tobytes(), order=order)
    assert np.array_equal(read_image(content), expected)
    assert np.array_equal(read_levels(content), expected)


def test_read_image_palette_takes_the_high_byte_of_its_colours() -> None:
    ramp = [level * 257 for level in range(256)]
    content = tiff_file(tiff_tags(GREY, t262=3, t320=ramp[::-1] * 3), GREY.tobytes())
    assert np.array_equal(read_image(content), 255 - GREY)
    with pytest.raises(ImageError, match="greys in another order than its indices"):
        read_levels(content)
    upright = tiff_file(tiff_tags(GREY, t262=3, t320=ramp * 3), GREY.tobytes())
    assert np.array_equal(read_levels(upright), GREY)


REFUSED: dict[str, tuple[NDArray[Any], dict[str, Values], str]] = {
    "12 bits": (GREY, {"t258": 12}, r"\[12\] bits per sample"),
    "signed": (GREY, {"t339": 2}, r"SampleFormat=\[2\]"),
    "float": (GREY_16, {"t339": 3}, r"SampleFormat=\[3\]"),
    "undefined": (GREY, {"t339": 4}, r"SampleFormat=\[4\]"),
    "mixed bits": (RGB, {"t258": [8, 8, 16]}, r"\[8, 8, 16\] bits"),
    "old JPEG": (RGB, {"t259": 6, "t262": 6}, "Compression=6"),
    "uncompressed YCbCr": (RGB, {"t262": 6}, "PhotometricInterpretation=6"),
    "CIELab": (RGB, {"t262": 8}, "PhotometricInterpretation=8"),
    "colour filter": (GREY, {"t262": 32803}, "PhotometricInterpretation=32803"),
    "alpha unsaid": (RGBA, {"t262": 2}, "1 samples beyond its colours"),
    "grey beyond grey": (RGBA[..., :2], {"t262": 1, "t338": 0}, "1 samples beyond"),
    "associated grey": (RGBA[..., :2], {"t262": 1, "t338": 1}, "1 samples beyond"),
    "other inks": (RGBA, {"t262": 5, "t332": 2}, "other inks"),
    "8-bit palette": (GREY, {"t262": 3, "t320": [*range(256)] * 3}, "colour map of 8-bit"),
    "bits of 8 reversed": (GREY, {"t266": 2}, "FillOrder=2 for 8 bits"),
    "bits of 16 reversed": (GREY_16, {"t266": 2}, "FillOrder=2 for 16 bits"),
    "LERC": (GREY, {"t259": 34887}, "Compression=34887"),
    "preview first": (GREY, {"t254": 1}, "starts with a preview"),
    "ImageJ stack": (GREY, {"t270": b"ImageJ=1.54f\nimages=12\nslices=12\n\0"}, "holds 12 frames"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_read_image_tiff_of_other_kind_is_refused_with_the_reason(name: str) -> None:
    levels, changes, match = REFUSED[name]
    content = tiff_file(tiff_tags(levels, **changes), levels.tobytes())
    for read in (read_image, read_levels):
        with pytest.raises(ImageError, match=match) as caught:
            read(content)
        assert caught.value.reason == "unsupported"


DAMAGED: dict[str, tuple[dict[str, Values], int | None, str]] = {
    "no photometric": ({}, 262, "does not say what its samples mean"),
    "no strips": ({}, 273, "has 0 strips or tiles; expected 1"),
    "too many strips": ({"t273": [8, 8, 8]}, None, "has 3 strips or tiles; expected 1"),
    "strip beyond the end": ({"t273": 200}, None, "ends before its pixels do"),
    "taller": ({"t257": 40, "t278": 40}, None, "ends before its pixels do"),
    "short palette": ({"t262": 3, "t320": [9] * 30}, None, "30 values in its colour map"),
    "bits of other samples": ({"t258": [8, 8]}, None, "contradicts itself about its samples"),
    "strips that share bytes": (
        {"t259": 5, "t278": 1, "t273": [8] * 12, "t279": [204] * 12},
        None,
        "share their bytes",
    ),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_read_image_tiff_that_contradicts_itself_is_refused(name: str) -> None:
    changes, absent, match = DAMAGED[name]
    tags = tiff_tags(GREY, **changes)
    content = tiff_file({tag: tags[tag] for tag in tags if tag != absent}, GREY.tobytes())
    if absent == 273:
        content = content.replace(struct.pack("<HHI", 273, 3, 1), struct.pack("<HHI", 999, 3, 1))
    with pytest.raises(ImageError, match=match) as caught:
        read_image(content)
    assert caught.value.reason == "invalid"


@pytest.mark.parametrize("kind", ["tiff_lzw", "packbits", "tiff_adobe_deflate", "zstd"])
def test_read_image_compressed_tiff_is_read(kind: str) -> None:
    assert np.array_equal(read_image(encoded(GREY, "TIFF", compression=kind)), GREY)
    assert np.array_equal(read_image(encoded(RGB, "TIFF", compression=kind)), read_image(RGB))
    big = encoded(GREY_16, "TIFF", compression=kind, big_tiff=True)
    assert np.array_equal(read_image(big), GREY)


@pytest.mark.parametrize("kind", ["tiff_ccitt", "group3", "group4"])
def test_read_image_fax_tiff_is_read(kind: str) -> None:
    image = Image.fromarray(GREY).convert("1")
    content = encoded(image, "TIFF", compression=kind)
    assert np.array_equal(read_image(content), np.asarray(image.convert("L")))


def test_read_image_jpeg_in_tiff_is_near_what_was_written() -> None:
    smooth = np.add.outer(np.arange(64), np.arange(96)).astype(np.uint8)
    for image in (Image.fromarray(smooth), Image.fromarray(np.dstack([smooth] * 3))):
        content = encoded(image, "TIFF", compression="jpeg", quality=95)
        assert np.abs(read_image(content).astype(int) - smooth).max() <= 4
    colour = np.dstack([smooth, 255 - smooth, smooth // 2])
    ycbcr = encoded(
        Image.fromarray(colour).convert("YCbCr"), "TIFF", compression="jpeg", quality=95
    )
    assert np.abs(read_image(ycbcr).astype(int) - read_image(colour)).max() <= 6


def test_read_image_page_that_is_a_reduced_copy_is_left_out() -> None:
    stream = io.BytesIO()
    with tifffile.TiffWriter(stream) as file:
        file.write(GREY, photometric="minisblack")
        file.write(GREY[::2, ::2], photometric="minisblack", subfiletype=1)
    assert np.array_equal(read_image(stream.getvalue()), GREY)


def test_read_image_previews_in_sub_directories_are_left_out() -> None:
    stream = io.BytesIO()
    with tifffile.TiffWriter(stream) as file:
        file.write(GREY, photometric="minisblack", subifds=1)
        file.write(GREY[::2, ::2], photometric="minisblack", subfiletype=1)
    assert np.array_equal(read_image(stream.getvalue()), GREY)


def test_read_image_tiff_of_many_pages_is_refused_at_the_second() -> None:
    stream = io.BytesIO()
    tifffile.imwrite(stream, np.zeros((3, 12, 17), np.uint8), photometric="minisblack")
    with pytest.raises(ImageError, match="holds several frames or pages"):
        read_image(stream.getvalue())


def test_read_image_tiff_whose_pages_point_at_each_other_is_refused() -> None:
    at = 8 + GREY.nbytes
    content = tiff_file(tiff_tags(GREY), GREY.tobytes(), following=at)
    with pytest.raises(ImageError, match="directories that point at each other"):
        read_image(content)


def test_read_image_tile_bomb_is_refused() -> None:
    tags = tiff_tags(GREY, t259=5, t322=1 << 16, t323=1 << 14, t324=8, t325=20)
    content = tiff_file({k: v for k, v in tags.items() if k != 278}, GREY.tobytes())
    content = content.replace(struct.pack("<HHI", 273, 3, 1), struct.pack("<HHI", 9, 3, 1))
    with pytest.raises(ImageError, match="tiles of 1,073,741,824 px") as caught:
        read_image(content)
    assert caught.value.reason == "too_large"


def test_read_image_damaged_fax_is_refused_in_silence(capfd: pytest.CaptureFixture[str]) -> None:
    one_bit = Image.fromarray(np.tile(GREY, (3, 3))).convert("1")
    content = bytearray(encoded(one_bit, "TIFF", compression="group4"))
    start = Image.open(io.BytesIO(content)).tag_v2[273][0]  # type: ignore[attr-defined]
    content[start + 40] ^= 0xFF
    with pytest.raises(ImageError, match=r"the picture .* damaged pixels, by Fax4Decode"):
        read_image(bytes(content))
    assert capfd.readouterr() == ("", "")


def test_read_image_tiff_that_lacks_its_last_byte_is_refused() -> None:
    file = io.BytesIO()
    tifffile.imwrite(file, GREY)  # the pixels stand last
    content = file.getvalue()[: file.getvalue().rindex(GREY.tobytes()) + GREY.size]
    assert np.array_equal(read_image(content), GREY)
    with pytest.raises(ImageError, match="ends before its pixels do"):
        read_image(content[:-1])
