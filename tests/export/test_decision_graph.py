from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper

from magtiles_seg import Segmenter
from magtiles_seg.decision import Decision
from magtiles_seg.errors import ConfigError, ParityError
from magtiles_seg.export import artefacts, decision_graph
from magtiles_seg.export.graph import OPSET, export_onnx, rewrite_card
from magtiles_seg.export.parity import TileSet, Tolerance, frozen_pictures
from magtiles_seg.export.sealed import DECISION_KEY, VERDICTS, parse_sealed
from magtiles_seg.infer.backends import open_backend
from magtiles_seg.infer.backends.ort import OrtBackend

OUTPUTS = ["mask", "score", "verdict"]
PICTURES = frozen_pictures()[:3]


@pytest.fixture
def deciding(model: Path, tmp_path: Path) -> Path:
    path = tmp_path / "deciding.onnx"
    path.write_bytes(decision_graph.with_decision(model.read_bytes()))
    return path


def decide(probability: NDArray[np.float32], decision: Decision) -> list[NDArray[np.generic]]:
    """Run the decision alone on (N, H, W) probabilities."""
    axes = ["batch", "height", "width"]
    graph = helper.make_graph(
        [helper.make_node("Identity", ["given"], ["probability"])],
        "decision",
        [helper.make_tensor_value_info("given", TensorProto.FLOAT, axes)],
        [helper.make_tensor_value_info("probability", TensorProto.FLOAT, axes)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)
    decision_graph.add_decision(model, decision)
    onnx.checker.check_model(model, full_check=True)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    answers: list[NDArray[np.generic]] = session.run(OUTPUTS, {"given": probability})
    return answers


fractions = st.floats(0, 1, width=32)
decisions = st.builds(
    lambda limits, **fields: Decision(reject_score=max(limits), review_score=min(limits), **fields),
    limits=st.tuples(fractions, fractions),
    threshold=st.floats(0, 1),
    score_top_k_px=st.integers(1, 5000),
    score_margin_px=st.integers(0, 40),
    score_scale=st.floats(0.25, 4),
    score_bias=st.floats(-3, 3),
)


@settings(max_examples=150)
@given(
    decision=decisions,
    seed=st.integers(0, 2**32 - 1),
    shape=st.tuples(st.integers(1, 3), st.integers(32, 70), st.integers(32, 70)),
    power=st.sampled_from([0.1, 1, 8]),
)
def test_graph_decides_as_the_library_on_random_probabilities(
    decision: Decision, seed: int, shape: tuple[int, int, int], power: float
) -> None:
    rng = np.random.default_rng(seed)
    probability = rng.random(shape, np.float32) ** np.float32(power)
    probability = probability.clip(1e-4, 1 - 1e-4)  # nearer to 0 and 1 float32 logits are coarse
    probability[0, 0, 0] = decision.threshold
    masks, scores, verdicts = decide(probability, decision)
    assert masks.dtype == verdicts.dtype == np.uint8
    assert (masks == (probability >= decision.threshold)).all()
    limits = np.array([decision.reject_score, decision.review_score])
    for one, score, verdict in zip(probability, scores, verdicts, strict=True):
        expected = decision.score_of(one)
        assert score == pytest.approx(expected, abs=decision_graph.SCORE_ROUNDING)
        if np.abs(limits - expected).min() > decision_graph.SCORE_ROUNDING:
            assert VERDICTS[verdict] == decision.verdict(expected)


@pytest.mark.parametrize("seed", range(8))
def test_graph_keeps_the_digits_of_a_score_whose_mean_is_near_1(seed: int) -> None:
    decision = Decision(score_top_k_px=3, score_scale=0.25, score_bias=-3.0)
    rng = np.random.default_rng(seed)
    probability = (1 - 1e-4 * rng.random((1, 32, 32))).astype(np.float32)
    _, (score,), _ = decide(probability, decision)
    assert score == pytest.approx(decision.score_of(probability[0]), abs=1e-6)


@pytest.mark.parametrize(
    ("level", "decision"),
    [
        (0.5, Decision()),
        (0.1, Decision(reject_score=0.1)),
        (0.3, Decision(reject_score=0.9, review_score=float(np.float32(0.3)))),
        (0.0, Decision(reject_score=0.0)),
        (0.0, Decision(reject_score=1.0, review_score=0.5, score_scale=2.0)),
        (1.0, Decision(reject_score=1.0)),
        (1.0, Decision(reject_score=1.0, score_scale=0.5, score_bias=-1.0)),
    ],
)
def test_graph_decides_as_the_library_at_the_limits_themselves(
    level: float, decision: Decision
) -> None:
    # Few enough to be added without rounding.
    decision = replace(decision, score_top_k_px=1)
    probability = np.full((1, 40, 33), level, np.float32)
    _, _, verdicts = decide(probability, decision)
    assert VERDICTS[verdicts[0]] == decision.verdict(decision.score_of(probability[0]))


def test_graph_rejects_what_is_no_number() -> None:
    _, _, verdicts = decide(np.full((1, 40, 40), np.nan, np.float32), Decision(reject_score=1.0))
    assert VERDICTS[verdicts[0]] == "reject"


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_segmenter_loads_a_file_that_decides_and_answers_as_before(
    backend: str, deciding: Path, model: Path
) -> None:
    pytest.importorskip(backend)
    for image in PICTURES:
        with (
            Segmenter(deciding, backend=backend) as segmenter,
            Segmenter(model, backend=backend) as before,
        ):
            assert (segmenter(image).probability == before(image).probability).all()
            assert segmenter(image).verdict == before(image).verdict


def test_file_that_decides_has_standard_operators_and_says_what_it_leaves_out(
    model: Path, tmp_path: Path
) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(model.read_bytes())
    card = OrtBackend(path).spec.card
    decision = replace(card.decision, min_area_px=8, tile_reject_score=0.25)
    rewrite_card(path, replace(card, decision=decision))
    content, _ = parse_sealed(decision_graph.with_decision(path.read_bytes()), "model")
    assert {node.domain for node in content.graph.node} == {""}
    told = {entry.key: entry.value for entry in content.metadata_props}
    assert told[DECISION_KEY] == '{"min_area_px": 8, "tile_reject_score": 0.25}'
    words = {output.name: output.doc_string for output in content.graph.output}
    assert list(words) == ["probability", "classes", *OUTPUTS]
    assert "fewer than 8 px" in words["mask"]
    assert "0 accept, 1 review, 2 reject" in words["verdict"]


def test_every_exported_file_documents_its_inputs_and_outputs(model: Path) -> None:
    content = onnx.load(model)
    assert content.doc_string
    for value in (*content.graph.input, *content.graph.output):
        assert value.doc_string.startswith(("uint8 (batch", "float32 (batch"))
    assert DECISION_KEY not in {entry.key for entry in content.metadata_props}


def test_decision_in_the_graph_follows_the_card(deciding: Path) -> None:
    card = OrtBackend(deciding).spec.card
    for reject_score in (0.0, 1.0):
        decision = replace(card.decision, reject_score=reject_score)
        rewrite_card(deciding, replace(card, decision=decision))
        session = onnxruntime.InferenceSession(deciding, providers=["CPUExecutionProvider"])
        (verdicts,) = session.run(["verdict"], {"image": PICTURES[0][None]})
        assert VERDICTS[verdicts[0]] == ("reject" if reject_score == 0 else "accept")


def test_decision_is_taken_out_whole(deciding: Path, model: Path) -> None:
    again, _ = parse_sealed(decision_graph.without_decision(deciding.read_bytes()), "model")
    before, _ = parse_sealed(model.read_bytes(), "model")
    assert again.graph.SerializeToString() == before.graph.SerializeToString()
    assert decision_graph.without_decision(model.read_bytes()) == model.read_bytes()


@pytest.mark.parametrize(
    ("field", "value", "found"),
    [
        ("threshold", 0.9, "the mask"),
        ("score_bias", 0.1, "score"),
        ("reject_score", 0.0, "verdict reject, expected accept"),
    ],
)
def test_export_whose_graph_decides_otherwise_fails(
    field: str, value: float, found: str, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add = decision_graph.add_decision
    monkeypatch.setattr(
        decision_graph, "add_decision", lambda m, d: add(m, replace(d, **{field: value}))
    )
    path = model.with_name("wrong.onnx")
    path.write_bytes(model.read_bytes())
    card = OrtBackend(path).spec.card
    rewrite_card(path, replace(card, decision=replace(card.decision, reject_score=1.0)))
    data = decision_graph.with_decision(path.read_bytes())
    with pytest.raises(ParityError, match=found):
        decision_graph.check_decision(data, PICTURES)


def test_model_file_of_a_checkpoint_decides_as_asked(checkpoint: Path, tmp_path: Path) -> None:
    export_onnx(checkpoint, tmp_path / "model.onnx", with_decision=True)
    names = [entry.name for entry in onnx.load(tmp_path / "model.onnx").graph.output]
    assert names == ["probability", "classes", *OUTPUTS]


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_artefact_in_reduced_precision_decides(
    precision: str, deciding: Path, tmp_path: Path
) -> None:
    tiles = TileSet(pictures=tuple(PICTURES), classes=("free",) * 3, origin="synthetic")
    loose = Tolerance(min_dice=0.5, max_abs_diff=1, max_flipped_fraction=1)
    for with_decision in (True, False):  # the order counts, not what the model has
        order = artefacts.Order(
            target="onnx", precision=precision, with_decision=with_decision, tolerance=loose
        )
        path, _ = artefacts.export_artefact(
            deciding, tmp_path, order, proof=tiles, int8_tiles=tiles
        )
        names = [entry.name for entry in onnx.load(path).graph.output]
        assert names == ["probability", "classes", *(OUTPUTS if with_decision else [])]
        open_backend(path).close()


def test_engine_with_a_decision_is_refused() -> None:
    with pytest.raises(ConfigError, match="an engine is run by this library"):
        artefacts.Order(target="rtx", precision="fp32", with_decision=True)
