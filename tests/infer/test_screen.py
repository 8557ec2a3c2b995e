from __future__ import annotations

import json
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_screens import make_screen
from numpy.typing import NDArray
from PIL import Image

from magtiles_seg import cli
from magtiles_seg.dataset.synthetic import synthetic_tile
from magtiles_seg.errors import ConfigError, InferenceError, ModelError, ParityError
from magtiles_seg.export.graph import rewrite_card
from magtiles_seg.export.sealed import parse_sealed, sealed
from magtiles_seg.infer.backends.base import BackendSpec
from magtiles_seg.infer.backends.ort import OrtBackend
from magtiles_seg.infer.screen import Screen, ScreenedBackend, ScreenWarning, windows
from magtiles_seg.infer.segmenter import Segmenter
from magtiles_seg.linescan.segmenter import LineScanSegmenter
from magtiles_seg.model.bundled import BUNDLED_MODELS
from magtiles_seg.model.cells import CELL_PX, halved
from magtiles_seg.model.screen import ScreenGraph


def web(rows: int, columns: int, seed: int = 0) -> NDArray[np.uint8]:
    tiles = [synthetic_tile(seed + n, defect="crack").image[:128, :128] for n in range(4)]
    row = np.hstack([tiles[n % 4] for n in range(-(-columns // 128))])
    return np.vstack([row, row[:, ::-1]] * (-(-rows // 256)))[:rows, :columns].copy()


@pytest.fixture(scope="module")
def screen_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A screen that passes on some cells of `web` and not others."""
    return make_screen(tmp_path_factory.mktemp("screen") / "screen.onnx", web(512, 512))


def dilated(cells: NDArray[np.bool_]) -> NDArray[np.bool_]:
    padded = np.pad(cells, 1)
    rows, columns = cells.shape
    shifts = [padded[y : y + rows, x : x + columns] for y in range(3) for x in range(3)]
    return np.asarray(np.any(shifts, axis=0))


@settings(max_examples=200)
@given(seed=st.integers(0, 10**6), halo=st.integers(1, 8), share=st.floats(0, 0.2))
def test_windows_hold_every_passed_cell_and_cost_no_more_than_apart(
    seed: int, halo: int, share: float
) -> None:
    rng = np.random.default_rng(seed)
    passed = rng.random((int(rng.integers(1, 40)), int(rng.integers(1, 40)))) < share
    found = windows(passed, halo)
    covered = np.zeros_like(passed)
    for window in found:
        covered[window.top : window.bottom, window.left : window.right] = True
    assert not (passed & ~covered).any()
    cost = sum(window.grown(halo, *passed.shape).area for window in found)
    single = sum(
        window.grown(halo, *passed.shape).area
        for y, x in np.argwhere(passed)
        for window in windows(_only(passed, y, x), halo)
    )
    assert cost <= single


def _only(passed: NDArray[np.bool_], y: int, x: int) -> NDArray[np.bool_]:
    one = np.zeros_like(passed)
    one[y, x] = True
    return one


@pytest.mark.parametrize("size", [(512, 512), (330, 417), (64, 700)])
def test_screened_answer_is_the_model_s_where_passed_and_sound_elsewhere(
    model: Path, screen_file: Path, size: tuple[int, int]
) -> None:
    picture = web(*size)
    whole, kinds = OrtBackend(model).infer(picture[None])
    backend = ScreenedBackend(OrtBackend(model), Screen(screen_file))
    probability, classes = backend.infer(picture[None])
    screen = backend.screen
    cells = dilated(screen.cells(picture) >= screen.card.decision.threshold)
    passed = cells.repeat(CELL_PX, 0).repeat(CELL_PX, 1)[: size[0], : size[1]]
    assert 0 < passed.mean() < 1
    np.testing.assert_array_equal(probability[0], np.where(passed, whole[0], 0))
    np.testing.assert_array_equal(classes[0], np.where(passed, kinds[0], 1))
    assert backend.passed_share == cells.mean()


def test_screened_web_in_any_blocks_equals_the_whole_picture(
    model: Path, screen_file: Path
) -> None:
    picture = web(900, 384)
    with Segmenter(model, screen=screen_file, threshold=0.5, min_area_px=1) as segmenter:
        expected = [(defect.label, defect.area_px) for defect in segmenter(picture).defects]
        rng = np.random.default_rng(0)
        lists = []
        for _ in range(3):
            scan = LineScanSegmenter(384, segmenter, strip_rows=96)
            cuts = sorted(rng.integers(0, 900, 7).tolist())
            blocks = np.split(picture, cuts)
            found = [defect for block in blocks for defect in scan.push(block)]
            lists.append([*found, *scan.close()])
            passed = segmenter.backend.screen.passes(picture)  # type: ignore[attr-defined]
            assert scan.report.passed_share == passed.mean()  # of this web, no halo counted
            assert 0 < passed.mean() < 1
    assert lists[0] == lists[1] == lists[2]
    assert sorted((one.label, one.area_px) for one in lists[0]) == sorted(expected)


def test_screened_web_with_gaps_and_a_restart_is_its_pieces_each_alone(
    model: Path, screen_file: Path
) -> None:
    picture = web(900, 384)
    pieces = [slice(0, 301), slice(330, 333), slice(400, 615), slice(615, 900)]
    with Segmenter(model, screen=screen_file, threshold=0.5, min_area_px=1) as segmenter:
        scan = LineScanSegmenter(384, segmenter, strip_rows=96, batch=2)
        found = []
        for piece in pieces[:3]:
            found += scan.push(picture[piece], piece.start)
        found += scan.push(picture[pieces[3]], 615, gap="restarted")
        found += scan.close()
        seen = [segmenter.backend.screen.passes(picture[piece]) for piece in pieces]  # type: ignore[attr-defined]
        areas = [one.area_px for piece in pieces for one in segmenter(picture[piece]).defects]
    assert sorted(one.area_px for one in found) == sorted(areas)
    assert scan.report.passed_share == sum(cells.sum() for cells in seen) / sum(
        cells.size for cells in seen
    )


def test_segmenter_with_screen_says_so_and_survives_pickling(
    model: Path, screen_file: Path, tmp_path: Path
) -> None:
    picture = web(512, 512)
    Image.fromarray(picture).save(tmp_path / "web.png")
    with Segmenter(model, screen=screen_file) as segmenter, Segmenter(model) as alone:
        result = segmenter(tmp_path / "web.png")
        assert result.model["screen_sha256"] == segmenter.spec.screen_sha256
        assert "screen_sha256" not in alone(picture).model
        assert alone.passed_share is None
        with pickle.loads(pickle.dumps(segmenter)) as again:
            np.testing.assert_array_equal(again(picture).probability, result.probability)
            assert again.passed_share == segmenter.passed_share


def test_model_file_as_screen_is_refused(model: Path, screen_file: Path) -> None:
    with pytest.raises(ModelError, match=r"is no screen: .*magtiles-seg screen"):
        Segmenter(model, screen=model)
    with pytest.raises(ModelError, match="is not a magtiles-seg model"):
        Segmenter(screen_file)
    with pytest.raises(FileNotFoundError, match=r"^no screen at .*missing.onnx; `magtiles-seg scr"):
        Segmenter(model, screen="missing.onnx")


def test_screen_is_found_from_another_folder_and_no_other_is_taken_for_it(
    model: Path, screen_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied = tmp_path / "screen.onnx"
    copied.write_bytes(screen_file.read_bytes())
    monkeypatch.chdir(tmp_path)
    with Segmenter(model, screen="screen.onnx") as segmenter:
        sent = pickle.dumps(segmenter)
    monkeypatch.chdir("/")
    with pickle.loads(sent) as again:
        assert again.spec.screen == copied
    rewrite_card(copied, replace(Screen(copied).card, name="other"))
    with pytest.raises(ModelError, match=r"screen\.onnx is another file here \(SHA-256 "):
        pickle.loads(sent)


def test_closed_segmenter_with_a_screen_says_that_it_is_closed(
    model: Path, screen_file: Path
) -> None:
    segmenter = Segmenter(model, screen=screen_file)
    segmenter.close()
    segmenter.close()
    with pytest.raises(InferenceError, match=r"^the model .*screen.onnx is closed"):
        segmenter(web(64, 64))


@pytest.mark.parametrize("size", [(512, 512), (530, 1217), (493, 700)])
def test_screened_answer_of_mirrored_views_is_the_model_s_where_passed(
    model: Path, screen_file: Path, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def two_cells(_: Screen, image: NDArray[np.uint8]) -> NDArray[np.bool_]:
        passed = np.zeros([-(-side // CELL_PX) for side in image.shape], np.bool_)
        passed[2, 3] = passed[8, 14] = True
        return passed

    monkeypatch.setattr(Screen, "passes", two_cells)
    picture = web(*size)
    with (
        Segmenter(model, flips=True) as alone,
        Segmenter(model, flips=True, screen=screen_file) as segmenter,
    ):
        found = segmenter(picture).probability
        passed = found > 0
        assert passed.sum() == 2 * CELL_PX**2
        np.testing.assert_array_equal(found[passed], alone(picture).probability[passed])


def test_screened_answer_of_a_coarser_stride_than_a_cell_is_the_model_s(
    screen_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def one_cell(_: Screen, image: NDArray[np.uint8]) -> NDArray[np.bool_]:
        passed = np.zeros([-(-side // CELL_PX) for side in image.shape], np.bool_)
        passed[22, 22] = True  # what it needs begins within a stride, on both sides
        return passed

    monkeypatch.setattr(Screen, "passes", one_cell)
    picture = web(1460, 1417)  # farther on every side than `small` sees
    backend = OrtBackend(BUNDLED_MODELS["small"], threads=1)
    assert backend.spec.card.stride == 2 * CELL_PX
    whole, _ = backend.infer(picture[None])
    found, _ = ScreenedBackend(backend, Screen(screen_file)).infer(picture[None])
    passed = found > 0
    assert passed.sum() == CELL_PX**2
    np.testing.assert_allclose(found[passed], whole[passed], atol=1e-6)


def test_screen_of_other_classes_is_refused(model: Path, screen_file: Path, tmp_path: Path) -> None:
    graph, card = parse_sealed(model.read_bytes(), str(model))
    path = tmp_path / "other.onnx"
    path.write_bytes(sealed(graph, replace(card, labels=("background", "pitting"))))
    with pytest.raises(ConfigError, match="is for the classes background, blowhole"):
        Segmenter(path, screen=screen_file)


class Elsewhere:
    """A backend that says other things of itself than the one that it wraps."""

    def __init__(self, inner: OrtBackend, spec: BackendSpec) -> None:
        self.spec, self.infer, self.close = spec, inner.infer, inner.close


def test_screen_before_a_model_on_a_gpu_is_refused(model: Path, screen_file: Path) -> None:
    inner = OrtBackend(model)
    elsewhere = Elsewhere(inner, replace(inner.spec, device="cuda:0"))
    with pytest.raises(ConfigError, match="this one runs on cuda:0: leave the screen out"):
        ScreenedBackend(elsewhere, Screen(screen_file))


def test_screen_before_a_model_of_unknown_sight_is_refused(model: Path, screen_file: Path) -> None:
    inner = OrtBackend(model)
    blind = replace(inner.spec.card, receptive_field_px=0)
    with pytest.raises(ModelError, match="does not say how far it sees"):
        ScreenedBackend(Elsewhere(inner, replace(inner.spec, card=blind)), Screen(screen_file))


@pytest.mark.parametrize("model_sight_px", [33, 5001])
def test_screened_model_sees_as_far_as_the_farther_of_both_with_a_cells_neighbours(
    model: Path, screen_file: Path, model_sight_px: int
) -> None:
    inner, screen = OrtBackend(model), Screen(screen_file)
    card = replace(inner.spec.card, receptive_field_px=model_sight_px)
    backend = ScreenedBackend(Elsewhere(inner, replace(inner.spec, card=card)), screen)
    by_screen_px = screen.card.receptive_field_px + 4 * CELL_PX
    assert backend.spec.card.receptive_field_px == max(model_sight_px, by_screen_px)


def test_closing_a_screened_backend_closes_model_and_screen(model: Path, screen_file: Path) -> None:
    inner, screen = OrtBackend(model), Screen(screen_file)
    ScreenedBackend(inner, screen).close()
    with pytest.raises(InferenceError, match="is closed"):
        inner.infer(web(64, 64)[None])
    with pytest.raises(InferenceError, match="is closed"):
        screen.cells(web(64, 64))


def test_halved_picture_is_the_mean_of_four_pixels_and_mirrored_at_its_end() -> None:
    rows = np.array([[0, 0, 0, 0], [40, 60, 40, 40], [80, 80, 80, 80]], np.uint8)
    np.testing.assert_array_equal(halved(rows, 4), [[25, 20], [65, 60]])
    np.testing.assert_array_equal(halved(rows.T.copy(), 4), [[25, 65], [20, 60]])
    assert halved(np.zeros((33, 1), np.uint8)).shape == (32, 16)


def test_screen_that_answers_otherwise_than_its_network_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = ScreenGraph.cells
    monkeypatch.setattr(ScreenGraph, "cells", lambda graph, image: own(graph, image) + 0.01)
    with pytest.raises(ParityError, match=r"differs by 0\.01 in probability"):
        make_screen(tmp_path / "screen.onnx", web(64, 96))
    assert not list(tmp_path.iterdir())


def test_info_shows_the_card_of_a_screen(
    screen_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["info", "--screen", str(screen_file), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    screen = Screen(screen_file)
    assert facts["screen_sha256"] == screen.sha256
    assert facts["screen_card"]["decision"]["threshold"] == screen.card.decision.threshold
    assert cli.main(["info", "--screen", str(screen_file)]) == 0


def test_screen_of_another_model_is_taken_with_a_warning_and_of_this_one_without(
    model: Path, screen_file: Path
) -> None:
    backend, screen = OrtBackend(model), Screen(screen_file)

    def before(**weights: str) -> None:
        screen.card = replace(screen.card, training=weights)
        ScreenedBackend(backend, screen)

    before()
    before(model_sha256="0" * 64, model_weights_sha256=backend.spec.card.weights_sha256)
    before(model_sha256=backend.spec.sha256, model_weights_sha256="")
    with pytest.warns(ScreenWarning, match="made for another model"):
        before(model_sha256="0" * 64, model_weights_sha256="1" * 64)
