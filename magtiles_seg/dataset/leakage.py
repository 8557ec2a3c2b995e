"""The leak report: does a split manifest keep every physical tile on one side?"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from magtiles_seg.dataset.layouts import PICTURE_SUFFIXES
from magtiles_seg.dataset.samples import Sample
from magtiles_seg.dataset.splits import Split, data_sha256
from magtiles_seg.errors import DataError
from magtiles_seg.inputs import Survey, walk


@dataclass(frozen=True)
class LeakReport:
    """What `leaks` found.

    Attributes:
        torn_groups: Physical tiles that stand in more than one part.
        leaked_validation: Ids of validation pictures with a tile-mate in the training part.
        leaked_test: Ids of test pictures with a tile-mate in the training part.
        leaked_test_fraction: Their share of the test part, 0 when it is empty.
        duplicate_ids: Ids that stand more than once in the manifest.
        unknown_ids: Ids in the manifest that the data lacks.
        unused_ids: Ids in the data that no part holds.
        data_matches: Whether the data is, byte by byte, what the manifest was made from; None: a
            list does not say.
        by_class: Of the test pictures of each class, where it is known: how many have a tile-mate
            in the training part, of how many.
    """

    torn_groups: tuple[int, ...]
    leaked_validation: tuple[str, ...]
    leaked_test: tuple[str, ...]
    leaked_test_fraction: float
    duplicate_ids: tuple[str, ...]
    unknown_ids: tuple[str, ...]
    unused_ids: tuple[str, ...]
    data_matches: bool | None
    by_class: dict[str, tuple[int, int]] = field(default_factory=dict)

    @property
    def clean(self) -> bool:
        """Whether no tile is torn, no id is double and none is unknown."""
        return not (self.torn_groups or self.duplicate_ids or self.unknown_ids)

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON-able values."""
        return {"clean": self.clean, **asdict(self)}

    def summary(self) -> str:
        """Return the report in a few lines of text."""
        counts = (len(self.duplicate_ids), len(self.unknown_ids), len(self.unused_ids))
        lines = [
            "no leak" if self.clean else "LEAK",
            f"tiles in more than one part: {len(self.torn_groups)}",
            f"test pictures with a tile-mate in train: {len(self.leaked_test)} "
            f"({self.leaked_test_fraction:.1%})",
            *(f"  {label}: {seen} of {count}" for label, (seen, count) in self.by_class.items()),
            f"validation pictures with a tile-mate in train: {len(self.leaked_validation)}",
            "ids: {} double, {} not in the data, {} of the data unused".format(*counts),
        ]
        if self.data_matches is not None:
            matches = "is" if self.data_matches else "IS NOT"
            lines.append(f"data {matches} what the split was made from")
        return "\n".join(lines)


def leaks(split: Split, samples: Sequence[Sample]) -> LeakReport:
    """Report where a split shows a model its own test tiles in training.

    Args:
        split: Any manifest, whatever its rule.
        samples: The data set it is about.
    """
    return report_leaks(
        (split.train, split.validation, split.test),
        {sample.id: sample.group for sample in samples},
        labels={sample.id: sample.label for sample in samples},
        data_matches=data_sha256(samples) == split.data_sha256,
    )


def leaks_of_lists(
    train: Sequence[str], test: Sequence[str] | None, samples: Sequence[Sample]
) -> LeakReport:
    """Report the leaks of a published list of training pictures.

    Args:
        train: Names of the training pictures, with or without folders and suffix.
        test: Of the test pictures; None: all others of the data set.
        samples: The data set it is about.
    """
    names = [_stem(name) for name in train]
    known = set(names)
    others = [sample.id for sample in samples if sample.id not in known]
    return report_leaks(
        (names, (), others if test is None else [_stem(name) for name in test]),
        {sample.id: sample.group for sample in samples},
        labels={sample.id: sample.label for sample in samples},
    )


def report_leaks(
    parts: tuple[Sequence[str], Sequence[str], Sequence[str]],
    group_of: Mapping[str, int],
    *,
    labels: Mapping[str, str] | None = None,
    data_matches: bool | None = None,
) -> LeakReport:
    """Report which pictures have a mate in the training part.

    Args:
        parts: Ids of the training, validation and test pictures.
        group_of: The group of each picture of the data set.
        labels: The class of each; None: unknown.
        data_matches: Whether the data is what the parts were drawn from; None: unknown.
    """
    times = Counter(id_ for part in parts for id_ in part)
    groups = [{group_of[id_] for id_ in part if id_ in group_of} for part in parts]
    seen_in = Counter(group for part in groups for group in part)
    leaked_validation, leaked_test = (
        tuple(id_ for id_ in part if group_of.get(id_) in groups[0]) for part in parts[1:]
    )
    tested = [id_ for id_ in parts[2] if id_ in group_of]
    return LeakReport(
        torn_groups=tuple(sorted(group for group, count in seen_in.items() if count > 1)),
        leaked_validation=leaked_validation,
        leaked_test=leaked_test,
        leaked_test_fraction=len(leaked_test) / len(parts[2]) if parts[2] else 0.0,
        duplicate_ids=tuple(sorted(id_ for id_, count in times.items() if count > 1)),
        unknown_ids=tuple(sorted(times.keys() - group_of.keys())),
        unused_ids=tuple(sorted(group_of.keys() - times.keys())),
        data_matches=data_matches,
        by_class=_by_class(tested, leaked_test, labels or {}),
    )


def _by_class(
    tested: Sequence[str], leaked: Sequence[str], labels: Mapping[str, str]
) -> dict[str, tuple[int, int]]:
    total = Counter(labels[id_] for id_ in tested if id_ in labels)
    seen = Counter(labels[id_] for id_ in leaked if id_ in labels)
    return {label: (seen[label], count) for label, count in sorted(total.items())}


def read_list(path: Path) -> tuple[str, ...]:
    """Return the pictures of a list: the lines of a text file, or the pictures in a folder.

    In a folder masks and earlier results are left out, as everywhere (`magtiles_seg.inputs`).

    Args:
        path: Empty lines and lines that begin with `#` are skipped.

    Raises:
        FileNotFoundError: There is no such file or folder.
        OSError: It cannot be read.
        DataError: It holds no name, is no text in UTF-8, or a folder below it cannot be listed.
    """
    if path.is_dir():
        found = [str(picture) for picture in _pictures_below(path)]
    else:
        try:
            lines = path.read_text(encoding="utf-8-sig").splitlines()
        except UnicodeDecodeError as error:
            raise DataError(
                f"{path} is no text in UTF-8; expected a picture's name a line"
            ) from error
        found = [text for line in lines if (text := line.strip()) and not text.startswith("#")]
    if not found:
        raise DataError(f"{path} names no picture; expected a name a line, or a folder of pictures")
    return tuple(found)


def _pictures_below(folder: Path) -> list[Path]:
    survey = Survey()
    found = sorted(map(Path, walk(str(folder), survey)))
    if survey.unlisted:  # a leak check that left pictures out would find too few leaks
        raise DataError("; ".join(survey.problems()))
    return found


def _stem(name: str) -> str:
    """Return a picture's id: its name without folders and suffix."""
    file = unicodedata.normalize("NFC", name.replace("\\", "/").rpartition("/")[2])
    stem, dot, suffix = file.rpartition(".")
    return stem if f"{dot}{suffix}".lower() in PICTURE_SUFFIXES and stem else file
