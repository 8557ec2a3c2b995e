from __future__ import annotations

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from magtiles_seg.errors import ConfigError, ImageError, InferenceError, ModelError
from magtiles_seg.export.sealed import parse_sealed, sealed
from magtiles_seg.infer import segmenter as module
from magtiles_seg.infer import segmenter as pictures_module
from magtiles_seg.infer.segmenter import Segmenter, segment
from magtiles_seg.linescan.segmenter import LineScanSegmenter
from magtiles_seg.model import bundled as bundled_module
from magtiles_seg.model.bundled import BUNDLED_MODEL, BUNDLED_MODELS, model_path, portable_model


def picture(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width), np.uint8)


@pytest.fixture(scope="module")
def segmenter(model: Path) -> Segmenter:
    return Segmenter(model, threads=1)


def test_call_answers_as_the_backend_at_the_pictures_size(segmenter: Segmenter) -> None:
    image = picture(45, 70)
    result = segmenter(image)
    probability, classes = segmenter.backend.infer(image[None])
    assert (result.probability == probability[0]).all()
    assert (result.mask == (probability[0] >= 0.5)).all()
    assert (result.classes == result.mask * classes[0]).all()
    assert 0 < result.mask.mean() < 1


@settings(max_examples=20)
@given(height=st.integers(1, 40), width=st.integers(1, 40))
def test_call_on_small_picture_answers_as_on_its_mirrored_padding(
    height: int, width: int, segmenter: Segmenter
) -> None:
    image = picture(height, width)
    missing = ((0, max(0, 32 - height)), (0, max(0, 32 - width)))
    whole = segmenter(np.pad(image, missing, mode="reflect"))
    result = segmenter(image)
    assert result.mask.shape == (height, width)
    assert (result.probability == whole.probability[:height, :width]).all()


def test_batch_equals_single_calls_in_order(
    segmenter: Segmenter, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = [(40, 50), (20, 9), (40, 50), (33, 64), (40, 50), (31, 32)]
    images = [picture(*size, seed=seed) for seed, size in enumerate(sizes)]
    batches: list[int] = []
    infer = segmenter.backend.infer

    def counted(stack: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
        batches.append(len(stack))
        return infer(stack)

    monkeypatch.setattr(segmenter.backend, "infer", counted)
    monkeypatch.setattr(pictures_module, "_BATCH_PX", 2 * 40 * 50)
    together = segmenter.batch(iter(images))
    assert sorted(batches) == [1, 1, 2, 2]  # 40x50 in two steps; 20x9 and 31x32 both become 32x32
    for image, result in zip(images, together, strict=True):
        assert (result.image == image).all()
        assert np.abs(result.probability - segmenter(image).probability).max() <= 1e-6


@pytest.mark.parametrize("shape", [(40, 50), (40, 50, 1), (40, 50, 3), (40, 50, 4)])
def test_one_array_where_several_are_wanted_is_not_taken_row_by_row(
    segmenter: Segmenter, shape: tuple[int, ...]
) -> None:
    for call in (segmenter.batch, segmenter.tile):
        with pytest.raises(ImageError, match=r"got one array of shape .*put it into a list"):
            call(np.zeros(shape, np.uint8))
    assert len(segmenter.batch(np.zeros((2, 40, 50), np.uint8))) == 2
    assert len(segmenter.tile(np.zeros((3, 40, 50, 3), np.uint8)).exposures) == 3


@pytest.mark.parametrize("one", ["a.png", b"PNG", Path("a.png")])
def test_one_file_where_several_are_wanted_is_not_taken_letter_by_letter(
    segmenter: Segmenter, one: str | bytes | Path
) -> None:
    for call in (segmenter.batch, segmenter.tile):
        with pytest.raises(TypeError, match=r"expected several pictures, got one"):
            call(one)  # type: ignore[arg-type]


def test_batch_of_nothing_is_empty(segmenter: Segmenter) -> None:
    assert segmenter.batch([]) == []


def test_thresholds_given_replace_the_models(model: Path) -> None:
    segmenter = Segmenter(
        model, threshold=0.25, min_area_px=3, reject_score=0.9, review_score=0.1, mm_per_px=0.5
    )
    decision = segmenter.decision
    assert (decision.threshold, decision.min_area_px) == (0.25, 3)
    assert (decision.reject_score, decision.review_score) == (0.9, 0.1)
    result = segmenter(picture(40, 40))
    assert (result.decision, result.mm_per_px) == (decision, 0.5)


def test_threshold_zero_is_a_threshold(model: Path) -> None:
    assert Segmenter(model, threshold=0).decision.threshold == 0


def test_threshold_out_of_range_is_config_error(model: Path) -> None:
    with pytest.raises(ConfigError, match="threshold is 2"):
        Segmenter(model, threshold=2)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"device": 0}, "device is 0; expected a name"),  # GPU 0 elsewhere, the CPU here
        ({"backend": True}, "backend is True"),
        ({"precision": 16}, "precision is 16"),
        ({"flips": "false"}, "flips is 'false'; expected True or False"),
        ({"mm_per_px": 0}, "mm_per_px is 0; expected a positive number"),
    ],
)
def test_option_of_another_type_is_refused_before_the_model_is_loaded(
    model: Path, words: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        Segmenter(model, **words)


def test_result_tells_its_origin(segmenter: Segmenter, tmp_path: Path) -> None:
    path = tmp_path / "tile.png"
    cv2.imwrite(str(path), picture(40, 40))
    result = segmenter(path)
    assert result.source == str(path)
    assert result.model["sha256"] == segmenter.spec.sha256
    assert (result.model["backend"], result.model["device"]) == ("onnxruntime", "cpu")
    assert segmenter(picture(40, 40)).source is None


def test_checkpoint_runs_on_eager_torch(model: Path, checkpoint: Path) -> None:
    image = picture(50, 61)
    eager = Segmenter(checkpoint)(image)
    assert eager.model["backend"] == "eager"
    assert np.abs(eager.probability - Segmenter(model)(image).probability).max() <= 0.02


def test_many_threads_get_the_answers_of_one(segmenter: Segmenter) -> None:
    images = [picture(40 + seed, 64 - seed, seed) for seed in range(16)]
    alone = [segmenter(image).probability for image in images]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(segmenter, images * 3))
    for result, expected in zip(together, alone * 3, strict=True):
        assert (result.probability == expected).all()


def test_result_does_not_change_with_the_callers_array(segmenter: Segmenter) -> None:
    image = picture(40, 40)
    result = segmenter(image)
    before = image.copy()
    image[:] = 0
    assert (result.image == before).all()


def test_context_manager_closes(model: Path) -> None:
    with Segmenter(model) as segmenter:
        segmenter(picture(32, 32))
    with pytest.raises(InferenceError, match="is closed"):
        segmenter(picture(32, 32))


def test_missing_model_is_file_not_found(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no model file at .*gone\.onnx"):
        Segmenter(tmp_path / "gone.onnx")


def test_installation_without_model_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bundled_module, "BUNDLED_MODEL", tmp_path / "absent.onnx")
    with pytest.raises(FileNotFoundError, match="this installation carries no model"):
        Segmenter()


def test_bundled_models_segment_by_their_names_and_travel_by_them() -> None:
    image = np.random.default_rng(0).integers(90, 160, (64, 64), np.uint8)
    assert BUNDLED_MODELS["lite0"] == BUNDLED_MODEL
    for name, path in BUNDLED_MODELS.items():
        with Segmenter(name, threads=1) as segmenter:
            copied = pickle.loads(pickle.dumps(segmenter))
            assert (segmenter.spec.path, copied.spec.path) == (path, path)
            assert name in str(segmenter.spec.card.architecture)
            assert segmenter(image).score == copied(image).score
            copied.close()


def test_model_that_this_installation_does_not_carry_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(bundled_module, "BUNDLED_MODELS", {"lite0": BUNDLED_MODEL})
    with pytest.raises(FileNotFoundError, match=r"does not carry the model 'nano', only lite0; tr"):
        Segmenter("nano")
    assert portable_model("nano") == "nano"


def test_model_path_prefers_a_file_of_a_bundled_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert model_path("lite0") == BUNDLED_MODEL
    Path("lite0").touch()
    assert model_path("lite0") == Path("lite0")
    assert model_path(Path("gone.onnx")) == Path("gone.onnx")


def test_bundled_name_is_the_model_where_a_run_of_that_name_lies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("nano").mkdir()
    assert model_path("nano") == BUNDLED_MODELS["nano"]
    assert portable_model("nano") == "nano"
    monkeypatch.setattr(bundled_module, "BUNDLED_MODELS", {"lite0": BUNDLED_MODEL})
    with pytest.raises(FileNotFoundError, match=r"does not carry the model 'nano'"):
        model_path("nano")


def test_model_of_no_known_name_names_those_that_are_bundled() -> None:
    with pytest.raises(ModelError, match=r"smal is not .* bundled model: lite0, small, nano$"):
        Segmenter("smal")


def test_portable_model_keeps_a_bundled_name_and_makes_paths_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert portable_model("lite0") == portable_model(Path("lite0")) == "lite0"
    assert portable_model("own.onnx") == tmp_path / "own.onnx"
    Path("lite0").touch()
    assert portable_model("lite0") == tmp_path / "lite0"


@pytest.fixture
def bundled(model: Path, monkeypatch: pytest.MonkeyPatch) -> list[Segmenter]:
    """Make the small model the bundled one; return the Segmenters that `segment` makes."""
    made: list[Segmenter] = []

    class Counted(Segmenter):
        def __init__(self) -> None:
            super().__init__(threads=1)
            made.append(self)

    monkeypatch.setattr(bundled_module, "BUNDLED_MODEL", model)
    monkeypatch.setattr(module, "Segmenter", Counted)
    monkeypatch.setattr(module, "_default", None)
    return made


def test_segment_loads_the_model_once_for_all_threads(bundled: list[Segmenter]) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(segment, [picture(32, 32)] * 16))
    assert len(bundled) == 1


def test_segment_changes_thresholds_for_one_call_only(bundled: list[Segmenter]) -> None:
    image = picture(40, 40)
    assert segment(image, threshold=0.0, mm_per_px=2.0).mask.all()
    result = segment(image)
    assert (result.decision.threshold, result.mm_per_px) == (0.5, None)
    assert len(bundled) == 1


def test_segment_of_what_is_no_picture_is_image_error(bundled: list[Segmenter]) -> None:
    with pytest.raises(ImageError):
        segment(b"not a picture")
    assert len(bundled) == 1


def test_segmenter_pickled_and_copied_answers_the_same(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(model.parent)
    segmenter = Segmenter(model.name, threshold=0.4, mm_per_px=0.5, flips=True, threads=1)
    image = picture(40, 50)
    expected = segmenter(image).to_dict()
    monkeypatch.chdir("/")
    for other in (
        pickle.loads(pickle.dumps(segmenter)),
        copy.copy(segmenter),
        copy.deepcopy(segmenter),
    ):
        assert {**other(image).to_dict()} == expected
        other.close()
    assert segmenter(image).to_dict() == expected


def test_segmenter_unpickled_where_the_file_is_another_is_model_error(
    model: Path, tmp_path: Path
) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(model.read_bytes())
    sent = pickle.dumps(Segmenter(path))
    other, card = parse_sealed(model.read_bytes(), "model")
    path.write_bytes(sealed(other, replace(card, name="other")))
    with pytest.raises(ModelError, match=r"model\.onnx is another file here"):
        pickle.loads(sent)
    path.unlink()
    with pytest.raises(FileNotFoundError):
        pickle.loads(sent)


def test_web_and_loaded_model_refuse_to_be_pickled_and_say_what_to_do(model: Path) -> None:
    segmenter = Segmenter(model)
    with pytest.raises(TypeError, match="send the width and the Segmenter"):
        pickle.dumps(LineScanSegmenter(64, segmenter))
    with pytest.raises(TypeError, match="pickle the Segmenter"):
        pickle.dumps(segmenter.backend)


@pytest.mark.parametrize("kind", [ImageError, ConfigError, ModelError, InferenceError])
def test_error_survives_pickling(kind: type[Exception]) -> None:
    error = pickle.loads(pickle.dumps(kind("why")))
    assert (type(error), str(error)) == (kind, "why")
    assert pickle.loads(pickle.dumps(ImageError("x", reason="too_large"))).reason == "too_large"
