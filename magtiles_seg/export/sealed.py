"""Sealed ONNX files: the graph, its card, and a hash over the whole."""

from __future__ import annotations

from magtiles_seg.errors import BackendUnavailableError
from magtiles_seg.model.card import CARD_KEY, SEAL_KEY, ModelCard, check_seal, seal_onnx

try:
    import onnx
except Exception as error:
    raise BackendUnavailableError(
        f"export needs onnx ({error}): pip install 'magtiles-seg[export]'"
    ) from error


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
    """Return a graph as the bytes of a model file: with its card, and with a seal over the whole.

    Args:
        model: The graph; its metadata are replaced.
        card: What the file is to say about itself.
    """
    model.ClearField("metadata_props")
    for key, value in ((CARD_KEY, card.to_json()), (SEAL_KEY, "0" * 64)):
        model.metadata_props.add(key=key, value=value)
    return seal_onnx(model.SerializeToString(deterministic=True))
