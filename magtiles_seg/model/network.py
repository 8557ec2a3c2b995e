"""The networks: U-Nets over EfficientNet-Lite, `nano` for line cameras, and a second opinion."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from copy import deepcopy

import torch
from torch import Tensor, nn

from magtiles_seg.errors import ConfigError
from magtiles_seg.labels import LABELS
from magtiles_seg.model.decoders import Decoder, NanoDecoder
from magtiles_seg.model.encoders import LITE_STAGES, LiteEncoder, NanoEncoder

GREY_CENTRE, GREY_SCALE = 127.5, 127.5
"""Grey levels 0..255 become (x - 127.5) / 127.5 inside the network, as the encoder was trained."""

_DEFECT_PRIOR = 0.05
"""P(defect) that an untrained network answers: the loss starts low."""

ARCHITECTURES: tuple[str, ...] = ("nano", *LITE_STAGES)
"""Of a `SegmentationNetwork`; that of a `patch_network.PatchNetwork` is not among them."""

PATCH_PX = 8
"""Side of the squares that a `PatchClassifier` judges, in px."""

_DETAIL_CHANNELS, _DETAIL_BLOCKS = (16, 32), (1, 1)
"""Of what sees the whole picture in `small`."""

TRUNK_STAGES = 3
"""Features of the strides 2, 4 and 8 come from the trunk, the part of an encoder that is shared."""


class PatchClassifier(nn.Module):
    """A second opinion from frozen features: how defective each patch of 8 x 8 px looks.

    It shares the encoder's trunk, up to stride 8, and has its own stage of stride 16; both keep
    their ImageNet weights, so they cannot learn the training tiles by heart. What it misses is
    hardly what a fitted network misses, and the two together answer better than either.

    Attributes:
        tail: The encoder's blocks of stride 16, as they were before any training.
        hidden_fine: 1 x 1 convolution over a patch's features of the strides 4 and 8.
        hidden_coarse: The same over those of stride 16, at their own size; the two are added.
        answer: 1 x 1 convolution to the logit of P(the patch is defective).
    """

    _HIDDEN = 64

    def __init__(self, encoder: LiteEncoder) -> None:
        super().__init__()
        _, _, trunk_end, tail_end = encoder.taps[:4]
        self.tail = deepcopy(encoder.blocks[trunk_end + 1 : tail_end + 1])
        _, fine, same, coarse = encoder.channels[:4]
        self.hidden_fine = nn.Conv2d(fine + same, self._HIDDEN, 1)
        self.hidden_coarse = nn.Conv2d(coarse, self._HIDDEN, 1, bias=False)
        self.answer = nn.Conv2d(self._HIDDEN, 1, 1)
        self.requires_grad_(False)

    def train(self, mode: bool = True) -> PatchClassifier:  # noqa: ARG002 - torch's signature
        """Stay in evaluation mode: the features' statistics are ImageNet's."""
        return super().train(mode=False)

    def features(self, encoded: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Return what is known of each patch.

        Args:
            encoded: The encoder's features, finest first, of which those of the strides 4 and 8
                are used.

        Returns:
            fine: (N, C, H / 8, W / 8), the strides 4 and 8.
            coarse: (N, C', H / 16, W / 16). Those of 8 and 16 are means over 3 x 3 neighbours.
        """
        _, fine, same = encoded[:TRUNK_STAGES]
        coarse = same
        for block in self.tail:
            coarse = block(coarse)
        pooled = nn.functional.avg_pool2d(fine, 2)
        return torch.cat([pooled, _neighbourhood_mean(same)], dim=1), _neighbourhood_mean(coarse)

    def hidden(self, fine: Tensor, coarse: Tensor) -> Tensor:
        """Return what the answer is made of, (N, 64, H / 8, W / 8), from the `features`."""
        return nn.functional.relu(self.hidden_fine(fine) + enlarged(self.hidden_coarse(coarse), 2))

    def judge(self, fine: Tensor, coarse: Tensor) -> Tensor:
        """Return the patches' logits, (N, 1, H / 8, W / 8), from their `features`."""
        logit: Tensor = self.answer(self.hidden(fine, coarse))
        return logit

    def forward(self, encoded: Sequence[Tensor]) -> Tensor:
        """Return the patches' logits at half the picture's size, (N, 1, H / 2, W / 2)."""
        return enlarged(self.judge(*self.features(encoded)), PATCH_PX // 2)


def _neighbourhood_mean(feature: Tensor) -> Tensor:
    return nn.functional.avg_pool2d(feature, 3, 1, 1, count_include_pad=False)


def enlarged(feature: Tensor, factor: int) -> Tensor:
    """Return a feature bilinearly enlarged, (N, C, H * factor, W * factor)."""
    return nn.functional.interpolate(feature, scale_factor=float(factor), mode="bilinear")


class SegmentationNetwork(nn.Module):
    """Encoder, decoder and two heads, and a second opinion where one was added.

    Attributes:
        architecture: One of `ARCHITECTURES`.
        reduction: The encoder sees the picture smaller by this factor: 2 in `small`, else 1.
        detail: Sees it whole, where the encoder does not: features of the strides 4 and 8, which
            join the encoder's; or None.
        patches: The second opinion, or None. Beside it the encoder's trunk stays as it is.
        patch_share: Its share of the defect logit, () float32 in [0, 1]; the decoder has the rest.
            0 until it is fitted.
        labels: Class names by index, background first.
        stride: Height and width of the input must be multiples of this.
        class_stride: The input's size over that of `class_logits`.
    """

    patch_share: Tensor

    def __init__(self, architecture: str, labels: tuple[str, ...]) -> None:
        super().__init__()
        self.architecture = architecture
        self.labels = labels
        self.reduction = 2 if architecture == "small" else 1
        self.detail: NanoEncoder | None = None
        self.encoder: LiteEncoder | NanoEncoder
        self.decoder: Decoder | NanoDecoder
        if architecture == "nano":
            self.encoder = NanoEncoder()
            self.decoder = NanoDecoder(self.encoder.channels)
            self.stride, self.class_stride = 16, 4
        else:
            self.encoder = LiteEncoder(LITE_STAGES[architecture])
            skips = self.encoder.channels
            if self.reduction > 1:
                self.detail = NanoEncoder(_DETAIL_CHANNELS, _DETAIL_BLOCKS)
                pairs = zip(skips, self.detail.channels, strict=False)
                skips = [*map(sum, pairs), *skips[len(self.detail.channels) :]]
            if architecture == "small":
                self.decoder = Decoder(skips, (40, 32, 24, 16), (1, 1, 1, 1), context=96)
            else:
                self.decoder = Decoder(skips, (80, 48, 32, 24), (2, 2, 2, 1))
            self.stride, self.class_stride = 32 * self.reduction, 2 * self.reduction
        self.defect_head = nn.Conv2d(self.decoder.width, self.class_stride**2, 3, padding=1)
        self.class_head = nn.Conv2d(self.decoder.width, len(labels) - 1, 1)
        self.shuffle = nn.PixelShuffle(self.class_stride)
        self.patches: PatchClassifier | None = None
        nn.init.zeros_(self.defect_head.weight)
        prior = torch.tensor(math.log(_DEFECT_PRIOR / (1 - _DEFECT_PRIOR)))
        self.defect_head.bias = nn.Parameter(prior.repeat(self.class_stride**2))

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logits of a batch of grey pictures.

        Args:
            image: (N, 1, H, W) float, grey levels 0..255; H and W multiples of `stride`.

        Returns:
            defect_logit: (N, 1, H, W), of P(defect).
            class_logits: (N, K-1, H / class_stride, W / class_stride), of P(class | defect), in the
                order of `labels[1:]`.
        """
        encoded = self._encode((image - GREY_CENTRE) / GREY_SCALE)
        x = self.decoder(encoded)
        defect_logit = self.defect_head(x)
        if self.patches is not None and not self.training:
            defect_logit = torch.lerp(defect_logit, self.patches(encoded), self.patch_share)
        return self.shuffle(defect_logit), self.class_head(x)

    def _encode(self, grey: Tensor) -> list[Tensor]:
        """Return the features that the decoder joins, finest first."""
        if self.detail is None:
            encoded: list[Tensor] = self.encoder(grey)
            return encoded
        encoded = self.encoder(nn.functional.avg_pool2d(grey, self.reduction))
        details = self.detail(grey)
        joined = [torch.cat(pair, dim=1) for pair in zip(encoded, details, strict=False)]
        return [*joined, *encoded[len(details) :]]

    def add_patches(self) -> None:
        """Add a second opinion that is still to be fitted, and freeze what it shares.

        Raises:
            ConfigError: The encoder has no features of the picture's strides 4 to 16 in three
                stages.
        """
        if not isinstance(self.encoder, LiteEncoder) or self.reduction > 1:
            raise ConfigError(
                f"a {self.architecture!r} network has no frozen features to judge patches by: set "
                "train.patch_share to 0, or take another train.architecture"
            )
        self.patches = PatchClassifier(self.encoder)
        self.register_buffer("patch_share", torch.tensor(0.0))
        for part in self._trunk():
            part.requires_grad_(False).eval()

    def _trunk(self) -> tuple[nn.Module, ...]:
        """Return the encoder's parts up to stride 8."""
        encoder = self.encoder
        if not isinstance(encoder, LiteEncoder):
            return ()
        return (encoder.stem, *encoder.blocks[: encoder.taps[TRUNK_STAGES - 1] + 1])

    def train(self, mode: bool = True) -> SegmentationNetwork:
        """Set the mode; a trunk that a second opinion shares stays in evaluation mode."""
        super().train(mode)
        if self.patches is not None:
            for part in self._trunk():
                part.eval()
        return self

    @property
    def receptive_field_px(self) -> int:
        """Side of the square of input pixels that one output pixel can depend on, in px."""
        reach = _reach_px(self.encoder, self.decoder)
        if self.patches is not None:
            reach = max(reach, patch_reach_px(self._trunk(), self.patches))
        return 2 * (self.reduction * reach + self.reduction - 1) + 1


def _reach_px(encoder: nn.Module, decoder: Decoder | NanoDecoder) -> int:
    """Return how far from an output pixel the network can see, in px, as an upper bound.

    Down the encoder each k x k convolution at stride s adds s * (k // 2), and each downsampling by
    its kernel's rest; up the decoder each 3 x 3 convolution at stride s adds s, and each doubling
    less than one coarse pixel.
    """
    context = decoder.context.modules() if decoder.context is not None else ()
    reach, jump = reach_down((*encoder.modules(), *context))
    for block in decoder.blocks:
        reach += jump - 1 - (jump // 2 - 1)
        jump //= 2
        reach += jump * sum(isinstance(module, nn.Conv2d) for module in block.modules())
    return reach + 2 * jump - 1


def reach_down(modules: Iterable[nn.Module]) -> tuple[int, int]:
    """Return how far a chain of convolutions sees, in px, and its stride."""
    reach, jump = 0, 1
    for module in modules:
        if isinstance(module, nn.Conv2d):
            reach += jump * max(module.kernel_size[0] // 2, module.stride[0] - 1)
            jump *= module.stride[0]
    return reach, jump


def patch_reach_px(trunk: Iterable[nn.Module], patches: PatchClassifier) -> int:
    """Return how far a patch classifier can see.

    The coarsest feature's neighbours and two linear enlargements reach a coarse pixel each.
    """
    modules = itertools.chain.from_iterable(part.modules() for part in (*trunk, patches.tail))
    reach, jump = reach_down(modules)
    return reach + 2 * jump + 2 * PATCH_PX


def build_network(
    architecture: str = "lite0", *, labels: tuple[str, ...] = LABELS, pretrained: bool = False
) -> SegmentationNetwork:
    """Return a network with fresh weights.

    Args:
        architecture: One of `ARCHITECTURES`.
        labels: Class names by index, background first.
        pretrained: Start the encoder from ImageNet weights; not for `"nano"`.

    Raises:
        ConfigError: The architecture is unknown, or has no pretrained weights.
        BackendUnavailableError: The package that carries the weights is not installed.
    """
    if architecture not in ARCHITECTURES:
        raise ConfigError(
            f"unknown architecture {architecture!r}: expected one of {', '.join(ARCHITECTURES)}"
        )
    check_labels(labels)
    network = SegmentationNetwork(architecture, tuple(labels))
    if pretrained:
        from magtiles_seg.model.imagenet import load_imagenet_weights

        load_imagenet_weights(network.encoder, architecture)
    return network


def check_labels(labels: tuple[str, ...]) -> None:
    """Check the class names of a network.

    Raises:
        ConfigError: There is no class of defect among them.
    """
    if len(labels) < 2:
        raise ConfigError(
            f"labels must name the background and at least one defect, got {labels!r}"
        )
