"""Pictures of one surface: exposures, re-captures, crops, turned and mirrored copies, neighbours.

In two steps. `fingerprints` finds the pairs that share features of their fine texture, in time
proportional to the number of pictures. Each is then verified: matched point by point, laid over
each other by a turn, a scale and a shift (RANSAC), and the fine texture compared there, pixel by
pixel.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from math import atan2, degrees, exp, hypot, sqrt
from pathlib import Path
from typing import TypeAlias

import cv2
import numpy as np
import numpy.typing as npt

from magtiles_seg.dataset.fingerprints import (
    LEAST_FEATURES,
    Candidates,
    Fingerprint,
    find_candidates,
    fingerprint,
    fingerprints,
    spread,
    texture_of,
)
from magtiles_seg.names import counted

JOINED = 0.5
"""Certainty from which on two pictures count as one surface."""

SURE = 0.95
"""Certainty from which on nobody needs to look at a pair; below `1 - SURE` neither."""

MOST_FIXED = 0.3
"""Share of a fixed view from which on matches are not to be trusted."""

_LOOKED_AT, _LEAST_ALIKE = 256, 24
"""Pictures that `fixed_share` looks at, and how many must be of one size to tell it."""

_RATIO = 0.8
"""A point's nearest descriptor must be this much nearer than the second (Lowe, 2004)."""

_REACH_PX = 4.0
_SCALES = (0.3, 3.3)
_LEAST_INLIERS = 4
_LEAST_OVERLAP = 0.1
_CACHED = 512

FloatArray: TypeAlias = npt.NDArray[np.float64]
Step: TypeAlias = Callable[[str, int, "int | None"], None]
"""Told `(step, done, total)`; the steps are `read`, `search` and `verify`."""


@dataclass(frozen=True, kw_only=True)
class Match:
    """Two pictures that seem to show one surface.

    Attributes:
        first, second: Their positions among the pictures that were compared.
        certainty: 0..1, that they do.
        inliers: How many points of one lie where they should on the other.
        correlation: Of the fine texture where both are known, -1..1.
        overlap: Share of the smaller picture that is on both, 0..1.
        angle_degrees: By which the second is turned against the first, -180..180.
        scale: Size of a detail on the first by its size on the second.
        mirrored: Whether one is mirrored.
        matrix: Two rows of three: takes a point of the second, mirrored first if `mirrored`, to
            where it lies on the first; both at `fingerprints.SIDE_PX`.
    """

    first: int
    second: int
    certainty: float
    inliers: int
    correlation: float
    overlap: float
    angle_degrees: float
    scale: float
    mirrored: bool
    matrix: tuple[tuple[float, float, float], tuple[float, float, float]]

    @property
    def relation(self) -> str:
        """What the second is of the first, in a few words."""
        quarters = round(self.angle_degrees / 90) * 90
        words = ["mirrored"] if self.mirrored else []
        if abs(self.angle_degrees) > 10:
            exact = abs(self.angle_degrees - quarters) < 3
            words.append(f"turned by {quarters if exact else round(self.angle_degrees)}°")
        if self.overlap < 0.7 or not 0.8 < self.scale < 1.25:
            words.append("another section")
        if self.correlation >= 0.97:
            words.append("copy")
        return ", ".join(words) or "same surface"


@dataclass(frozen=True)
class Matches:
    """What `find_matches` found in some pictures.

    Attributes:
        paths: The pictures.
        found: Pairs of which a part was looked at and agreed, the surest first.
        plain: Positions of pictures with too little texture to be told from others.
        fixed_share: Share of the fine texture that is the same in pictures of one size, 0..1: a
            fixture, a reflection or dirt that the camera always sees in one place.
    """

    paths: tuple[Path, ...]
    found: tuple[Match, ...]
    plain: tuple[int, ...]
    fixed_share: float = 0.0

    @property
    def remarks(self) -> tuple[str, ...]:
        """What somebody who takes the groups over should know, a sentence each."""
        said = []
        if self.fixed_share >= MOST_FIXED:
            said.append(
                f"{self.fixed_share:.0%} of the fine texture is the same in all pictures of one "
                "size: either all show one part, or camera and fixture see the same around every "
                "part, which joins parts that are not one. Do not take the groups over unseen: "
                "group by the names (data_split.group_pattern), or crop the pictures to the part"
            )
        if self.plain:
            said.append(
                f"too little texture to be told apart: {counted(len(self.plain), 'picture')}, "
                f"such as {self.paths[self.plain[0]]}; each is a group of its own"
            )
        return tuple(said)

    def groups(self, least: float = JOINED) -> list[int]:
        """Return a number for each picture, alike for those that pairs join, one by one.

        Args:
            least: Certainty that a pair must have.
        """
        parent = list(range(len(self.paths)))
        for match in self.found:
            if match.certainty >= least:
                one, other = root(parent, match.first), root(parent, match.second)
                parent[max(one, other)] = min(one, other)
        return [root(parent, index) for index in range(len(parent))]

    def doubtful(self) -> tuple[Match, ...]:
        """Return the pairs that decide about a group and are not sure, the surest first.

        One that joins pictures that sure pairs join already decides nothing.
        """
        sure = self.groups(SURE)
        return tuple(
            match
            for match in self.found
            if 1 - SURE <= match.certainty < SURE and sure[match.first] != sure[match.second]
        )

    def mates(self) -> dict[int, list[Match]]:
        """Return the pairs of each picture that are joined, the surest first."""
        found: dict[int, list[Match]] = defaultdict(list)
        for match in self.found:
            if match.certainty >= JOINED:
                found[match.first].append(match)
                found[match.second].append(match)
        return found


def find_matches(
    paths: Sequence[Path], *, threads: int | None = None, progress: Step | None = None
) -> Matches:
    """Find the pictures that show one surface, whatever the light, the turn or the section.

    What shows is the same where the grain is: two parts of one mould, or two pictures of one scene
    with other parts in it, are no matches. Time and memory (about 40 KB each) grow in proportion
    to the number of pictures.

    Args:
        paths: The pictures, each once.
        threads: None: one for each core.
        progress: Told what is done.

    Raises:
        FileNotFoundError: There is no such file.
        ImageError: One is damaged, or of a kind that is not read.
    """
    workers = threads or os.cpu_count() or 1
    tell = progress or (lambda *_: None)
    plain: list[Fingerprint] = []
    mirrored: list[npt.NDArray[np.uint8]] = []
    for print_, mirror in fingerprints(paths, threads=workers, progress=partial(tell, "read")):
        plain.append(print_)
        mirrored.append(mirror)
    candidates = find_candidates(
        [print_.descriptors for print_ in plain],
        mirrored,
        progress=partial(tell, "search"),
    )
    found = []
    for done, match in enumerate(_verified(paths, plain, candidates, workers), start=1):
        tell("verify", done, len(candidates.pairs))
        if match is not None:
            found.append(match)
    found.sort(key=lambda match: (-match.certainty, -match.inliers, match.first, match.second))
    poor = [index for index, one in enumerate(plain) if len(one.points) < LEAST_FEATURES]
    return Matches(tuple(paths), tuple(found), tuple(poor), fixed_share(paths))


def fixed_share(paths: Sequence[Path]) -> float:
    """Return which share of the fine texture pictures of one size have in common, 0..1.

    The mean over n pictures of one size keeps what is the same in all, and 1/n of the rest: with
    the variance v of the mean and w of the pictures the share is (v - w/n) / (w - w/n). 0 where
    there are too few of any size.

    Args:
        paths: The pictures, of which some are looked at.
    """
    step = max(1, len(paths) // _LOOKED_AT)
    by_size: dict[tuple[int, ...], list[npt.NDArray[np.float32]]] = defaultdict(list)
    for path in paths[::step]:
        texture = texture_of(path)
        by_size[texture.shape].append(texture)
    shares, weights = [], []
    for textures in by_size.values():
        if (count := len(textures)) >= _LEAST_ALIKE:
            stack = np.stack(textures)
            mean, whole = float((stack.mean(0) ** 2).mean()), float((stack**2).mean())
            shares.append((mean - whole / count) / (whole - whole / count) if whole else 0.0)
            weights.append(count)
    return float(np.clip(np.average(shares, weights=weights), 0, 1)) if shares else 0.0


def root(parent: list[int], index: int) -> int:
    """Return the number that stands for the whole group of an index, and shorten the way to it."""
    while parent[index] != index:
        parent[index] = parent[parent[index]]
        index = parent[index]
    return index


def registered(
    paths: Sequence[Path], match: Match
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Return the fine textures of a pair, the second laid over the first; 0 where it is unknown.

    Raises:
        FileNotFoundError, ImageError: As of `find_matches`.
    """
    here, there = texture_of(paths[match.first]), texture_of(paths[match.second])
    matrix = np.array(match.matrix, np.float32)
    return here, _laid(there, matrix, match.mirrored, here.shape)


def _verified(
    paths: Sequence[Path], plain: Sequence[Fingerprint], candidates: Candidates, workers: int
) -> Iterator[Match | None]:
    """Yield, for each candidate, what its verification found."""
    texture = lru_cache(_CACHED)(lambda index: texture_of(paths[index]))

    def check(row: int) -> Match | None:
        first, second = map(int, candidates.pairs[row])
        mirrored = bool(candidates.mirrored[row])
        there = plain[second]
        if mirrored:
            there = fingerprint(np.ascontiguousarray(texture(second)[:, ::-1]))
        matrix, inliers = _registration(plain[first], there)
        if matrix is None:
            return None
        here = texture(first)
        laid = _laid(texture(second), matrix, mirrored, here.shape)
        known = _laid(np.ones_like(texture(second)), matrix, mirrored, here.shape) > 0.99
        return _judged(first, second, mirrored, matrix, inliers, here, laid, known)

    yield from spread(check, range(len(candidates.pairs)), workers)


def _registration(
    here: Fingerprint, there: Fingerprint
) -> tuple[npt.NDArray[np.float32] | None, int]:
    """Return the matrix that takes points of the second to the first, and how many agree."""
    if min(len(here.points), len(there.points)) < _LEAST_INLIERS:
        return None, 0
    # What BFMatcher.knnMatch gives, as arrays: objects would hold the other threads up.
    distance, nearest = cv2.batchDistance(
        here.descriptors, there.descriptors, cv2.CV_32S, normType=cv2.NORM_HAMMING, K=2
    )
    kept = np.flatnonzero(distance[:, 0] < _RATIO * distance[:, 1])
    if len(kept) < _LEAST_INLIERS:
        return None, 0
    source, target = there.points[nearest[kept, 0]], here.points[kept]
    matrix, inside = cv2.estimateAffinePartial2D(
        source, target, ransacReprojThreshold=_REACH_PX, maxIters=500
    )
    if matrix is None:
        return None, 0
    scale = hypot(matrix[0, 0], matrix[1, 0])
    if not _SCALES[0] < scale < _SCALES[1]:
        return None, 0
    x, y = np.round(target[inside.ravel() > 0].T / _REACH_PX)
    places = np.unique(x + 1j * y)
    return np.asarray(matrix, np.float32), len(places)


def _laid(
    texture: npt.NDArray[np.float32],
    matrix: npt.NDArray[np.float32],
    mirrored: bool,
    shape: tuple[int, ...],
) -> npt.NDArray[np.float32]:
    source = np.ascontiguousarray(texture[:, ::-1]) if mirrored else texture
    return np.asarray(cv2.warpAffine(source, matrix, shape[::-1]), np.float32)


def _judged(
    first: int,
    second: int,
    mirrored: bool,
    matrix: npt.NDArray[np.float32],
    inliers: int,
    here: npt.NDArray[np.float32],
    laid: npt.NDArray[np.float32],
    known: npt.NDArray[np.bool_],
) -> Match | None:
    """Return the match with how sure it is, or None where next to nothing is on both."""
    scale = hypot(matrix[0, 0], matrix[1, 0])
    overlap = min(1.0, float(known.mean() / min(1.0, scale**2 * laid.size / here.size)))
    if overlap < _LEAST_OVERLAP or (correlation := _correlation(here[known], laid[known])) is None:
        return None
    rows = [[float(value) for value in row] for row in matrix]
    return Match(
        first=first,
        second=second,
        certainty=certainty_of(inliers, correlation),
        inliers=inliers,
        correlation=correlation,
        overlap=overlap,
        angle_degrees=degrees(atan2(-matrix[1, 0], matrix[0, 0])),
        scale=scale,
        mirrored=mirrored,
        matrix=((rows[0][0], rows[0][1], rows[0][2]), (rows[1][0], rows[1][1], rows[1][2])),
    )


def _correlation(here: npt.NDArray[np.float32], there: npt.NDArray[np.float32]) -> float | None:
    """Return the correlation of two (N,) arrays, -1..1, or None where one is the same all over."""
    here, there = here - here.mean(), there - there.mean()
    size = float(here @ here) * float(there @ there)
    return float(here @ there) / sqrt(size) if size else None


def certainty_of(inliers: int, correlation: float) -> float:
    """Return how sure it is that two pictures show one surface, 0..1."""
    return 1 / (1 + exp(-(0.5 * (inliers - 8) + 20 * (correlation - 0.35))))


def find_leaks(
    train: Sequence[Path],
    test: Sequence[Path],
    *,
    threads: int | None = None,
    progress: Step | None = None,
) -> tuple[tuple[Path, Path, Match], ...]:
    """Return the test pictures whose surface was trained on: (training picture, test picture, how).

    Each pair is named that was seen to be one, the surest first. A test picture that only looks
    like another test picture that leaks is not named: see `Matches.groups`.

    Args:
        train: The training pictures.
        test: The test pictures.
        threads: None: one for each core.
        progress: Told what is done.

    Raises:
        FileNotFoundError, ImageError: As of `find_matches`.

    Example:
        >>> for seen, tested, match in find_leaks(train, test):
        ...     print(f"{tested} shows what {seen} shows, certainty {match.certainty:.2f}")
    """
    paths = list(dict.fromkeys((*train, *test)))
    found = find_matches(paths, threads=threads, progress=progress)
    return leaking_pairs(found, train, test)


def leaking_pairs(
    matches: Matches, train: Sequence[Path], test: Sequence[Path]
) -> tuple[tuple[Path, Path, Match], ...]:
    """Return the pairs of which one is trained on and the other tested, the surest first."""
    seen, tested = set(train), set(test)
    pairs = []
    for match in matches.found:
        if match.certainty < JOINED:
            break
        one, other = matches.paths[match.first], matches.paths[match.second]
        for here, there in ((one, other), (other, one)):
            if here in seen and there in tested:
                pairs.append((here, there, match))
                break
    return tuple(pairs)
