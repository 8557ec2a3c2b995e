"""Model repositories: the layout and the configuration that an inference server loads a model by.

NVIDIA Triton and OpenVINO Model Server both run the ONNX file as it is, and both speak the KServe
v2 protocol over HTTP and gRPC.
"""

from __future__ import annotations

import json
from pathlib import Path

from magtiles_seg.errors import BackendUnavailableError, ConfigError, DataError
from magtiles_seg.export.sealed import VERDICTS, has_decision, left_out, parse_sealed
from magtiles_seg.files import write
from magtiles_seg.jsontext import parse_json
from magtiles_seg.model.card import ModelCard

try:
    import onnx
except ImportError as error:
    raise BackendUnavailableError(
        "a model repository needs onnx: pip install 'magtiles-seg[export]'"
    ) from error

MAX_BATCH = 16
"""Most pictures that Triton may put in one run."""

QUEUE_DELAY_US = 2000
"""How long Triton lets a picture wait for others of its size."""

_TRITON_TYPES: dict[int, str] = {
    onnx.TensorProto.UINT8: "TYPE_UINT8",
    onnx.TensorProto.FLOAT: "TYPE_FP32",
}
_OVMS_MOUNT = "/models"
_OVMS_CONFIG = "config.json"


def repository_path(folder: Path, name: str) -> Path:
    """Return where both servers look for version 1 of a model."""
    return folder / name / "1" / "model.onnx"


def write_triton_config(folder: Path, name: str) -> None:
    """Describe a model to NVIDIA Triton: `NAME/config.pbtxt` in its repository.

    Args:
        folder: The repository, in which `repository_path` has been written.
        name: Of the model.

    Raises:
        ModelError: The file is damaged, or not a model of this package.
    """
    path = repository_path(folder, name)
    model, card = parse_sealed(path.read_bytes(), str(path))
    parts = [
        "# Written by magtiles-seg export --to triton; magtiles_seg/export/repositories.py",
        f"name: {_quoted(name)}",
        'platform: "onnxruntime_onnx"',
        f"max_batch_size: {MAX_BATCH}",
        *(_tensor("input", value) for value in model.graph.input),
        *(_tensor("output", value) for value in model.graph.output),
        "# Pictures of one size are joined; others wait for their own kind, at most so long.",
        f"dynamic_batching {{ max_queue_delay_microseconds: {QUEUE_DELAY_US} }}",
        *(_parameter(key, text) for key, text in _facts(card, decides=has_decision(model)).items()),
    ]
    write(folder / name / "config.pbtxt", ("\n".join(parts) + "\n").encode(), durable=True)


def _tensor(role: str, value: onnx.ValueInfoProto) -> str:
    """Describe an input or output without its first axis, the batch, as Triton wants it."""
    tensor = value.type.tensor_type
    free = ["-1"] * (len(tensor.shape.dim) - 1)
    # Triton has no shape without an axis: one number a picture is [1] outside, and [] to the model.
    dims = f"dims: [ {', '.join(free)} ]" if free else "dims: [ 1 ]\n  reshape { shape: [ ] }"
    return (
        f"# {value.doc_string}\n{role} {{\n  name: {_quoted(value.name)}\n"
        f"  data_type: {_TRITON_TYPES[tensor.elem_type]}\n  {dims}\n}}"
    )


def _facts(card: ModelCard, *, decides: bool) -> dict[str, str]:
    """Return what a client needs beside the tensors; Triton tells it with the model's config."""
    decision = card.decision
    facts = {
        "labels": ",".join(card.labels),
        "threshold": f"{decision.threshold:.9g}",
        "reject_score": f"{decision.reject_score:.9g}",
        "licence": card.licence,
    }
    if decision.review_score is not None:
        facts["review_score"] = f"{decision.review_score:.9g}"
    if decides:
        facts["verdicts"] = ",".join(VERDICTS)
        facts["left_out_of_decision"] = json.dumps(left_out(decision))
    return facts


def _parameter(key: str, text: str) -> str:
    return f"parameters {{ key: {_quoted(key)} value: {{ string_value: {_quoted(text)} }} }}"


def _quoted(text: str) -> str:
    """Return a text as protobuf's text format spells it: its bytes, ASCII as it is."""
    escaped = "".join(
        f"\\{byte:03o}" if byte < 32 or byte > 126 or byte in b'"\\' else chr(byte)
        for byte in text.encode()
    )
    return f'"{escaped}"'


def write_ovms_config(folder: Path, name: str) -> None:
    """List a model for OpenVINO Model Server: `config.json` of the folder, mounted at `/models`.

    Other models of the list stay.

    Args:
        folder: In which `repository_path` has been written.
        name: Of the model.

    Raises:
        DataError: There is a `config.json` that is no such list.
    """
    config: dict[str, object] = {
        "name": name,
        "base_path": f"{_OVMS_MOUNT}/{name}",
        "target_device": "CPU",
        # Left to itself it computes in bf16 wherever the CPU can, which moves the answers.
        "plugin_config": {"INFERENCE_PRECISION_HINT": "f32"},
    }
    content = read_ovms_config(folder)
    others = [entry for entry in content["model_config_list"] if entry["config"]["name"] != name]
    content["model_config_list"] = [*others, {"config": config}]
    write(folder / _OVMS_CONFIG, (json.dumps(content, indent=2) + "\n").encode(), durable=True)


def read_ovms_config(folder: Path) -> dict[str, list[dict[str, dict[str, object]]]]:
    """Return a folder's list of models for OpenVINO Model Server; an empty one where there is none.

    Raises:
        DataError: There is a `config.json` that is no such list.
    """
    path = folder / _OVMS_CONFIG
    if not path.exists():
        return {"model_config_list": []}
    try:
        content = parse_json(path.read_text(encoding="utf-8"))
        names = [entry["config"]["name"] for entry in content["model_config_list"]]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path} is no list of models for OpenVINO Model Server ({error!r}): expected "
            '{"model_config_list": [{"config": {"name": …}}, …]}; export to another folder'
        ) from error
    if not all(isinstance(name, str) for name in names):
        raise DataError(f"{path}: expected a name of text for every model, got {names}")
    return content  # type: ignore[no-any-return]


def check_repository(folder: Path, name: str, server: str) -> None:
    """Check, before the work begins, that a model can be described to a server.

    Args:
        folder: The repository.
        name: Of the model.
        server: `"triton"` or `"ovms"`.

    Raises:
        ConfigError: The name holds something else than letters, digits, `.`, `_` and `-`.
        DataError: As for `read_ovms_config`.
    """
    if server == "ovms":
        read_ovms_config(folder)
    if not all(sign.isascii() and (sign.isalnum() or sign in "._-") for sign in name):
        raise ConfigError(
            f"an inference server names a model in its URL: expected letters, digits, '.', '_' and "
            f"'-', got {name!r}; rename the model file"
        )
