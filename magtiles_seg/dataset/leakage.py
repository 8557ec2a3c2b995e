"""The leak report: does a split manifest keep every physical tile on one side?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from magtiles_seg.dataset.samples import Sample
from magtiles_seg.dataset.splits import Split, data_sha256


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
        data_matches: Whether the data is, byte by byte, what the manifest was made from.
    """

    torn_groups: tuple[int, ...]
    leaked_validation: tuple[str, ...]
    leaked_test: tuple[str, ...]
    leaked_test_fraction: float
    duplicate_ids: tuple[str, ...]
    unknown_ids: tuple[str, ...]
    unused_ids: tuple[str, ...]
    data_matches: bool

    @property
    def clean(self) -> bool:
        """Whether no tile is torn, no id is double and none is unknown."""
        return not (self.torn_groups or self.duplicate_ids or self.unknown_ids)

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON-able values."""
        return {"clean": self.clean, **asdict(self)}

    def summary(self) -> str:
        """Return the report in a few lines of text."""
        return "\n".join(
            (
                "no leak" if self.clean else "LEAK",
                f"tiles in more than one part: {len(self.torn_groups)}",
                f"test pictures with a tile-mate in train: {len(self.leaked_test)} "
                f"({self.leaked_test_fraction:.1%})",
                f"validation pictures with a tile-mate in train: {len(self.leaked_validation)}",
                f"ids: {len(self.duplicate_ids)} double, {len(self.unknown_ids)} not in the data, "
                f"{len(self.unused_ids)} of the data unused",
                f"data {'is' if self.data_matches else 'IS NOT'} what the split was made from",
            )
        )


def leaks(split: Split, samples: Sequence[Sample]) -> LeakReport:
    """Report where a split shows a model its own test tiles in training.

    Args:
        split: Any manifest, whatever its rule.
        samples: The data set it is about.
    """
    group_of = {sample.id: sample.group for sample in samples}
    parts = (split.train, split.validation, split.test)
    times = Counter(id_ for part in parts for id_ in part)
    groups = [{group_of[id_] for id_ in part if id_ in group_of} for part in parts]
    seen_in = Counter(group for part in groups for group in part)
    leaked_validation, leaked_test = (
        tuple(id_ for id_ in part if group_of.get(id_) in groups[0]) for part in parts[1:]
    )
    return LeakReport(
        torn_groups=tuple(sorted(group for group, count in seen_in.items() if count > 1)),
        leaked_validation=leaked_validation,
        leaked_test=leaked_test,
        leaked_test_fraction=len(leaked_test) / len(split.test) if split.test else 0.0,
        duplicate_ids=tuple(sorted(id_ for id_, count in times.items() if count > 1)),
        unknown_ids=tuple(sorted(times.keys() - group_of.keys())),
        unused_ids=tuple(sorted(group_of.keys() - times.keys())),
        data_matches=data_sha256(samples) == split.data_sha256,
    )
