"""The thresholds between a model's probabilities and a verdict, and the checks of such numbers."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from magtiles_seg.errors import ConfigError
from magtiles_seg.regions import top_values

if TYPE_CHECKING:
    from numpy.typing import NDArray

Verdict: TypeAlias = Literal["accept", "review", "reject"]

_MOST_COUNT = 2**63 - 1
_LEAST_SCALE, _MOST_SCALE = 1e-9, 1e9


OVERRIDES = ("threshold", "min_area_px", "reject_score", "review_score")
"""The fields of a `Decision` that whoever runs a model may set, by the same name everywhere."""


@dataclass(frozen=True, kw_only=True)
class Decision:
    """How probabilities become a mask and a verdict.

    Attributes:
        threshold: A pixel whose probability is at least this is defect; 0..1.
        min_area_px: Connected regions (8-connectivity) of fewer pixels are dropped.
        reject_score: A picture whose score is at least this is rejected; 0..1.
        review_score: A score from this up to `reject_score` asks for review; None: no review.
        score_top_k_px: The score is made of the mean m of this many largest pixel probabilities;
            neither `threshold` nor `min_area_px` changes it.
        score_margin_px: Those in a margin of this width along the picture's border do not count:
            what stands where a part ends is often taken for a defect. Of a small picture the middle
            half of its height and width always counts.
        score_scale: The score is `sigmoid(score_scale * logit(m) + score_bias)`, the probability
            that the picture is defective where scale and bias were fitted; above 0.
        score_bias: See `score_scale`. With 1 and 0 the score is m itself.
        tile_reject_score: A tile of several pictures is rejected from this score of all of them
            on (`tile.tile_score`); None: `reject_score` serves for tiles as well.

    Raises:
        ConfigError: A value is of the wrong type or out of its range.
    """

    threshold: float = 0.5
    min_area_px: int = 1
    reject_score: float = 0.5
    review_score: float | None = None
    score_top_k_px: int = 100
    score_margin_px: int = 0
    score_scale: float = 1.0
    score_bias: float = 0.0
    tile_reject_score: float | None = None

    def __post_init__(self) -> None:
        """Check every field and make it a plain Python number."""
        for name in ("threshold", "reject_score", "review_score", "tile_reject_score"):
            value = getattr(self, name)
            if not (name in ("review_score", "tile_reject_score") and value is None):
                object.__setattr__(self, name, fraction(name, value))
        for name, least in (("min_area_px", 1), ("score_top_k_px", 1), ("score_margin_px", 0)):
            object.__setattr__(self, name, count(name, getattr(self, name), least=least))
        for name in ("score_scale", "score_bias"):
            object.__setattr__(self, name, _finite(name, getattr(self, name)))
        if self.score_scale <= 0:
            raise ConfigError(f"score_scale is {self.score_scale}; expected a number above 0")
        if self.review_score is not None and self.review_score > self.reject_score:
            raise ConfigError(
                f"review_score is {self.review_score}; expected at most reject_score "
                f"({self.reject_score}): scores between the two are reviewed; lower it, or set None"
            )

    def overridden(self, **changes: Any) -> Decision:  # noqa: ANN401 - checked when it is made
        """Return the decision with some of `OVERRIDES` changed; a change to None changes nothing.

        Whoever sets `reject_score` means tiles of several pictures as well: `tile_reject_score`
        goes.

        Raises:
            ConfigError: A value is of the wrong type or out of its range.
        """
        given: dict[str, Any] = {name: new for name, new in changes.items() if new is not None}
        if "reject_score" in given:
            given["tile_reject_score"] = None
        return replace(self, **given)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values, without a `tile_reject_score` of None."""
        content = asdict(self)
        if self.tile_reject_score is None:  # files and runs of older versions do not have it
            del content["tile_reject_score"]
        return content

    def __str__(self) -> str:
        """Return the thresholds in words, each with three decimal places."""
        text = (
            f"defect from probability {self.threshold:.3f}, regions from {self.min_area_px} px; "
            f"reject from score {self.reject_score:.3f}"
        )
        if self.review_score is not None:
            text += f", review from {self.review_score:.3f}"
        if self.tile_reject_score is not None:
            text += f"; a tile of several pictures from {self.tile_reject_score:.3f}"
        return text

    def score(self, mean: float) -> float:
        """Return a picture's score, 0..1, from the mean of its largest pixel probabilities."""
        if (self.score_scale, self.score_bias) == (1.0, 0.0) or not 0 < mean < 1:
            return mean
        logit = self.score_scale * (math.log(mean) - math.log1p(-mean)) + self.score_bias
        small = math.exp(-abs(logit))
        return (1.0 if logit >= 0 else small) / (1 + small)

    def score_of(self, probability: NDArray[np.float32]) -> float:
        """Return a picture's score, 0..1, from its pixels' probabilities, (H, W) float32."""
        top = top_values(probability, self.score_top_k_px, self.score_margin_px)
        return self.score(float(top.mean(dtype=np.float64)))

    def verdict(self, score: float) -> Verdict:
        """Return what a picture's score means: "accept", "review" or "reject"."""
        return self._verdict(score, self.reject_score)

    @property
    def tile_threshold(self) -> float:
        """The score from which on a tile of several pictures is rejected."""
        return self.reject_score if self.tile_reject_score is None else self.tile_reject_score

    def tile_verdict(self, score: float) -> Verdict:
        """Return what the score of a tile of several pictures means."""
        return self._verdict(score, self.tile_threshold)

    def _verdict(self, score: float, reject_score: float) -> Verdict:
        if not score < reject_score:  # nan is not accepted
            return "reject"
        if self.review_score is not None and score >= self.review_score:
            return "review"
        return "accept"


def _is_number(value: object, kind: type) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


def _as_float(value: Any) -> float:  # noqa: ANN401 - checked here
    """Return a real number as float, and NaN for all else: it fails every comparison."""
    if not _is_number(value, Real):
        return math.nan
    try:
        return float(value)
    except OverflowError:  # a whole number, or a fraction, of hundreds of digits
        return math.nan


def _shown(value: object) -> str:
    """Return a value for a message; Python refuses to print an int of more than 4300 digits."""
    if isinstance(value, int) and value.bit_length() > 256:
        return f"a whole number of {value.bit_length()} bits"
    return repr(value)


def _finite(name: str, value: Any) -> float:  # noqa: ANN401 - checked here
    number = _as_float(value)
    if math.isfinite(number):
        return number
    raise ConfigError(f"{name} is {_shown(value)}; expected a finite number")


def fraction(name: str, value: Any) -> float:  # noqa: ANN401 - checked here
    """Return a number from 0 to 1 as float, or raise ConfigError."""
    number = _as_float(value)
    if 0 <= number <= 1:
        return number
    raise ConfigError(f"{name} is {_shown(value)}; expected a number from 0 to 1")


def count(name: str, value: Any, *, least: int = 1) -> int:  # noqa: ANN401 - checked here
    """Return a whole number from `least` to 2**63 - 1 as int, or raise ConfigError."""
    if _is_number(value, Integral) and least <= value <= _MOST_COUNT:
        return int(value)
    raise ConfigError(
        f"{name} is {_shown(value)}; expected a whole number, at least {least} (and below 2**63)"
    )


def scale(mm_per_px: float | None, name: str = "mm_per_px") -> float | None:
    """Return a positive number as float, None as None, or raise ConfigError.

    Beyond the bounds an area in mm² would become 0 or infinite.
    """
    if mm_per_px is None:
        return None
    number = _as_float(mm_per_px)
    if _LEAST_SCALE <= number <= _MOST_SCALE:
        return number
    raise ConfigError(
        f"{name} is {_shown(mm_per_px)}; expected a positive number of mm "
        f"({_LEAST_SCALE:g} to {_MOST_SCALE:g}), or None"
    )
