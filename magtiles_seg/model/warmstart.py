"""Warm start: a fresh network takes over the weights of a trained model.

A model file holds convolutions that batch norm has been folded into, and batch norm cannot be read
back from them. It is put back so that the network answers as the file does *and* can be trained:
the mean and variance of what each convolution gives are measured on pictures, and scale and shift
are set to undo the normalization.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from magtiles_seg.errors import BackendUnavailableError, ModelError
from magtiles_seg.model.card import CARD_KEY, JOINT, ModelCard, check_seal
from magtiles_seg.model.checkpoint import member_tensors, present_name, read_meta, read_tensors
from magtiles_seg.model.network import SegmentationNetwork

_SIDE_PX = 224
_ENCODER, _CLASS_HEAD = ("encoder.", "patches.tail."), "class_head."
_PATCHES, _PATCH_SHARE = "patches.", "patch_share"


def start_from(
    network: SegmentationNetwork,
    path: str | os.PathLike[str],
    pictures: Sequence[NDArray[np.uint8]],
) -> None:
    """Fill a network with the weights of a trained model.

    The head that names the class of a defect keeps its fresh weights where the labels differ, and
    where a file has none, as of an ensemble's later members; where a checkpoint's encoder begins
    with the whole of this one, as that of `lite0` begins with `small`'s, the decoder and both heads
    do. A patch classifier is to be fitted anew: its features are taken over, its share is 0. Of an
    ensemble the first member of the network's architecture is taken, or else the first.

    Args:
        network: Is changed in place.
        path: A `.safetensors` checkpoint, or an fp32 `.onnx` file of this package.
        pictures: (H, W) uint8 each, some of those to be trained on; for an `.onnx` file.

    Raises:
        FileNotFoundError: There is no such file.
        ModelError: It is damaged, or of an architecture that does not fit.
        BackendUnavailableError: Reading an `.onnx` file needs onnx, which is not installed.
    """
    path = Path(path)
    weights, said, labels = _weights_of(path)
    taken, architecture = _one_member(weights, said, network.architecture)
    if _is_onnx(path):
        own = {name: tensor for name, tensor in taken.items() if not name.endswith(".weight_bias")}
        missing = _take_over(network, own, labels)
        owners = (network.get_submodule(name.rpartition(".")[0]) for name in missing)
        if not all(isinstance(owner, nn.BatchNorm2d) for owner in owners):
            raise _misfit(path, said, network, missing)
        _unfold(network, taken, pictures)
        return
    same = architecture == network.architecture
    if not same:
        taken = {name: tensor for name, tensor in taken.items() if name.startswith(_ENCODER)}
    missing = _take_over(network, taken, labels)
    if any(same or name.startswith(_ENCODER) for name in missing):
        raise _misfit(path, said, network, missing)


def has_patches(path: str | os.PathLike[str], architecture: str) -> bool:
    """Return whether what `start_from` takes of a model has a patch classifier.

    Args:
        path: As of `start_from`.
        architecture: Of the network that starts from it.

    Raises:
        FileNotFoundError, ModelError, BackendUnavailableError: As `start_from`.
    """
    weights, said, _ = _weights_of(Path(path))
    weights, _ = _one_member(weights, said, architecture)
    return any(name.startswith(_PATCHES) and not name.startswith(_ENCODER) for name in weights)


def _is_onnx(path: Path) -> bool:
    return path.suffix.lower() == ".onnx"


def _weights_of(path: Path) -> tuple[dict[str, Tensor], str, tuple[str, ...]]:
    """Return weights by the network's own names, architecture and labels of a trained model."""
    if _is_onnx(path):
        weights, card = _onnx_weights(path)
        return weights, card.architecture, card.labels
    weights, meta = read_tensors(path)
    return weights, str(meta.get("architecture")), tuple(meta.get("labels", ()))


def _one_member(
    weights: dict[str, Tensor], architecture: str, wanted: str
) -> tuple[dict[str, Tensor], str]:
    """Return weights and architecture of a network, or of the member that a start takes over.

    Args:
        weights: Of a model, by name.
        architecture: Its own.
        wanted: Of the network that starts from it.
    """
    names = architecture.split(JOINT)
    if len(names) == 1:
        return weights, architecture
    index = names.index(wanted) if wanted in names else 0
    own = member_tensors(weights, index)
    return {**_shared(weights, index, own), **own}, names[index]


def _shared(weights: dict[str, Tensor], index: int, own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the frozen weights that a file holds once, under an earlier member's name."""
    return {
        name: tensor
        for earlier in range(index)
        for name, tensor in member_tensors(weights, earlier).items()
        if name.startswith(_ENCODER) and f"{name.rpartition('.')[0]}.weight" not in own
    }


def training_of(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return what a trained model says of its training, as its card has it.

    Raises:
        FileNotFoundError, ModelError, BackendUnavailableError: As `start_from`.
    """
    path = Path(path)
    if _is_onnx(path):
        return dict(_onnx_card(path)[0].training)
    meta = read_meta(path)
    said = meta.get("training")
    return {**(said if isinstance(said, dict) else {}), **meta}


def _take_over(
    network: SegmentationNetwork, weights: Mapping[str, Tensor], labels: tuple[str, ...]
) -> list[str]:
    """Copy what fits, and return the names of what the weights lack."""
    missing = []
    for name, tensor in network.state_dict().items():
        if name == _PATCH_SHARE:
            continue
        if name.startswith(_CLASS_HEAD) and (labels != network.labels or name not in weights):
            continue
        if name in weights and weights[name].shape == tensor.shape:
            tensor.copy_(weights[name])
        else:
            missing.append(name)
    return missing


def _misfit(
    path: Path, architecture: str, network: SegmentationNetwork, missing: Sequence[str]
) -> ModelError:
    names = architecture.split(JOINT)
    fix = f"set train.architecture to the model's own, {' or '.join(dict.fromkeys(names))}"
    if network.architecture in names:
        fix = "it is of another version of that network; start from a newer model"
    return ModelError(
        f"{path} does not fit a {network.architecture!r} network ({missing[0]} and "
        f"{len(missing) - 1} more are not in it): {fix}"
    )


def _onnx_weights(path: Path) -> tuple[dict[str, Tensor], ModelCard]:
    """Return the weights of an ONNX file by the network's own names, and its card."""
    card, model = _onnx_card(path)
    from onnx import numpy_helper

    from magtiles_seg.model.stored import is_reduced, widen

    widen(model)
    if is_reduced(model):
        raise ModelError(
            f"{path} computes in less than fp32, and its weights cannot be learnt on from: start "
            "from the checkpoint or the fp32 model file that it was made from"
        )
    weights = {
        _own_name(entry.name): torch.from_numpy(numpy_helper.to_array(entry).astype(np.float32))
        for entry in model.graph.initializer
    }
    for node in model.graph.node:  # several may share a bias of equal values
        if node.op_type == "Conv" and len(node.input) == 3:
            name, bias = _own_name(node.input[1]), weights[_own_name(node.input[2])]
            weights[f"{name}_bias"] = weights[f"{name.removesuffix('weight')}bias"] = bias
    return weights, card


def _onnx_card(path: Path) -> tuple[ModelCard, Any]:
    """Return the card of an ONNX file, and its `ModelProto`."""
    try:
        import onnx
    except ImportError as error:
        raise BackendUnavailableError(
            "starting from an .onnx file needs onnx: pip install 'magtiles-seg[export]'"
        ) from error
    if not path.is_file():
        raise FileNotFoundError(f"no model file at {path}")
    data = path.read_bytes()
    check_seal(data, str(path))
    model = onnx.load_from_string(data)
    cards = {entry.key: entry.value for entry in model.metadata_props}
    return ModelCard.from_json(cards[CARD_KEY]), model


def _own_name(stored: str) -> str:
    """Return the network's own name of an initializer of an ONNX file."""
    return present_name(stored.removeprefix("network."))


def _unfold(
    network: SegmentationNetwork,
    folded: Mapping[str, Tensor],
    pictures: Sequence[NDArray[np.uint8]],
) -> None:
    """Set every batch norm so that it adds the folded bias, by the statistics of its input."""
    hooks = []
    for name, module in network.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            convolution = name.rpartition(".")[0] + ".0.weight_bias"
            none = torch.zeros(module.num_features)  # the exporter leaves zero biases out
            bias = folded.get(convolution, none)
            hooks.append(module.register_forward_pre_hook(_settler(bias)))
    training = network.training
    network.eval()
    try:
        with torch.inference_mode():
            side_px = -(-_SIDE_PX // network.stride) * network.stride
            squares = np.stack([_square(image, side_px) for image in pictures])
            network(torch.from_numpy(squares)[:, None])
    finally:
        for hook in hooks:
            hook.remove()
        network.train(training)


def _settler(bias: Tensor):  # type: ignore[no-untyped-def]  # noqa: ANN202  (torch's type of a hook)
    def settle(norm: nn.BatchNorm2d, inputs: tuple[Tensor, ...]) -> None:
        variance, mean = torch.var_mean(inputs[0], dim=(0, 2, 3), correction=0)
        with torch.no_grad():
            norm.running_mean.copy_(mean)  # type: ignore[union-attr]
            norm.running_var.copy_(variance)  # type: ignore[union-attr]
            norm.weight.copy_((variance + norm.eps).sqrt())
            norm.bias.copy_(mean + bias)

    return settle


def _square(image: NDArray[np.uint8], side_px: int) -> NDArray[np.float32]:
    """Return the top left of a picture, mirrored where it is too small: (side, side) float32."""
    missing = [(0, max(0, side_px - side)) for side in image.shape]
    return np.pad(image, missing, mode="symmetric")[:side_px, :side_px].astype(np.float32)
