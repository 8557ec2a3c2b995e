"""Sealed ONNX files: the graph, its card, words about its inputs and outputs, a hash over all."""

from __future__ import annotations

import json

from magtiles_seg.decision import Decision
from magtiles_seg.errors import BackendUnavailableError
from magtiles_seg.infer.backends.onnxfile import DECISION_OUTPUTS
from magtiles_seg.model.card import CARD_KEY, SEAL_KEY, ModelCard, check_seal, seal_onnx

try:
    import onnx
except Exception as error:
    raise BackendUnavailableError(
        f"export needs onnx ({error}): pip install 'magtiles-seg[export]'"
    ) from error

DECISION_KEY = "magtiles_seg.decision_in_graph"
"""Metadata key of what a graph that decides leaves out, as JSON; other files do not have it."""

VERDICTS = ("accept", "review", "reject")
"""What the output `verdict` means, by its value."""


def parse_sealed(data: bytes, name: str) -> tuple[onnx.ModelProto, ModelCard]:
    """Return graph and card of an ONNX file of this package.

    Args:
        data: The whole file.
        name: What to call the file in a message.

    Raises:
        ModelError: The file is damaged, or not a model of this package.
    """
    check_seal(data, name)
    model = onnx.load_from_string(data)
    stored = {entry.key: entry.value for entry in model.metadata_props}
    return model, ModelCard.from_json(stored.get(CARD_KEY, ""))


def sealed(model: onnx.ModelProto, card: ModelCard) -> bytes:
    """Return a graph as the bytes of a model file: documented, with its card, and with a seal.

    Args:
        model: The graph; its metadata and the documentation of its inputs and outputs are replaced.
        card: What the file is to say about itself.
    """
    _document(model, card)
    metadata = {CARD_KEY: card.to_json()}
    if has_decision(model):
        metadata[DECISION_KEY] = json.dumps(left_out(card.decision))
    model.ClearField("metadata_props")
    for key, value in (*metadata.items(), (SEAL_KEY, "0" * 64)):
        model.metadata_props.add(key=key, value=value)
    return seal_onnx(model.SerializeToString(deterministic=True))


def has_decision(model: onnx.ModelProto) -> bool:
    """Return whether a graph gives mask, score and verdict itself."""
    return any(output.name in DECISION_OUTPUTS for output in model.graph.output)


def left_out(decision: Decision) -> dict[str, float]:
    """Return what no graph follows: it needs regions, or several pictures.

    Args:
        decision: What a file's card says.

    Returns:
        `min_area_px` where it drops regions, `tile_reject_score` where tiles have one.
    """
    fields: dict[str, float] = {}
    if decision.min_area_px > 1:
        fields["min_area_px"] = decision.min_area_px
    if decision.tile_reject_score is not None:
        fields["tile_reject_score"] = decision.tile_reject_score
    return fields


def _document(model: onnx.ModelProto, card: ModelCard) -> None:
    """Say in the file what goes in and comes out; viewers of ONNX files show it."""
    labels = ", ".join(f"{index} {label}" for index, label in enumerate(card.labels))
    decision = card.decision
    words = {
        "image": "uint8 (batch, height, width): grey pictures of one size, 0 black to 255 white, "
        "sides of at least 32 px. Nothing is scaled or padded beforehand.",
        "probability": "float32 (batch, height, width), 0..1: of any defect at this pixel. "
        f"A pixel is defect from {decision.threshold:.6g} on.",
        "classes": "uint8 (batch, height, width): the likeliest defect class at every pixel, "
        f"whatever the probability; multiply by the mask. Labels: {labels}.",
        "mask": "uint8 (batch, height, width): 1 where probability >= "
        f"{decision.threshold:.6g}, else 0.{_area_remark(decision)}",
        "score": f"float32 (batch,), 0..1: from the mean of the {decision.score_top_k_px} largest "
        f"probabilities of a picture, {decision.score_margin_px} px along its border left out "
        "(at most a quarter of a side).",
        "verdict": "uint8 (batch,): 0 accept, 1 review, 2 reject. " + _limits(decision),
    }
    for value in (*model.graph.input, *model.graph.output):
        value.doc_string = words.get(value.name, "")
    model.doc_string = (
        f"{card.name}: finds surface defects in grey pictures. Labels: {labels}. "
        f"Licence {card.licence}. The metadata {CARD_KEY!r} holds thresholds, training and figures."
    )


def _area_remark(decision: Decision) -> str:
    if "min_area_px" not in left_out(decision):
        return ""
    return f" Regions of fewer than {decision.min_area_px} px, which the library drops, are kept."


def _limits(decision: Decision) -> str:
    review = (
        "review is not used"
        if decision.review_score is None
        else f"review from {decision.review_score:.6g} on"
    )
    return f"Reject from a score of {decision.reject_score:.6g} on; {review}."
