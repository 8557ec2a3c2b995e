"""Measures how the leak finder scales: right pairs, time and memory over pictures drawn for it.

    python tests/dataset/measure_leaks.py FOLDER --pictures 100000 [--threads 2]

Each surface is grain of its own, 300 x 220 px, and shows in one to eleven pictures: another light
and noise in each, and every third one turned by quarters or mirrored. FOLDER keeps them (25 KB
each), so that a second run only measures.
"""

from __future__ import annotations

import argparse
import itertools
import resource
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from magtiles_seg.dataset.matching import find_matches

HEIGHT, WIDTH = 220, 300
MOST_PICTURES = 11


def draw(folder: Path, pictures: int, seed: int = 0) -> list[Path]:
    """Write the pictures that are not there yet; each is named after its surface."""
    random = np.random.default_rng(seed)
    paths: list[Path] = []
    for surface in itertools.count():
        several = int(random.integers(1, MOST_PICTURES + 1))
        own = np.random.default_rng((seed, surface))
        place = folder / f"{surface // 1000:03d}"
        for number, picture in enumerate(views(own, several)):
            paths.append(place / f"{surface:06d}_{number:02d}.jpg")
            if not paths[-1].exists():
                place.mkdir(parents=True, exist_ok=True)
                cv2.imwrite(str(paths[-1]), picture, [cv2.IMWRITE_JPEG_QUALITY, 90])
            if len(paths) == pictures:
                return paths
    raise AssertionError  # the count has no end


def views(random: np.random.Generator, several: int) -> Iterator[npt.NDArray[np.uint8]]:
    """Yield pictures of a new surface."""
    noise = random.standard_normal((HEIGHT, WIDTH), np.float32)
    grain = cv2.GaussianBlur(noise, (0, 0), 1.2) * 40 + cv2.GaussianBlur(noise, (0, 0), 3) * 60
    for number in range(several):
        light = random.uniform(-30, 30, (2, 3)).astype(np.float32)
        shade = cv2.resize(light, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)
        shown = 120 + shade + grain * random.uniform(0.7, 1.3)
        shown += random.standard_normal((HEIGHT, WIDTH), np.float32) * 2
        picture = np.clip(shown, 0, 255).astype(np.uint8)
        if number % 3 == 2:
            picture = np.rot90(picture, int(random.integers(4)))
            picture = picture[:, ::-1] if random.integers(2) else picture
        yield np.ascontiguousarray(picture)


def main() -> None:
    """Draw, find, and print what came of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--pictures", type=int, default=2000)
    parser.add_argument("--threads", type=int)
    words = parser.parse_args()
    paths = draw(words.folder, words.pictures)
    shown = Counter[str]()

    def tell(stage: str, done: int, total: int | None) -> None:
        shown[stage] += 1
        if shown[stage] % 5000 == 0:
            sys.stderr.write(f"{stage}: {done} of {total}\n")

    started, before = time.monotonic(), time.process_time()
    matches = find_matches(paths, threads=words.threads, progress=tell)
    wall, busy = time.monotonic() - started, time.process_time() - before
    groups = matches.groups()
    surfaces = [path.stem.split("_")[0] for path in paths]
    right = pairs_of(Counter(zip(groups, surfaces, strict=True)))
    joined, true = pairs_of(Counter(groups)), pairs_of(Counter(surfaces))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    sys.stdout.write(
        f"{len(paths)} pictures of {len(set(surfaces))} surfaces\n"
        f"{joined} pairs joined, {right} of them right, of {true}\n"
        f"{busy:.0f} s of CPU time, {wall:.0f} s, at most {peak:.2f} GB\n"
    )


def pairs_of(counts: Counter[object]) -> int:
    """Return how many pairs groups of these sizes have."""
    return sum(count * (count - 1) // 2 for count in counts.values())


if __name__ == "__main__":
    main()
