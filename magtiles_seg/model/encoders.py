"""The encoders: EfficientNet-Lite as ImageNet's weights know it, and `nano` for line cameras."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

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
    """Plain residual stages behind a stride-4 patch stem: features at strides 4, 8, 16 and so on.

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
