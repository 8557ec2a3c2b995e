"""Fingerprints: local features of a picture's fine texture, and pairs of pictures that share some.

The grain of a surface is the same under every light, and no two surfaces share it. ORB describes
the grain around some points of a picture in bits, whatever way up the picture is. Two pictures are
worth a closer look where several such descriptors are alike in the same 32 of their 256 bits.
Source: Rublee et al., "ORB: an efficient alternative to SIFT or SURF", 2011; the buckets: Indyk and
Motwani, "Approximate nearest neighbors", 1998 (locality-sensitive hashing by sampled bits).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import TypeAlias, TypeVar

import cv2
import numpy as np
import numpy.typing as npt

from magtiles_seg.image import read_image
from magtiles_seg.registration import fine_texture

Item = TypeVar("Item")
Result = TypeVar("Result")

Progress: TypeAlias = Callable[[int, "int | None"], None]
"""Told `(done, total)`."""

SIDE_PX = 256
"""Longest side at which pictures are compared; smaller ones keep their size."""

FEATURES, MIRRORED_FEATURES = 200, 64
"""Most features of a picture that are kept, and of its mirror image."""

LEAST_FEATURES = 12
"""A picture with fewer has too little texture to be told from others."""

_LEAST_SIDE_PX = 64
"""Smaller pictures are enlarged: a feature alone is 31 px wide."""

_TABLES = 20
_NEIGHBOURS = 6
"""Of a bucket's entries, in a random order, each is paired with that many after it."""

_MOST_MATES = 12
"""Pairs of one picture that are looked at, those with the most votes."""

_MOST_CHANCE_MEETINGS = 5
"""Pairs that met once, for each picture, that are looked at beside those that met more often."""

_MOST_PAIRS = 20_000_000
"""Above that many pairs in memory, those with a single vote so far are forgotten."""

_HANDFUL = 32

_SCRAMBLE = 2654435761
_WORD = 1 << 32


@dataclass(frozen=True, eq=False)
class Fingerprint:
    """Features of one picture, the strongest first.

    Attributes:
        points: (N, 2) float32, x and y in px of the picture at `SIDE_PX`.
        descriptors: (N, 32) uint8, 256 bits each.
    """

    points: npt.NDArray[np.float32]
    descriptors: npt.NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class Candidates:
    """Pairs of pictures that share features.

    Attributes:
        pairs: (P, 2) int64, positions of two pictures, the smaller one first, sorted.
        mirrored: (P,) bool, whether they share them once one is mirrored.
        votes: (P,) int64, in how many buckets they met.
    """

    pairs: npt.NDArray[np.int64]
    mirrored: npt.NDArray[np.bool_]
    votes: npt.NDArray[np.int64]


def texture_of(path: Path) -> npt.NDArray[np.float32]:
    """Return the fine texture of a picture at `SIDE_PX`, (H, W) float32.

    Raises:
        FileNotFoundError: There is no such file.
        ImageError: It is damaged, or of a kind that is not read.
    """
    return fine_texture(sized(read_image(path)))


def sized(image: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Return a picture, (H, W), at the size at which pictures are compared."""
    scale = SIDE_PX / max(image.shape)
    if scale >= 1:
        scale = max(1.0, _LEAST_SIDE_PX / min(image.shape))
    height, width = (max(1, round(side * scale)) for side in image.shape)
    if (height, width) == image.shape:
        return image
    how = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(image, (width, height), interpolation=how), np.uint8)


def grey_of(texture: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    """Return a fine texture as a picture of grey levels."""
    return np.clip(texture * 50 + 128, 0, 255).astype(np.uint8)


def fingerprint(texture: npt.NDArray[np.float32], features: int = FEATURES) -> Fingerprint:
    """Return the features of a fine texture.

    Args:
        texture: (H, W) float32, as of `texture_of`.
        features: How many at most.
    """
    orb = cv2.ORB.create(nfeatures=features, scaleFactor=1.3, nlevels=5, edgeThreshold=20,
                         fastThreshold=5)  # fmt: skip
    points, descriptors = orb.detectAndCompute(grey_of(texture), None)
    if descriptors is None:
        return Fingerprint(np.zeros((0, 2), np.float32), np.zeros((0, 32), np.uint8))
    order = np.argsort([-point.response for point in points], kind="stable")[:features]
    places = np.array([point.pt for point in points], np.float32)
    return Fingerprint(places[order], np.asarray(descriptors, np.uint8)[order])


def fingerprints(
    paths: Sequence[Path], *, threads: int, progress: Progress | None = None
) -> Iterator[tuple[Fingerprint, npt.NDArray[np.uint8]]]:
    """Yield the fingerprint of each picture, and the descriptors of its mirror image.

    Raises:
        FileNotFoundError: There is no such file.
        ImageError: One is damaged, or of a kind that is not read.
    """

    def read(path: Path) -> tuple[Fingerprint, npt.NDArray[np.uint8]]:
        texture = texture_of(path)
        mirrored = fingerprint(np.ascontiguousarray(texture[:, ::-1]), MIRRORED_FEATURES)
        return fingerprint(texture), mirrored.descriptors

    for done, found in enumerate(spread(read, paths, threads), start=1):
        yield found
        if progress:
            progress(done, len(paths))


def spread(work: Callable[[Item], Result], items: Sequence[Item], threads: int) -> Iterator[Result]:
    """Yield what some work gives for each item, in their order, done by several threads.

    A thread takes a handful at a time: handing each over alone costs more than a small picture.
    """
    handfuls = [items[start : start + _HANDFUL] for start in range(0, len(items), _HANDFUL)]
    with ThreadPoolExecutor(threads) as pool:
        for found in pool.map(lambda handful: [work(item) for item in handful], handfuls):
            yield from found


def find_candidates(
    plain: Sequence[npt.NDArray[np.uint8]],
    mirrored: Sequence[npt.NDArray[np.uint8]],
    *,
    progress: Progress | None = None,
) -> Candidates:
    """Return the pairs of pictures that share features.

    Takes time and memory in proportion to the number of pictures, however alike they are.

    Args:
        plain: Descriptors of each picture, (N, 32) uint8.
        mirrored: Of its mirror image.
        progress: Told after each of the tables.
    """
    descriptors, entries = _flat(plain, mirrored)
    votes = np.zeros((2, 0), np.uint64)
    tables = list(_tables())
    for done, (high, low) in enumerate(tables, start=1):
        words = descriptors[:, high].astype(np.uint64) << np.uint64(16)
        met = [_met(words | descriptors[:, low], entries)]
        votes = _added(votes, np.concatenate(met))
        if progress:
            progress(done, len(tables))
    return _strongest(votes, len(plain))


def _flat(
    plain: Sequence[npt.NDArray[np.uint8]], mirrored: Sequence[npt.NDArray[np.uint8]]
) -> tuple[npt.NDArray[np.uint16], npt.NDArray[np.uint64]]:
    """Return all descriptors as 16 numbers of 16 bits, and whose each is: 2 * picture + view."""
    every = [*plain, *mirrored]
    count = len(plain)
    owners = np.concatenate([2 * np.arange(count), 2 * np.arange(count) + 1]).astype(np.uint64)
    rows = np.concatenate(every or [np.zeros((0, 32), np.uint8)])
    lengths = np.array([len(one) for one in every], np.int64)
    return np.ascontiguousarray(rows).view(np.uint16), np.repeat(owners, lengths)


def _tables() -> Iterator[tuple[int, int]]:
    """Yield which two of the 16 numbers make the word of each table; every number serves alike."""
    every = np.array(list(combinations(range(16), 2)))
    order = np.random.default_rng(0).permutation(len(every))
    yield from ((int(one), int(other)) for one, other in every[order[:_TABLES]])


def _met(words: npt.NDArray[np.uint64], entries: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Return the pairs of pictures that meet in a bucket, as numbers: see `_strongest`."""
    scrambled = entries * np.uint64(_SCRAMBLE) % np.uint64(_WORD)
    rows = np.sort(words << np.uint64(32) | scrambled)  # np.unique hashes: slow with such words
    rows = rows[_firsts(rows)]
    word = rows >> np.uint64(32)
    back = np.uint64(pow(_SCRAMBLE, -1, _WORD))
    entry = (rows % np.uint64(_WORD)) * back % np.uint64(_WORD)
    found = [np.zeros(0, np.uint64)]
    for step in range(1, _NEIGHBOURS + 1):
        same = np.flatnonzero(word[:-step] == word[step:])
        here, there = entry[same], entry[same + step]
        mirrored = (here ^ there) & np.uint64(1)
        useful = (mirrored == 1) | (here & np.uint64(1) == 0)
        useful &= here >> np.uint64(1) != there >> np.uint64(1)
        one, other = (ends[useful] >> np.uint64(1) for ends in (here, there))
        first, second = np.minimum(one, other), np.maximum(one, other)
        found.append((first << np.uint64(32) | second) << np.uint64(1) | mirrored[useful])
    met = np.sort(np.concatenate(found))
    return met[_firsts(met)]


def _firsts(ordered: npt.NDArray[np.uint64]) -> npt.NDArray[np.bool_]:
    """Return where a sorted array holds a value for the first time."""
    first = np.ones(len(ordered), bool)
    first[1:] = ordered[1:] != ordered[:-1]
    return first


def _added(votes: npt.NDArray[np.uint64], met: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Return (2, P), pairs and their votes, with one more vote for those that met."""
    both = np.concatenate([votes[0], met])
    count = np.concatenate([votes[1], np.ones_like(met)])
    order = np.argsort(both, kind="stable")
    starts = np.flatnonzero(_firsts(both[order]))
    pairs = both[order][starts]
    count = np.add.reduceat(count[order], starts) if len(starts) else count
    if len(pairs) > _MOST_PAIRS:
        pairs, count = pairs[count > 1], count[count > 1]
    return np.stack([pairs, count])


def _strongest(votes: npt.NDArray[np.uint64], pictures: int) -> Candidates:
    """Return the pairs that are among the strongest of either picture.

    A pair's number is made of its two pictures, 32 and 31 bits, and whether one is mirrored.
    """
    most = np.sort(votes[1])[::-1][: pictures * _MOST_CHANCE_MEETINGS]
    least = 1 if len(most) == votes.shape[1] else 2
    code, count = (part[votes[1] >= least].astype(np.int64) for part in votes)
    mirrored, pairs = code & 1 == 1, np.stack([code >> 33, (code >> 1) % _WORD], 1)
    kept = np.zeros(len(code), bool)
    taken = np.zeros(pictures, np.int64)
    for row in np.argsort(-count, kind="stable"):
        here, there = pairs[row]
        if taken[here] < _MOST_MATES or taken[there] < _MOST_MATES:
            taken[here] += 1
            taken[there] += 1
            kept[row] = True
    return Candidates(pairs[kept], mirrored[kept], count[kept])
