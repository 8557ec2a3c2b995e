"""The networks: U-Nets over EfficientNet-Lite, `nano` for line cameras, and a second opinion."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from magtiles_seg.errors import ConfigError
from magtiles_seg.labels import LABELS

_CHANNELS = (16, 32, 64)
_BLOCKS = (0, 1, 2)


def conv_bn(
    in_channels: int,
    out_channels: int,
    kernel: int,
    *,
    stride: int = 1,
    groups: int = 1,
    activate: bool = True,
) -> nn.Sequential:
    """Return convolution, batch norm and (if `activate`) ReLU6; only `stride` changes the size."""
    layers: list[nn.Module] = [
        nn.Conv2d(
            in_channels, out_channels, kernel, stride, kernel // 2, groups=groups, bias=False
        ),
        nn.BatchNorm2d(out_channels, eps=1e-3, momentum=0.03),
    ]
    if activate:
        layers.append(nn.ReLU6(inplace=True))
    return nn.Sequential(*layers)


class PlainResidual(nn.Module):
    """Two 3x3 convolutions added to their input.

    Source: https://arxiv.org/abs/1512.03385, figure 2.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = conv_bn(channels, channels, 3)
        self.second = conv_bn(channels, channels, 3, activate=False)
        self.activation = nn.ReLU6(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """Return the same shape."""
        out: Tensor = self.activation(x + self.second(self.first(x)))
        return out


class NanoEncoder(nn.Module):
    """Plain residual stages behind a stride-4 patch stem: features at strides 4, 8 and 16.

    Dense convolutions on few channels: on a CPU with wide vectors they run nearer to the
    arithmetic limit than depthwise ones do.
    """

    def __init__(
        self,
        channels: tuple[int, ...] = _CHANNELS,
        blocks: tuple[int, ...] = _BLOCKS,
    ) -> None:
        super().__init__()
        self.channels = list(channels)
        patch = nn.Conv2d(1, channels[0], 4, 4, bias=False)
        entries: list[nn.Module] = [
            nn.Sequential(
                patch, nn.BatchNorm2d(channels[0], eps=1e-3, momentum=0.03), nn.ReLU6(inplace=True)
            ),
            *(
                conv_bn(before, after, 3, stride=2)
                for before, after in itertools.pairwise(channels)
            ),
        ]
        self.stages = nn.ModuleList(
            nn.Sequential(entry, *(PlainResidual(width) for _ in range(depth)))
            for entry, width, depth in zip(entries, channels, blocks, strict=True)
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return the features, finest first."""
        features: list[Tensor] = []
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        return features


class NanoDecoder(nn.Module):
    """From the coarsest feature to the finest: double, add, convolve.

    Attributes:
        width: Channels of the answer.
        context: None; see `network.Decoder`.
    """

    context: None = None

    def __init__(self, channels: list[int]) -> None:
        super().__init__()
        self.width = channels[0]
        self.project = conv_bn(channels[-1], channels[-2], 1, activate=False)
        self.up = nn.Upsample(scale_factor=2, mode="nearest")
        self.blocks = nn.ModuleList(
            conv_bn(skip, finer, 3)
            for skip, finer in zip(channels[-2::-1], [*channels[-3::-1], channels[0]], strict=True)
        )

    def forward(self, features: list[Tensor]) -> Tensor:
        """Return the finest joined feature."""
        x: Tensor = self.project(features[-1])
        for block, skip in zip(self.blocks, reversed(features[:-1]), strict=True):
            x = block(self.up(x) + skip)
        return x


GREY_CENTRE, GREY_SCALE = 127.5, 127.5
"""Grey levels 0..255 become (x - 127.5) / 127.5 inside the network, as the encoder was trained."""

_DEFECT_PRIOR = 0.05
"""P(defect) that an untrained network answers: the loss starts low."""


@dataclass(frozen=True)
class _Stage:
    """Inverted residuals of equal width, the first with `stride`."""

    expand: int
    channels: int
    blocks: int
    stride: int
    kernel: int


def _lite_stages(channels: tuple[int, ...], blocks: tuple[int, ...]) -> tuple[_Stage, ...]:
    shape = zip(
        (1, 6, 6, 6, 6, 6, 6),
        channels,
        blocks,
        (1, 2, 2, 2, 1, 2, 1),
        (3, 3, 5, 3, 5, 5, 3),
        strict=True,
    )
    return tuple(_Stage(*row) for row in shape)


_LITE_WIDTHS = (16, 24, 40, 80, 112, 192, 320)
_LITE0 = _lite_stages(_LITE_WIDTHS, (1, 2, 2, 3, 3, 4, 1))
LITE_STAGES: dict[str, tuple[_Stage, ...]] = {
    "small": _LITE0[:4],
    "lite0": _LITE0,
    "lite1": _lite_stages(_LITE_WIDTHS, (1, 3, 3, 4, 4, 5, 1)),
    "lite2": _lite_stages((16, 24, 48, 88, 120, 208, 352), (1, 3, 3, 4, 4, 5, 1)),
}
"""`small` begins as `lite0` does, and stops after eight of its sixteen blocks."""

ARCHITECTURES: tuple[str, ...] = ("nano", *LITE_STAGES)
"""Of a `SegmentationNetwork`; that of a `patch_network.PatchNetwork` is not among them."""


class InvertedResidual(nn.Module):
    """Expand (1x1), depthwise, project (1x1); added to its input where shape allows.

    Source: https://arxiv.org/abs/1801.04381, figure 3b.
    """

    def __init__(
        self, in_channels: int, out_channels: int, *, expand: int, stride: int, kernel: int
    ) -> None:
        super().__init__()
        hidden = in_channels * expand
        self.expand = conv_bn(in_channels, hidden, 1) if expand != 1 else None
        self.depthwise = conv_bn(hidden, hidden, kernel, stride=stride, groups=hidden)
        self.project = conv_bn(hidden, out_channels, 1, activate=False)
        self.residual = stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, out_channels, H / stride, W / stride)."""
        hidden = x if self.expand is None else self.expand(x)
        out: Tensor = self.project(self.depthwise(hidden))
        return x + out if self.residual else out


class LiteEncoder(nn.Module):
    """EfficientNet-Lite without its classifier: grey in, features at strides 2 to 32 out."""

    def __init__(self, stages: tuple[_Stage, ...]) -> None:
        super().__init__()
        self.stem = conv_bn(1, 32, 3, stride=2)
        self.blocks = nn.ModuleList()
        self.taps: list[int] = []
        self.channels: list[int] = []
        width = 32
        for stage in stages:
            for index in range(stage.blocks):
                stride = stage.stride if index == 0 else 1
                if stride == 2:
                    self._tap(width)
                self.blocks.append(
                    InvertedResidual(
                        width,
                        stage.channels,
                        expand=stage.expand,
                        stride=stride,
                        kernel=stage.kernel,
                    )
                )
                width = stage.channels
        self._tap(width)

    def _tap(self, width: int) -> None:
        self.taps.append(len(self.blocks) - 1)
        self.channels.append(width)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return the features, finest first."""
        features: list[Tensor] = []
        x = self.stem(x)
        for index, block in enumerate(self.blocks):
            x = block(x)
            if index in self.taps:
                features.append(x)
        return features


class Decoder(nn.Module):
    """From the coarsest feature to the finest: double, join, convolve (U-Net).

    Args:
        skips: Channels of the encoder's features, finest first.
        widths: Of the blocks, coarsest first.
        convolutions: In each block.
        context: Channels of three blocks at half the coarsest size, which see farther than the
            encoder does; 0 for none.
    """

    def __init__(
        self,
        skips: list[int],
        widths: tuple[int, ...],
        convolutions: tuple[int, ...],
        context: int = 0,
    ) -> None:
        super().__init__()
        self.up = nn.Upsample(scale_factor=2, mode="nearest")
        self.context: nn.Sequential | None = None
        if context:
            entries = [(skips[-1], 2), (context, 1), (context, 1)]
            self.context = nn.Sequential(
                *(
                    InvertedResidual(before, context, expand=2, stride=stride, kernel=5)
                    for before, stride in entries
                )
            )
            skips = [*skips, context]
        self.blocks = nn.ModuleList()
        below = skips[-1]
        for skip, width, count in zip(reversed(skips[:-1]), widths, convolutions, strict=True):
            layers = [
                conv_bn(below + skip, width, 3),
                *(conv_bn(width, width, 3) for _ in range(count - 1)),
            ]
            self.blocks.append(nn.Sequential(*layers))
            below = width
        self.width = below

    def forward(self, features: list[Tensor]) -> Tensor:
        """Return the finest joined feature."""
        if self.context is not None:
            features = [*features, self.context(features[-1])]
        x = features[-1]
        for block, skip in zip(self.blocks, reversed(features[:-1]), strict=True):
            x = block(torch.cat([self.up(x), skip], dim=1))
        return x


PATCH_PX = 8
"""Side of the squares that a `PatchClassifier` judges, in px."""

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
        self.encoder: LiteEncoder | NanoEncoder
        self.decoder: Decoder | NanoDecoder
        if architecture == "nano":
            self.encoder = NanoEncoder()
            self.decoder = NanoDecoder(self.encoder.channels)
            self.stride, self.class_stride = 16, 4
        else:
            self.encoder = LiteEncoder(LITE_STAGES[architecture])
            skips = self.encoder.channels
            if architecture == "small":
                self.decoder = Decoder(skips, (40, 32, 24, 16), (1, 1, 1, 1), context=96)
            else:
                self.decoder = Decoder(skips, (80, 48, 32, 24), (2, 2, 2, 1))
            self.stride, self.class_stride = 32, 2
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
        encoded = self.encoder((image - GREY_CENTRE) / GREY_SCALE)
        x = self.decoder(encoded)
        defect_logit = self.defect_head(x)
        if self.patches is not None and not self.training:
            defect_logit = torch.lerp(defect_logit, self.patches(encoded), self.patch_share)
        return self.shuffle(defect_logit), self.class_head(x)

    def add_patches(self) -> None:
        """Add a second opinion that is still to be fitted, and freeze what it shares.

        Raises:
            ConfigError: The encoder has no features of the strides 4 to 16 in three stages.
        """
        if not isinstance(self.encoder, LiteEncoder):
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
        return 2 * reach + 1


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
