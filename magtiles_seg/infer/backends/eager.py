"""Checkpoints on eager torch: the reference that every exported model is compared with."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from magtiles_seg.errors import BackendUnavailableError, ConfigError, InferenceError, ModelError
from magtiles_seg.files import sha256_of
from magtiles_seg.image import MIN_SIDE_PX
from magtiles_seg.infer.backends.base import (
    Answer,
    BackendSpec,
    check_images,
    check_threads,
    parse_device,
    read_model,
)
from magtiles_seg.infer.backends.held import Held, gpu_after_fork
from magtiles_seg.infer.backends.onnxfile import read_again
from magtiles_seg.model.card import ModelCard
from magtiles_seg.result import Decision

try:
    import torch
    from torch import Tensor, nn

    from magtiles_seg.model.checkpoint import load_checkpoint
    from magtiles_seg.model.ensemble import Ensemble, Network, members_of
except Exception as error:  # torch answers a missing library with errors of many types
    raise BackendUnavailableError(
        "the eager backend needs torch and safetensors "
        f"({error}): pip install 'magtiles-seg[train]'"
    ) from error

_IMPORTED_BY = os.getpid()

_CARD_FIELDS = {entry.name for entry in dataclasses.fields(ModelCard)}


class InferenceGraph(nn.Module):
    """A network from grey bytes to the answer: what the eager backend runs and what is exported.

    Attributes:
        network: Answers with logits, for sizes that are multiples of its stride; of an ensemble
            each member, for multiples of its own.
    """

    def __init__(self, network: Network) -> None:
        """Wrap a network; its weights are shared."""
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Answer a batch of pictures of any size.

        Args:
            image: (N, H, W) uint8, H and W >= 32.

        Returns:
            probability: (N, H, W) float32 in [0, 1] of "any defect".
            classes: (N, H, W) uint8 in 1..K-1, the likeliest defect class.
        """
        _, height, width = image.shape
        grey = image.float().unsqueeze(1)
        answers = [member(_padded(grey, member.stride)) for member in members_of(self.network)]
        logits = [defect[:, 0, :height, :width].float() for defect, _ in answers]
        joint = self.network.joined(logits) if isinstance(self.network, Ensemble) else logits[0]
        # Bytes are made from floats, the only conversion to bytes that TensorRT has.
        classes = answers[0][1].argmax(1, keepdim=True).float() + 1
        scale = float(self.network.class_stride)
        classes = nn.functional.interpolate(classes, scale_factor=scale, mode="nearest")
        return joint.sigmoid(), classes[:, 0, :height, :width].to(torch.uint8)


def _padded(grey: Tensor, stride: int) -> Tensor:
    """Return pictures, mirrored at their bottoms and rights up to multiples of a stride.

    Training mirrors them, too: a network has never seen a last row smeared out and calls it a
    defect. The size is spelled `stride * ceil(H / stride)`: the exporter can prove that it fits.

    Args:
        grey: (N, 1, H, W) float.
        stride: Of a network.
    """
    *_, height, width = grey.shape
    right = (width + stride - 1) // stride * stride - width
    bottom = (height + stride - 1) // stride * stride - height
    if stride > MIN_SIDE_PX:  # a picture of that size cannot be mirrored so far by `pad`
        grey = grey.index_select(2, _mirrored(height, height + bottom, grey.device))
        return grey.index_select(3, _mirrored(width, width + right, grey.device))
    return nn.functional.pad(grey, (0, right, 0, bottom), mode="reflect")


def _mirrored(side: int, wanted: int, device: torch.device) -> Tensor:
    """Return which row or column stands where in a side that is mirrored to a length below 3 x."""
    index = torch.arange(wanted, device=device)
    return torch.minimum(index, torch.abs(2 * (side - 1) - index))


class EagerBackend:
    """A checkpoint in torch, fp32, without any compilation."""

    def __init__(self, path: Path, *, device: str = "cpu", threads: int | None = None) -> None:
        """Load a checkpoint.

        Args:
            path: A `.safetensors` file that training wrote.
            device: `"cpu"`, `"cuda"` or `"cuda:N"`.
            threads: Of torch on a CPU, for the whole process; None leaves torch's setting.

        Raises:
            FileNotFoundError: There is no such file.
            ModelError: The file is damaged, or not a checkpoint of this package.
            ConfigError: The device or the number of threads is invalid.
            BackendUnavailableError: torch has no such device.
        """
        kind, number = parse_device(device)
        if kind == "cuda" and number >= torch.cuda.device_count():
            raise BackendUnavailableError(
                f"torch sees {torch.cuda.device_count()} CUDA devices, got device {device!r}: "
                "check the NVIDIA driver and that torch is a CUDA build, or use device='cpu'"
            )
        if threads is not None:
            torch.set_num_threads(check_threads(threads))
        _spare_threads()
        sha256 = sha256_of(read_model(path))
        network, meta = load_checkpoint(path)
        self._device = torch.device("cpu" if kind == "cpu" else f"cuda:{number}")
        again = gpu_after_fork if kind == "cuda" else partial(_load_again, path.absolute(), sha256)
        self._graph: Held[InferenceGraph] = Held(
            lambda: InferenceGraph(network).eval().to(self._device), str(path), again=again
        )
        self.spec = BackendSpec(
            name="eager",
            device=str(self._device),
            provider=f"torch {torch.__version__}",
            threads=torch.get_num_threads(),
            path=path,
            sha256=sha256,
            card=card_of(network, meta, name=path.stem, weights_sha256=sha256),
        )

    def infer(self, images: npt.NDArray[np.uint8]) -> Answer:
        """Answer as every `Backend`."""
        check_images(images)
        graph = self._graph.get()
        try:
            with torch.inference_mode():
                batch = torch.tensor(images, device=self._device)
                probability, classes = (answer.cpu().numpy() for answer in graph(batch))
        except RuntimeError as error:
            raise InferenceError(f"torch failed on pictures {images.shape}: {error}") from error
        return probability, classes

    def close(self) -> None:
        """Free the network once the calls in progress have ended."""
        self._graph.close()


def _load_again(path: Path, sha256: str) -> InferenceGraph:
    """Return the network of a checkpoint in a forked child."""
    _spare_threads()
    read_again(path, sha256)
    network, _ = load_checkpoint(path)
    return InferenceGraph(network).eval()


def _spare_threads() -> None:
    """Let torch compute without threads in a forked child: it would wait for the parent's."""
    if os.getpid() != _IMPORTED_BY:
        torch.set_num_threads(1)


def card_of(
    network: Network,
    meta: Mapping[str, Any],
    *,
    name: str,
    weights_sha256: str = "",
) -> ModelCard:
    """Return the card of a checkpoint, as far as its metadata tell.

    Args:
        network: The checkpoint's network.
        meta: Fields of `ModelCard` by name; whatever else it holds joins `training`.
        name: The model's name where `meta` has none.
        weights_sha256: Of the checkpoint file.

    Raises:
        ModelError: A field of `meta` is invalid.
    """
    for key in ("training", "decision", "calibration", "metrics"):
        kind = list if key == "metrics" else dict
        if not isinstance(meta.get(key, kind()), kind | tuple if key == "metrics" else kind):
            raise ModelError(
                f"the checkpoint's metadata are damaged: {key} must be a {kind.__name__}; train it "
                "again"
            )
    rest = {key: value for key, value in meta.items() if key not in _CARD_FIELDS}
    try:
        return ModelCard(
            name=meta.get("name", name),
            architecture=network.architecture,
            labels=network.labels,
            stride=network.stride,
            decision=Decision(**meta.get("decision", {})),
            receptive_field_px=network.receptive_field_px,
            training={**meta.get("training", {}), **rest},
            metrics=tuple(meta.get("metrics", ())),
            git_revision=meta.get("git_revision", ""),
            weights_sha256=weights_sha256,
            licence=meta.get("licence", "Apache-2.0"),
            calibration=meta.get("calibration", {}),
        )
    except (ConfigError, TypeError) as error:
        raise ModelError(
            f"the checkpoint's metadata are damaged: {error}; train it again"
        ) from error
