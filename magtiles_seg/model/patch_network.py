"""The network that is fitted in minutes: frozen features of patches, and what is learnt of them."""

from __future__ import annotations

from torch import Tensor, nn

from magtiles_seg.model.encoders import LITE_STAGES, LiteEncoder
from magtiles_seg.model.network import (
    GREY_CENTRE,
    GREY_SCALE,
    PATCH_PX,
    TRUNK_STAGES,
    PatchClassifier,
    check_labels,
    enlarged,
    patch_reach_px,
)

PATCHES = "patches"
"""The architecture of a `PatchNetwork`."""

_STAGES = 5
"""Of `lite0`, up to stride 16: all that a patch classifier sees."""


class PatchNetwork(nn.Module):
    """A patch classifier that answers alone: frozen ImageNet features and two small layers.

    It is fitted in minutes, and has so little to fit that it learns from few pictures, or from
    defects that were drawn on sound ones.

    Attributes:
        architecture: `PATCHES`.
        encoder: `lite0` up to stride 8.
        patches: The rest of what is needed of `lite0`, and the two layers.
        class_head: From what the second of these sees to the class of a defect.
        labels, stride, class_stride: As of a `SegmentationNetwork`.
    """

    architecture = PATCHES
    stride, class_stride = 2 * PATCH_PX, PATCH_PX

    def __init__(self, labels: tuple[str, ...], *, pretrained: bool = False) -> None:
        """Take the features of `lite0`, of ImageNet if `pretrained`; the layers are to be fitted.

        Raises:
            BackendUnavailableError: The package that carries the weights is not installed.
        """
        super().__init__()
        check_labels(labels)
        self.labels = labels
        stages = LITE_STAGES["lite0"]
        whole = LiteEncoder(stages[:_STAGES])
        if pretrained:
            from magtiles_seg.model.imagenet import load_imagenet_weights

            load_imagenet_weights(whole, "lite0")
        self.patches = PatchClassifier(whole)
        self.encoder = LiteEncoder(stages[:TRUNK_STAGES])
        known = self.encoder.state_dict()
        weights = whole.state_dict()
        self.encoder.load_state_dict({name: weights[name] for name in known})
        self.class_head = nn.Conv2d(self.patches.answer.in_channels, len(labels) - 1, 1)
        nn.init.zeros_(self.class_head.weight)
        nn.init.zeros_(self.class_head.bias)  # type: ignore[arg-type]
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> PatchNetwork:  # noqa: ARG002 - torch's signature
        """Stay in evaluation mode: the features' statistics are ImageNet's."""
        return super().train(mode=False)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logits of a batch of grey pictures, as a `SegmentationNetwork` does."""
        encoded = self.encoder((image - GREY_CENTRE) / GREY_SCALE)
        hidden = self.patches.hidden(*self.patches.features(encoded))
        return enlarged(self.patches.answer(hidden), PATCH_PX), self.class_head(hidden)

    @property
    def receptive_field_px(self) -> int:
        """Side of the square of input pixels that one output pixel can depend on, in px."""
        return 2 * patch_reach_px((self.encoder,), self.patches) + 1
