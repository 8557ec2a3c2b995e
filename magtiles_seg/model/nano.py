"""`nano`, for line cameras: 0.2 M parameters, some 2800 operations a pixel.

All but the last step happens at a quarter of the picture's height and width: a stem of 4 x 4
patches, dense convolutions on 16, 32 and 64 channels (multiples of a CPU's vector), and skips that
are added and not joined, which halves the decoder's arithmetic.
"""

from __future__ import annotations

import itertools

from torch import Tensor, nn

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
