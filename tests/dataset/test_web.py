from __future__ import annotations

from itertools import islice

import numpy as np
import pytest

from magtiles_seg.dataset.synthetic.web import synthetic_web
from magtiles_seg.errors import ConfigError

SMALL = {"tile_hw": (64, 70), "gap_px": 5, "distinct": 2}


def test_web_is_of_its_width_and_the_same_for_a_seed() -> None:
    webs = [list(islice(synthetic_web(250, seed=4, **SMALL), 3)) for _ in range(2)]  # type: ignore[arg-type]
    for one, other in zip(*webs, strict=True):
        assert one.image.shape == one.mask.shape == (69, 250)
        assert (one.image == other.image).all()
        assert one.tiles == 3
    assert (webs[0][0].image != webs[0][1].image).any()


def test_defects_are_as_frequent_as_asked_and_masked() -> None:
    none, every = (
        next(synthetic_web(250, defect_fraction=share, **SMALL))  # type: ignore[arg-type]
        for share in (0.0, 1.0)
    )
    assert (none.defects, int(none.mask.sum())) == (0, 0)
    assert every.defects == 3
    assert all(part.any() for part in np.split(every.mask[:, :225], 3, axis=1))


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"width_px": 60}, "no room"),
        ({"width_px": 250, "gap_px": -1}, "no room"),
        ({"width_px": 250, "seed": -1}, "seed is -1"),
        ({"width_px": 250, "defect_fraction": 2}, "defect_fraction is 2"),
        ({"width_px": 250, "distinct": 0}, "distinct is 0"),
    ],
)
def test_web_of_no_sense_is_config_error(options: dict[str, int], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        synthetic_web(**{**SMALL, **options})  # type: ignore[arg-type]
