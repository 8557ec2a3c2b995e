from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.nn import functional

from magtiles_seg import pipeline
from magtiles_seg.config import load_params
from magtiles_seg.dataset.augment import View
from magtiles_seg.dataset.samples import Sample
from magtiles_seg.dataset.synthetic import write_dataset
from magtiles_seg.errors import DataError
from magtiles_seg.labels import FREE, LABELS
from magtiles_seg.model.cells import CELL_PX
from magtiles_seg.model.checkpoint import save_checkpoint
from magtiles_seg.model.losses import IGNORED_PIXEL
from magtiles_seg.model.network import build_network
from magtiles_seg.model.screen import ScreenNetwork
from magtiles_seg.train import screen as screens
from magtiles_seg.train.data import Batch

SIDE = 160


def picture(seed: int, *, spots: int) -> View:
    rng = np.random.default_rng(seed)
    image = rng.normal(120, 6, (SIDE, SIDE)).clip(0, 255).astype(np.uint8)
    mask = np.zeros_like(image)
    for _ in range(spots):
        x, y = rng.integers(20, SIDE - 20, 2).tolist()
        cv2.circle(image, (x, y), 6, 20, -1)
        cv2.circle(mask, (x, y), 6, 255, -1)
    return View(image, mask, (mask > 0).astype(np.uint8))


def dark(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return (cv2.GaussianBlur(image, (5, 5), 0) < 70).astype(np.uint8)


def sample(index: int, label: str) -> Sample:
    return Sample(str(index), label, Path("a.png"), None, group=index)


@pytest.fixture
def shown() -> list[View]:
    return [picture(seed, spots=seed % 2) for seed in range(20)]


def fit(shown: list[View], *, epochs: int, seed: int = 1) -> ScreenNetwork:
    samples = [sample(n, "blowhole" if n % 2 else FREE) for n in range(len(shown))]
    return screens.fit_screen(samples, shown, dark, labels=LABELS, epochs=epochs, seed=seed)


def choose(
    network: ScreenNetwork, pictures: list[View], kept: float, threshold: float | None = None
) -> screens.ScreenChoice:
    found = screens.findings(pictures, dark)
    return screens.choose_threshold(network, pictures, found, kept=kept, threshold=threshold)


def test_screen_learns_where_defects_are(
    shown: list[View], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(screens, "_STEPS", 25)
    network = fit(shown, epochs=6)
    held_out = [picture(seed, spots=seed % 2) for seed in range(100, 120)]
    choice = choose(network, held_out, kept=0.9)
    assert choice.kept >= 0.9
    assert choice.passed < 0.2


def test_two_fits_are_equal_and_another_seed_is_not(
    shown: list[View], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(screens, "_STEPS", 2)
    one, same, other = (fit(shown, epochs=1, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(one.head.weight, same.head.weight)
    assert not torch.equal(one.head.weight, other.head.weight)


def test_cell_is_defective_by_mask_or_by_the_model_but_not_where_nobody_knows() -> None:
    blank = np.zeros((SIDE, SIDE), np.uint8)
    found = blank.copy()
    found[:40, :40] = 1
    view = screens._with_findings(View(blank, blank, blank), found)
    assert (view.mask == found * 255).all()


def test_threshold_keeps_the_share_that_was_asked_for_and_not_more(
    shown: list[View], monkeypatch: pytest.MonkeyPatch
) -> None:
    by_picture = {view.image.tobytes(): index for index, view in enumerate(shown)}

    def ranked(_: object, image: NDArray[np.uint8]) -> NDArray[np.float32]:
        cells = np.zeros((SIDE // CELL_PX,) * 2, np.float32)
        cells[:] = 0.01 * by_picture[image.tobytes()]
        return cells

    monkeypatch.setattr(screens, "_cells", ranked)
    choice = choose(ScreenNetwork(), shown, kept=0.5)
    assert choice.threshold == pytest.approx(0.09)  # ten defective: 1, 3 ... 19; the fifth lowest
    assert choice.kept == 0.6
    assert choice.passed == 0.5  # sound: 0, 2 ... 18
    given = choose(ScreenNetwork(), shown, kept=0.5, threshold=0.15)
    assert (given.threshold, given.kept) == (0.15, 0.3)  # 15, 17, 19
    everything = choose(ScreenNetwork(), shown, kept=1.0)
    assert everything.threshold == pytest.approx(0.01)


@pytest.mark.parametrize(("width_px", "kept"), [(100, 1.0), (160, 0.0)])
def test_region_stays_found_where_half_of_its_pixels_are_passed_on(
    width_px: int, kept: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    cells = np.zeros((SIDE // CELL_PX,) * 2, np.float32)
    cells[0, 0] = 0.4  # with its neighbours, 64 px are passed on
    monkeypatch.setattr(screens, "_cells", lambda _, __: cells)
    mask = np.zeros((SIDE, SIDE), np.uint8)
    mask[:10, :width_px] = 255
    views = [View(mask, mask, mask)]
    found = [mask // 255]
    choice = screens.choose_threshold(ScreenNetwork(), views, found, kept=1.0, threshold=0.4)
    assert choice.kept == choice.kept_all == kept


def test_cells_that_nobody_knows_teach_nothing() -> None:
    torch.manual_seed(0)
    network = ScreenNetwork().eval()
    target = torch.zeros(1, 1, 64, 64)
    target[..., 32:] = IGNORED_PIXEL
    image = torch.rand(1, 1, 64, 64) * 255
    with torch.inference_mode():
        logit = network(functional.avg_pool2d(image, 2).round())[0, 0]
        found = screens._loss(network, Batch(image, target, torch.zeros(1)))
    expected = float(functional.softplus(logit[:, 0]).mean())
    assert float(found) == pytest.approx(expected, rel=1e-4)


def test_threshold_is_never_above_a_half(
    shown: list[View], monkeypatch: pytest.MonkeyPatch
) -> None:
    sure = np.full((SIDE // CELL_PX,) * 2, 0.98, np.float32)
    monkeypatch.setattr(screens, "_cells", lambda _, __: sure)
    choice = choose(ScreenNetwork(), shown, kept=1.0)
    assert choice.threshold == 0.5


def test_pictures_without_a_found_defect_choose_no_threshold(shown: list[View]) -> None:
    with pytest.raises(DataError, match=r"on 10 pictures .* finds no labelled defect"):
        screens.findings(shown[::2], dark)


def test_screen_of_a_model_that_finds_nothing_is_refused_before_any_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_dataset(tmp_path / "tiles", tiles=10)
    params = load_params(
        None, [f"data_load.source={tmp_path}/tiles", f"data_load.directory={tmp_path}/data"]
    )
    pipeline.split(params, tmp_path / "split.json")
    save_checkpoint(tmp_path / "blind.safetensors", build_network("nano"), {"epoch": 0})
    monkeypatch.setattr(screens, "fit_screen", lambda *_, **__: pytest.fail("it was trained"))
    with pytest.raises(DataError, match="finds no labelled defect"):
        pipeline.screen(
            params, tmp_path / "blind.safetensors", tmp_path / "split.json", tmp_path / "s.onnx"
        )


def test_cell_sees_as_far_as_it_says_and_no_farther() -> None:
    torch.manual_seed(0)
    network = ScreenNetwork().eval()
    halved = (torch.rand(1, 1, 512, 512) * 255).requires_grad_()
    network(halved)[0, 0, 16, 16].backward()
    assert halved.grad is not None
    rows, columns = torch.nonzero(halved.grad[0, 0], as_tuple=True)
    for seen in (rows, columns):
        side_px = 2 * (int(seen.max() - seen.min()) + 1)
        assert network.receptive_field_px // 2 < side_px <= network.receptive_field_px
