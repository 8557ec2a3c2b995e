"""What is kept for review, why, and how much of it; light, for the command line."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from magtiles_seg.errors import ConfigError
from magtiles_seg.names import new_run
from magtiles_seg.review.folder import REASONS, ReviewFolder

__all__ = ["REASONS", "ReviewSettings", "reasons_of"]


@dataclass(frozen=True, kw_only=True)
class ReviewSettings:
    """What is kept for review, and where.

    Attributes:
        directory: The review folder.
        reasons: Those of `REASONS` that count.
        share: Of all pictures, kept at random.
        most_pictures: The folder never holds more.
        most_mb: Nor more MB of 1,000,000 bytes.
        run: Identifier of the run that keeps them.

    Raises:
        ConfigError: A value is out of range, or a reason is unknown.
    """

    directory: Path
    reasons: tuple[str, ...] = REASONS
    share: float = 0.001
    most_pictures: int = 1000
    most_mb: float = 1000.0
    run: str = field(default_factory=new_run)

    def __post_init__(self) -> None:
        """Check the values."""
        unknown = [reason for reason in self.reasons if reason not in REASONS]
        if unknown or not self.reasons:
            raise ConfigError(
                f"review reasons: expected some of {', '.join(REASONS)}, got "
                f"{', '.join(map(repr, unknown)) or 'none'}"
            )
        from magtiles_seg.decision import count, fraction  # it costs numpy; `--help` does not

        fraction("review share", self.share)
        count("review pictures", self.most_pictures)
        if not self.most_mb > 0:
            raise ConfigError(f"review MB: expected a number above 0, got {self.most_mb}")

    def folder(self) -> ReviewFolder:
        """Return the folder that they are of."""
        most_bytes = int(1e6 * self.most_mb)
        return ReviewFolder(self.directory, most_pictures=self.most_pictures, most_bytes=most_bytes)


def reasons_of(words: str) -> tuple[str, ...]:
    """Return the reasons that a text names, a comma between."""
    return tuple(dict.fromkeys(word.strip() for word in words.split(",") if word.strip()))
