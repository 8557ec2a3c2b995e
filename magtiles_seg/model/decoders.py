"""The decoders: from the coarsest feature of an encoder to the finest."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from magtiles_seg.model.encoders import InvertedResidual, conv_bn


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


class NanoDecoder(nn.Module):
    """From the coarsest feature to the finest: double, add, convolve.

    Attributes:
        width: Channels of the answer.
        context: None; see `Decoder`.
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
