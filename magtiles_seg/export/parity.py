"""Parity: how far one model's answers are from another's, on which tiles, and the gate."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from magtiles_seg.dataset.samples import Sample, load_image
from magtiles_seg.dataset.synthetic import DEFECTS, synthetic_tile
from magtiles_seg.errors import ConfigError, DataError, InferenceError, ParityError
from magtiles_seg.image import MIN_SIDE_PX, read_image
from magtiles_seg.infer.backends.base import Backend
from magtiles_seg.infer.manifest import Manifest
from magtiles_seg.labels import FREE
from magtiles_seg.result import Decision, Segmentation

if TYPE_CHECKING:
    from magtiles_seg.config import ExportParams

DRAWN_PER_CLASS = 40
"""Synthetic tiles of each class, where there are no others: of four, a small region is a tenth."""

_EXPOSURES = 6
_UNLABELLED = "unlabelled"
_NO_DEFECT = (FREE, _UNLABELLED)
"""Classes of pictures whose masks are no defect's: of sound tiles the verdict is what counts."""


@dataclass(frozen=True, kw_only=True, eq=False)
class TileSet:
    """Pictures and what they show.

    Attributes:
        pictures: (H, W) uint8 each.
        classes: One name per picture, `"free"` for a sound tile.
        origin: `"given"`, by whoever compares, or `"synthetic"`: drawn here for the comparison.
        seen: What is known of them and the model's training, such as `"not trained on"`; empty:
            nothing.
    """

    pictures: tuple[npt.NDArray[np.uint8], ...]
    classes: tuple[str, ...]
    origin: str
    seen: str = ""

    def within(self, least_hw: Sequence[int], greatest_hw: Sequence[int]) -> TileSet:
        """Return the tiles mirrored on or cut to sizes that an engine takes.

        Args:
            least_hw: Least height and width, in px.
            greatest_hw: Greatest height and width, in px.
        """
        return replace(self, pictures=tuple(fit(self.pictures, least_hw, greatest_hw)))

    def __str__(self) -> str:
        """Return how many, whether they were drawn here, and whether the model has seen them."""
        kind = "" if self.origin == "given" else f"{self.origin} "
        words = f"{len(self.pictures)} {kind}tiles"
        return f"{words}, {self.seen}" if self.seen else words


def fit(
    pictures: Iterable[npt.NDArray[np.uint8]], least_hw: Sequence[int], greatest_hw: Sequence[int]
) -> list[npt.NDArray[np.uint8]]:
    """Return pictures (H, W) uint8 mirrored on or cut to sizes that an engine takes.

    Args:
        pictures: (H, W) uint8 each.
        least_hw: Least height and width, in px.
        greatest_hw: Greatest height and width, in px.
    """
    fitted = []
    for picture in pictures:
        missing = [max(0, low - side) for low, side in zip(least_hw, picture.shape, strict=True)]
        padded = np.pad(picture, [(0, more) for more in missing], mode="symmetric")
        fitted.append(np.ascontiguousarray(padded[: greatest_hw[0], : greatest_hw[1]]))
    return fitted


def fit_to_engine(
    pictures: Sequence[npt.NDArray[np.uint8]], model: Path
) -> Sequence[npt.NDArray[np.uint8]]:
    """Return pictures (H, W) uint8 in sizes that a model file takes: all but an engine takes any.

    Raises:
        ModelError: An engine's manifest cannot be read.
    """
    profile = Manifest.read(model).profile if model.suffix.lower() == ".engine" else {}
    return fit(pictures, profile["min"][1:], profile["max"][1:]) if profile else pictures


def real_tiles(samples: Iterable[Sample], per_class: int) -> TileSet:
    """Return at most so many pictures of each class, chosen at random, the same ones every time.

    Raises:
        DataError: No picture is left; those with a side of less than 32 px do not count.
    """
    by_class: dict[str, list[Sample]] = {}
    for sample in samples:
        by_class.setdefault(sample.label, []).append(sample)
    rng = random.Random(0)
    chosen = [
        sample
        for _, group in sorted(by_class.items())
        for sample in rng.sample(group, min(per_class, len(group)))
    ]
    read = [(load_image(sample), sample.label) for sample in chosen]
    kept = [(image, label) for image, label in read if min(image.shape) >= MIN_SIDE_PX]
    if not kept:
        raise DataError(
            f"there is no tile to compare on: expected pictures of at least {MIN_SIDE_PX} px a "
            f"side, got {len(read)} of which none is; name another data set"
        )
    return TileSet(
        pictures=tuple(image for image, _ in kept),
        classes=tuple(label for _, label in kept),
        origin="given",
    )


def _large_enough(paths: Sequence[Path], most: int) -> list[npt.NDArray[np.uint8]]:
    """Read the first pictures of at least 32 px a side, and no more of what may be many."""
    pictures = (read_image(path) for path in paths)
    return list(islice((one for one in pictures if min(one.shape) >= MIN_SIDE_PX), most))


def plain_tiles(
    paths: Sequence[Path], for_int8: int, for_proof: int
) -> tuple[TileSet | None, TileSet]:
    """Return two sets of pictures of which no more is known: for the ranges of int8, and for proof.

    Several exposures of a tile stand beside each other: so the sets are the two ends of the list.

    Args:
        paths: Picture files in their order.
        for_int8: Most pictures of each of six classes for the ranges, as of a labelled set; 0:
            none, and the first set is None.
        for_proof: As many for the proof.

    Raises:
        DataError: There are fewer than two pictures of at least 32 px a side, or none in one half.
        ImageError: One cannot be read.
    """
    kinds, half = len(DEFECTS) + 1, len(paths) // 2 if for_int8 else 0
    first = _large_enough(paths[:half], for_int8 * kinds)
    second = _large_enough(paths[half:][::-1], for_proof * kinds)[::-1]
    if len(first) + len(second) < 2 or not second or (half and not first):
        raise DataError(
            f"expected at least two pictures of at least {MIN_SIDE_PX} px a side, one to measure "
            f"on and one to compare on, got {len(first)} and {len(second)} of {len(paths)}; take "
            "more pictures"
        )
    sets = [
        TileSet(pictures=tuple(part), classes=(_UNLABELLED,) * len(part), origin="given")
        for part in (first, second)
    ]
    return (sets[0] if half else None), sets[1]


def synthetic_tiles(per_class: int) -> TileSet:
    """Return so many synthetic tiles of each class, the same ones every time."""
    wanted = [(label, index) for label in (None, *DEFECTS) for index in range(per_class)]
    tiles = [
        synthetic_tile(seed, defect=label, exposure=index % _EXPOSURES + 1)
        for seed, (label, index) in enumerate(wanted)
    ]
    return TileSet(
        pictures=tuple(tile.image for tile in tiles),
        classes=tuple(tile.label for tile in tiles),
        origin="synthetic",
    )


def halves(samples: Sequence[Sample]) -> tuple[list[Sample], list[Sample]]:
    """Return two halves by whole physical tiles: for the ranges of int8, and for proof."""
    sets: tuple[list[Sample], list[Sample]] = ([], [])
    counts: dict[str, dict[int, int]] = {}
    for sample in samples:
        tiles = counts.setdefault(sample.label, {})
        tiles.setdefault(sample.group, len(tiles))
    side: dict[int, int] = {}
    for tiles in counts.values():
        for group, number in tiles.items():
            side.setdefault(group, number % 2)
    for sample in samples:
        sets[side[sample.group]].append(sample)
    return sets


_BINS = 1 << 20
"""Of the histogram of differences, which replaces sorting a hundred million of them."""


@dataclass(frozen=True, kw_only=True)
class Tolerance:
    """How far a candidate may stray from its reference.

    Attributes:
        min_dice: Least Dice between the two masks, pooled over all pictures.
        min_class_dice: Least Dice over the pictures of any one class of defect: pooled figures are
            those of the largest defects.
        max_abs_diff: Greatest difference of a pixel's probability; 1: any. It tells whether a graph
            computes the same. Where rounding is meant to move it, masks and verdicts are what
            counts.
        max_flipped_fraction: Greatest share of pictures whose verdict changes.
    """

    min_dice: float = 0.999
    min_class_dice: float = 0.0
    max_abs_diff: float = 0.02
    max_flipped_fraction: float = 0.0

    @classmethod
    def of(cls, params: ExportParams, precision: str) -> Tolerance:
        """Return the tolerance that parameters give for a precision of the arithmetic.

        Args:
            params: The section `export`.
            precision: `"fp32"`, `"fp16"`, `"bf16"` or `"int8"`.

        Raises:
            ConfigError: The precision is unknown.
        """
        known = ("fp32", "fp16", "bf16", "int8")
        if precision not in known:
            raise ConfigError(
                f"unknown precision {precision!r}: expected one of {', '.join(known)}"
            )
        if precision == "fp32":
            return cls(
                min_dice=params.min_dice,
                max_abs_diff=params.max_abs_diff,
                max_flipped_fraction=params.max_flipped_fraction,
            )
        names = ("min_dice", "min_class_dice", "max_flipped_fraction")
        given = {name: getattr(params, f"{precision}_{name}") for name in names}
        return cls(max_abs_diff=1.0, **given)


@dataclass(frozen=True, kw_only=True)
class ParityReport:
    """What a comparison found.

    Attributes:
        pictures: How many were compared.
        dice: `2 |A and B| / (|A| + |B|)` of the masks, pooled over all pictures; all empty: 1.
        max_abs_diff: Greatest difference of a pixel's probability.
        p999_abs_diff: 99.9th percentile of that difference, to 1e-6.
        class_agreement: Share of equal classes among the pixels that both masks hold; none: 1.
        flipped_verdicts: How many pictures' verdicts differ.
        per_class: The same figures over the pictures of one class, by its name; empty where the
            pictures' classes are not known.
    """

    pictures: int
    dice: float
    max_abs_diff: float
    p999_abs_diff: float
    class_agreement: float
    flipped_verdicts: int
    per_class: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return the figures by name."""
        return asdict(self)


def compare(
    reference: Backend,
    candidate: Backend,
    pictures: Sequence[npt.NDArray[np.uint8]],
    *,
    classes: Sequence[str] = (),
    decision: Decision | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> ParityReport:
    """Compare two models picture by picture.

    Args:
        reference: The model that is right.
        candidate: The model under test.
        pictures: (H, W) uint8 each, sides of at least 32 px.
        classes: What each picture shows, one name per picture; none: nothing by class.
        decision: Thresholds of masks and verdicts; None: the reference's own.
        progress: Called with (pictures compared, pictures).

    Raises:
        ConfigError: There is no picture, or not one class name per picture.
        ParityError: The candidate's answer is none at all, such as NaN.
        InferenceError: A model cannot run.
    """
    if not pictures or len(classes) not in (0, len(pictures)):
        raise ConfigError(
            "parity needs at least one picture, and a class for each of them or for none, "
            f"got {len(pictures)} pictures and {len(classes)} classes"
        )
    decision = decision or reference.spec.card.decision
    whole, by_class = _Differences(), {name: _Differences() for name in sorted(set(classes))}
    for index, picture in enumerate(pictures):
        expected = _answer(reference, picture, decision)
        try:
            got = _answer(candidate, picture, decision)
        except InferenceError as error:
            raise ParityError(
                f"{candidate.spec.path.name} gives no answer on picture {index}: {error}; "
                "export it in a higher precision"
            ) from error
        sums = [whole, by_class[classes[index]]] if classes else [whole]
        for one in sums:
            one.add(expected, got)
        if progress is not None:
            progress(index + 1, len(pictures))
    parts = {name: one.figures() for name, one in by_class.items()}
    return ParityReport(**whole.figures(), per_class=parts)


def _answer(model: Backend, picture: npt.NDArray[np.uint8], decision: Decision) -> Segmentation:
    probability, classes = model.infer(picture[None])
    return Segmentation.from_prediction(
        picture, probability[0], classes[0], decision=decision, labels=model.spec.card.labels
    )


class _Differences:
    """Sums over pictures."""

    def __init__(self) -> None:
        self._pictures = self._flipped = 0
        self._both = self._total = self._agreed = 0
        self._greatest = 0.0
        self._histogram = np.zeros(_BINS + 1, np.int64)

    def add(self, expected: Segmentation, got: Segmentation) -> None:
        difference = np.abs(expected.probability - got.probability)
        common = expected.mask & got.mask == 1
        self._pictures += 1
        self._flipped += expected.verdict != got.verdict
        self._both += int(common.sum())
        self._total += int(expected.mask.sum()) + int(got.mask.sum())
        self._agreed += int((expected.classes == got.classes)[common].sum())
        self._greatest = max(self._greatest, float(difference.max()))
        bins = np.rint(difference * _BINS).astype(np.int64).ravel()
        np.add.at(self._histogram, bins, 1)

    def figures(self) -> dict[str, Any]:
        counts = np.cumsum(self._histogram)
        p999 = int(np.searchsorted(counts, 0.999 * counts[-1]))
        return {
            "pictures": self._pictures,
            "dice": 2 * self._both / self._total if self._total else 1.0,
            "max_abs_diff": self._greatest,
            "p999_abs_diff": p999 / _BINS,
            "class_agreement": self._agreed / self._both if self._both else 1.0,
            "flipped_verdicts": self._flipped,
        }


def check(report: ParityReport, tolerance: Tolerance) -> None:
    """Let a report pass, or say what failed.

    Raises:
        ParityError: A figure is outside the tolerance; the message gives all that are.
    """
    failures = [line for passed, line in _verdicts(report, tolerance) if not passed]
    if failures:
        raise ParityError(
            f"the exported model answers differently from its reference: {'; '.join(failures)}; "
            "export it in a higher precision, or widen that precision's limits in the section "
            "`export` of params.yaml"
        )


def _verdicts(report: ParityReport, tolerance: Tolerance) -> Iterator[tuple[bool, str]]:
    """Yield, of each figure that has a limit, whether it keeps it, and a line that says so."""
    least = {"Dice": (report.dice, tolerance.min_dice)}
    for name, figures in report.per_class.items():
        if name not in _NO_DEFECT:
            least[f"Dice of {name}"] = (figures["dice"], tolerance.min_class_dice)
    for name, (value, bound) in least.items():
        yield value >= bound, f"{name} {value:.6g}, expected >= {bound}"
    difference, most = report.max_abs_diff, tolerance.max_abs_diff
    yield (
        difference <= most,
        f"max |difference of probability| {difference:.6g}, expected <= {most}",
    )
    flipped, allowed = report.flipped_verdicts, tolerance.max_flipped_fraction * report.pictures
    yield (
        flipped <= allowed,
        f"flipped verdicts {flipped}, expected <= {allowed:g} of {report.pictures}",
    )


def frozen_pictures() -> list[npt.NDArray[np.uint8]]:
    """Return the synthetic tiles that an export is proved on: each defect twice, odd sizes too."""
    tiles = [
        synthetic_tile(seed, defect=label, exposure=exposure).image
        for seed, label in enumerate((None, *DEFECTS))
        for exposure in (1, 4)
    ]
    return [
        *tiles,
        np.ascontiguousarray(tiles[0][:32, :32]),
        np.ascontiguousarray(tiles[1][:101, :67]),
    ]
