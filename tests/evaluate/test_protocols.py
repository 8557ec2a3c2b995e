"""What each protocol fixes: geometry, mask rule, decision."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from magtiles_seg.dataset.samples import Sample
from magtiles_seg.dataset.splits import Split, part_sha256
from magtiles_seg.errors import ConfigError
from magtiles_seg.evaluate.protocols import (
    PROTOCOLS,
    Protocol,
    as_measured,
    fit_image,
    fit_mask,
    get_protocol,
    prepare,
)
from magtiles_seg.result import Decision


def ramp(height: int, width: int) -> npt.NDArray[np.uint8]:
    return np.tile(np.linspace(0, 255, width).astype(np.uint8), (height, 1))


@pytest.mark.parametrize("name", ["native", "T"])
def test_geometry_native_keeps_every_pixel(name: str) -> None:
    image = ramp(37, 53)
    assert np.array_equal(fit_image(image, PROTOCOLS[name].geometry), image)


@pytest.mark.parametrize("name", ["P1", "P2"])
def test_geometry_of_the_published_list_squashes_to_256(name: str) -> None:
    mask = np.zeros((100, 50), np.uint8)
    mask[:50, :25] = 3
    fitted = fit_mask(mask, PROTOCOLS[name].geometry)
    expected = np.zeros((256, 256), np.uint8)
    expected[:128, :128] = 3
    assert np.array_equal(fitted, expected)


def test_geometry_of_the_reference_system_keeps_the_centre_and_the_aspect() -> None:
    wide = np.zeros((112, 336), np.uint8)
    wide[:, 112:224] = 1
    assert fit_mask(wide, PROTOCOLS["P1b"].geometry).tolist() == np.ones((224, 224), int).tolist()
    tall = np.ascontiguousarray(np.rot90(wide))
    assert fit_mask(tall, PROTOCOLS["P1b"].geometry).all()


def test_geometry_of_the_reference_system_whole_keeps_what_the_crop_cuts_off() -> None:
    wide = np.zeros((112, 336), np.uint8)
    wide[:, :20] = 1
    assert not fit_mask(wide, PROTOCOLS["P1b"].geometry).any()
    assert fit_mask(wide, PROTOCOLS["P1b"].geometry, whole=True).shape == (224, 672)
    assert fit_mask(wide, PROTOCOLS["P1b"].geometry, whole=True)[:, :40].all()


def test_picture_filter_of_p1_is_lanczos_and_of_p2_nearest() -> None:
    image = np.random.default_rng(0).integers(0, 256, (90, 70)).astype(np.uint8)
    for name, kind in {"P1": Image.Resampling.LANCZOS, "P2": Image.Resampling.NEAREST}.items():
        expected = np.asarray(Image.fromarray(image).resize((256, 256), kind))
        assert np.array_equal(fit_image(image, PROTOCOLS[name].geometry), expected)


@given(st.sampled_from(sorted(PROTOCOLS)), st.integers(8, 500), st.integers(8, 500), st.booleans())
def test_fitted_mask_any_size_fits_its_picture_and_invents_no_class(
    name: str, height: int, width: int, whole: bool
) -> None:
    geometry = PROTOCOLS[name].geometry
    mask = (np.add.outer(np.arange(height), np.arange(width)) % 3 * 2).astype(np.uint8)
    fitted = fit_mask(mask, geometry, whole=whole)
    assert fitted.shape == fit_image(mask, geometry, whole=whole).shape
    assert set(np.unique(fitted)) <= {0, 2, 4}
    if geometry.side_px and not whole:
        assert fitted.shape == (geometry.side_px, geometry.side_px)


@pytest.mark.parametrize(("name", "defect_px"), [("T", 1), ("P1b", 2)])
def test_prepare_grey_mask_follows_the_mask_rule(tmp_path: Path, name: str, defect_px: int) -> None:
    grey = np.zeros((224, 224), np.uint8)
    grey[0, :3] = 127, 128, 0
    Image.fromarray(grey).save(tmp_path / "exp1_num_1.png")
    Image.fromarray(grey).save(tmp_path / "picture.png")
    sample = Sample(
        "exp1_num_1", "crack", tmp_path / "picture.png", tmp_path / "exp1_num_1.png", group=1
    )
    image, target = prepare(sample, PROTOCOLS[name])
    assert np.array_equal(image, grey)
    assert np.count_nonzero(target) == defect_px
    assert set(np.unique(target)) == {0, 3}


def test_decision_published_protocol_fixes_the_pixel_threshold_alone() -> None:
    model = Decision(threshold=0.3, min_area_px=9, reject_score=0.7, score_top_k_px=5)
    fixed = Decision(threshold=0.5, min_area_px=1, reject_score=0.7, score_top_k_px=5)
    assert PROTOCOLS["T"].decision(model) == model
    assert all(PROTOCOLS[name].decision(model) == fixed for name in ("P1", "P1b", "P2"))


def test_protocols_that_split_at_random_say_that_they_leak() -> None:
    assert {name for name, protocol in PROTOCOLS.items() if protocol.leaky} == {"P1", "P1b", "P2"}


def test_protocol_unknown_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"no protocol 'P3'; expected one of native, T, T-tile"):
        get_protocol("P3")


def sample(name: str, group: int) -> Sample:
    return Sample(name, "free", Path(f"{name}.png"), None, group)


def split_of(rule: str, train: Sequence[Sample], test: Sequence[Sample]) -> Split:
    parts = (tuple(s.id for s in train), (), tuple(s.id for s in test))
    return Split(rule, 0, 0, 5, 0.1, *parts, data_sha256="")


A, B, A2 = sample("a", 1), sample("b", 2), sample("a2", 1)


def measured(
    rule: str, test: Sample, name: str = "T", **given: str | Sequence[str] | None
) -> Protocol:
    split = split_of(rule, [A], [test])
    return as_measured(PROTOCOLS[name], split, [A], [test], **given)  # type: ignore[arg-type]


def test_as_measured_protocol_on_its_own_split_keeps_its_name() -> None:
    own = part_sha256(["a"])
    assert measured("grouped", B, training_sha256=own) is PROTOCOLS["T"]
    assert measured("grouped", B, training_sha256=None) is PROTOCOLS["T"]
    assert measured("P1", A2, "P1") is PROTOCOLS["P1"]


@pytest.mark.parametrize(
    ("protocol", "name", "leaky", "why"),
    [
        (measured("random", A2), "native/random", True, "rule is random; 1 of the scored tiles"),
        (measured("random", B), "native/random", False, "the split's rule is random"),
        (measured("grouped", A2), "native/grouped", True, "1 of the scored tiles are in training"),
        (measured("grouped", B, part="all"), "native/grouped/all", False, "the part 'all'"),
        (measured("grouped", B, training_sha256="x"), "native/grouped", False, "other pictures"),
        (measured("grouped", B, taken_over=["x"]), "native/grouped", False, "train.start"),
        (
            measured("grouped", B, taken_over=[""]),
            "native/grouped",
            False,
            "its members was",
        ),
        (measured("grouped", B, "P1"), "P1/grouped", False, "not protocol P1: the split's rule"),
    ],
)
def test_as_measured_anything_else_is_named_by_its_pictures_and_split(
    protocol: Protocol, name: str, leaky: bool, why: str
) -> None:
    assert (protocol.name, protocol.leaky) == (name, leaky)
    assert why in protocol.summary
    assert protocol.summary.startswith("not protocol ")


def test_as_measured_native_pictures_claim_no_split_but_say_that_it_leaks() -> None:
    protocol = measured("random", A2, "native")
    assert (protocol.name, protocol.split_rule, protocol.leaky) == ("native", "random", True)


def test_as_measured_pictures_of_unknown_tile_are_no_tile_mates() -> None:
    one, other = sample("x", -1), sample("y", -1)
    split = split_of("grouped", [one], [other])
    assert as_measured(PROTOCOLS["T"], split, [one], [other]) is PROTOCOLS["T"]
