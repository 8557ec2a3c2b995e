"""The protocols that accuracy is measured by: what each of them fixes, as data.

A protocol fixes which split it is measured on, what becomes of the picture before the model sees
it, from which grey level a mask pixel is a defect, which pictures count, and which figures are
given. `T` is the leak-free one. `P1`, `P1b` and `P2` stand beside published numbers only: their
splits put exposures of one physical tile into both training and test.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from magtiles_seg.dataset.samples import MaskRule, Sample, load_pair
from magtiles_seg.dataset.splits import Split, part_sha256
from magtiles_seg.errors import ConfigError
from magtiles_seg.labels import FREE, LABELS
from magtiles_seg.result import Decision

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """What becomes of a picture and its mask before they meet the model.

    Attributes:
        mode: `"native"` (nothing), `"squash"` (resized to a square, the aspect lost) or `"crop"`
            (short side resized, then the centre cut out).
        side_px: Side of the square that comes out; 0 for native.
        picture_filter: Pillow's name of the filter for the picture. Masks are resized by nearest.
    """

    mode: str = "native"
    side_px: int = 0
    picture_filter: str = "NEAREST"


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """Everything that a protocol fixes.

    Attributes:
        name: What every figure is reported with.
        summary: One line for reports.
        split_rule: Rule of the split whose test part is scored; `None` for whatever is given.
        leaky: Whether that split puts exposures of one tile into both training and test.
        geometry: What becomes of the pictures.
        mask_rules: Which mask pixels are defect, `"ge128"` or `"gt0"`. The first gives the
            figures, the others are given beside them.
        threshold: Pixel probability from which a pixel is defect, without any smallest region;
            `None` for the model's own decision.
        free: Whether sound pictures are scored.
        empty_masks: Whether pictures filed as defects, with an empty mask, are scored.
        families: The figures given: `"binary"`, `"pictures"`, `"classes"`, `"verdict"`, `"tiles"`.
    """

    name: str
    summary: str
    split_rule: str | None
    leaky: bool
    geometry: Geometry
    mask_rules: tuple[MaskRule, ...]
    threshold: float | None
    free: bool
    empty_masks: bool
    families: tuple[str, ...]

    def decision(self, model: Decision) -> Decision:
        """Return the model's decision with what the protocol fixes of it."""
        if self.threshold is None:
            return model
        return replace(model, threshold=self.threshold, min_area_px=1)

    def scores(self, sample: Sample) -> bool:
        """Tell whether the protocol scores this sample."""
        return self.free or sample.label != FREE


_ALL_FAMILIES = ("binary", "pictures", "classes", "verdict")

PROTOCOLS: dict[str, Protocol] = {
    protocol.name: protocol
    for protocol in (
        Protocol(
            name="native",
            summary="the given pictures at their own size",
            split_rule=None,
            leaky=False,
            geometry=Geometry(),
            mask_rules=("ge128",),
            threshold=None,
            free=True,
            empty_masks=False,
            families=_ALL_FAMILIES,
        ),
        Protocol(
            name="T",
            summary="whole tiles held out (5 folds), own size",
            split_rule="grouped",
            leaky=False,
            geometry=Geometry(),
            mask_rules=("ge128",),
            threshold=None,
            free=True,
            empty_masks=False,
            families=_ALL_FAMILIES,
        ),
        Protocol(
            name="T-tile",
            summary="whole tiles held out (5 folds), a tile judged by all its pictures",
            split_rule="grouped",
            leaky=False,
            geometry=Geometry(),
            mask_rules=("ge128",),
            threshold=None,
            free=True,
            empty_masks=False,
            families=("tiles",),
        ),
        Protocol(
            name="P1",
            summary="published list (leaky), 256x256, p >= .5",
            split_rule="P1",
            leaky=True,
            geometry=Geometry(mode="squash", side_px=256, picture_filter="LANCZOS"),
            mask_rules=("ge128",),
            threshold=0.5,
            free=True,
            empty_masks=True,
            families=("binary",),
        ),
        Protocol(
            name="P1b",
            summary="defect pictures, random split (leaky), centre 224x224, p >= .5",
            split_rule="P1b",
            leaky=True,
            geometry=Geometry(mode="crop", side_px=224, picture_filter="BILINEAR"),
            mask_rules=("gt0",),
            threshold=0.5,
            free=False,
            empty_masks=True,
            families=("binary",),
        ),
        Protocol(
            name="P2",
            summary="multi-class, random split (leaky), 256x256, p >= .5",
            split_rule="P2",
            leaky=True,
            geometry=Geometry(mode="squash", side_px=256, picture_filter="NEAREST"),
            mask_rules=("gt0", "ge128"),
            threshold=0.5,
            free=False,
            empty_masks=True,
            families=("classes", "binary"),
        ),
    )
}
"""The protocols by name."""


def get_protocol(protocol: str | Protocol) -> Protocol:
    """Return the protocol of that name (or the one given).

    Raises:
        ConfigError: There is no protocol of that name.
    """
    if isinstance(protocol, Protocol):
        return protocol
    if protocol not in PROTOCOLS:
        raise ConfigError(
            f"There is no protocol {protocol!r}; expected one of {', '.join(PROTOCOLS)}. "
            "Set evaluate.protocol (or --protocol) to one of them."
        )
    return PROTOCOLS[protocol]


def as_measured(
    protocol: Protocol,
    split: Split,
    trained: Iterable[Sample],
    scored: Iterable[Sample],
    *,
    part: str = "test",
    training_sha256: str | None = None,
    taken_over: Iterable[str] = (),
) -> Protocol:
    """Return what figures on a split may be called: the protocol, or what they are of instead.

    Figures get the protocol's name only where its split rule, the split's test part, and a model
    that was trained on the split's training part come together. Others are named by their pictures
    and split, as `native/random` or `native/grouped/validation`.

    Args:
        protocol: What was asked for.
        split: The split that is scored.
        trained: The samples of its training part.
        scored: The samples that are scored.
        part: Which part these are: `"test"`, `"validation"` or `"all"`.
        training_sha256: What the model's card says of the pictures that it was trained on, see
            `magtiles_seg.dataset.splits.part_sha256`; None where it says nothing.
        taken_over: Which other parts it knows, see `magtiles_seg.dataset.splits.taken_over`.
    """
    known = {sample.group for sample in trained if sample.group >= 0}
    torn = known & {sample.group for sample in scored}
    reasons = []
    if split.rule != protocol.split_rule:
        reasons.append(f"the split's rule is {split.rule}")
    if part != "test":
        reasons.append(f"scored on the part '{part}'")
    if torn and not protocol.leaky:
        reasons.append(f"{len(torn)} of the scored tiles are in training too (leaky)")
    if training_sha256 not in (None, part_sha256(split.train)):
        reasons.append("the model was trained on other pictures than the split's training part")
    if tuple(taken_over):
        reasons.append(
            "the model that it started from (train.start), its teacher or one of its members was "
            "trained on other pictures than the split's training part, and may know those that are "
            "scored"
        )
    if protocol.split_rule is None:
        return replace(protocol, split_rule=split.rule, leaky=bool(torn))
    if not reasons:
        return protocol
    pictures = "native" if protocol.geometry == Geometry() else protocol.name
    return replace(
        protocol,
        name="/".join([pictures, split.rule, *([part] if part != "test" else [])]),
        summary=f"not protocol {protocol.name}: {'; '.join(reasons)}",
        split_rule=split.rule,
        leaky=bool(torn),
    )


def fit_image(image: Pixels, geometry: Geometry, *, whole: bool = False) -> Pixels:
    """Give a picture the protocol's size.

    Args:
        image: (H, W) uint8 grey levels.
        geometry: The protocol's.
        whole: Keep what a centre crop would cut off; training sees all of a picture.

    Returns:
        (side, side) uint8, or the picture itself at native geometry.
    """
    return _fit(image, geometry, geometry.picture_filter, whole)


def fit_mask(mask: Pixels, geometry: Geometry, *, whole: bool = False) -> Pixels:
    """Give a mask the protocol's size, by nearest neighbour.

    Args:
        mask: (H, W) uint8 class indices or 0/1.
        geometry: The protocol's.
        whole: Keep what a centre crop would cut off.

    Returns:
        (side, side) uint8 with no value that the mask did not hold, or the mask itself.
    """
    return _fit(mask, geometry, "NEAREST", whole)


def prepare(
    sample: Sample, protocol: Protocol, *, labels: Sequence[str] = LABELS
) -> tuple[Pixels, Pixels]:
    """Read a sample as the protocol measures it.

    Args:
        sample: A sample of the data set.
        protocol: The protocol; its first mask rule holds.
        labels: Class names by index, background first.

    Returns:
        The picture, (H, W) uint8 grey levels, and the target, (H, W) uint8 class indices of which
        everything above 0 is defect.

    Raises:
        FileNotFoundError, DataError: Picture or mask are gone, damaged, or of two sizes.
    """
    image, target = load_pair(sample, labels=labels, rule=protocol.mask_rules[0])
    return fit_image(image, protocol.geometry), fit_mask(target, protocol.geometry)


def _fit(pixels: Pixels, geometry: Geometry, filter_name: str, whole: bool) -> Pixels:
    if geometry.mode == "native":
        return pixels
    from PIL import Image

    side, (height, width) = geometry.side_px, pixels.shape
    scale = side / min(height, width)
    size = (side, side)
    if geometry.mode == "crop":
        size = (max(side, round(width * scale)), max(side, round(height * scale)))
    resized = Image.fromarray(pixels).resize(size, Image.Resampling[filter_name])
    if whole:
        return np.array(resized, np.uint8)
    left, top = (size[0] - side) // 2, (size[1] - side) // 2
    return np.array(resized.crop((left, top, left + side, top + side)), np.uint8)
