"""ResNet version 1 as published, for ImageNet and for CIFAR, and its plain twin (arXiv 1512.03385).

Version 1 takes its stride in the first 1x1 convolution of a bottleneck. What libraries ship as
ResNet-50 takes it in the 3x3 one (v1.5): `torchvision:resnet50`, `timm:resnet50`.
"""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from training.models.classifier import Classifier
from training.models.initialise import he_normal

SHORTCUTS = ("A", "B", "C", "plain")
# Blocks a stage (table 1 of the paper), and whether they are bottlenecks.
_IMAGENET = {
    18: ((2, 2, 2, 2), False),
    34: ((3, 4, 6, 3), False),
    50: ((3, 4, 6, 3), True),
    101: ((3, 4, 23, 3), True),
    152: ((3, 8, 36, 3), True),
}
_EXPANSION = 4


class ResNet(Classifier):
    """Residual blocks between a stem and an average over what is left.

    Args:
        classes: number of outputs.
        channels: of the images.
        stem: from `channels` to `widths[0]` maps.
        blocks: how many a stage; every stage after the first halves the picture.
        widths: of the stages; a bottleneck's output is four times as wide.
        is_bottleneck: three convolutions a block in place of two.
        drop_path_rate: share of images for which the last block's body is left out in training; it
            rises in a line from the first block (stochastic depth, arXiv 1603.09382).
        shortcut: what carries the input past a block: "A" the input, zero-padded where it grows;
            "B" a projection where it grows; "C" projections everywhere; "plain" nothing.
    """

    def __init__(
        self,
        classes: int,
        channels: int,
        stem: nn.Sequential,
        blocks: Sequence[int],
        widths: Sequence[int],
        is_bottleneck: bool,
        shortcut: str,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__(channels)
        if drop_path_rate and shortcut == "plain":
            raise ValueError("drop_path_rate needs shortcuts, which a plain net has none of")
        if shortcut not in SHORTCUTS:
            raise ValueError(f"shortcut must be one of {', '.join(SHORTCUTS)}, got {shortcut}")
        self.stem = stem
        stages, before = [], widths[0]
        done, rate = 0, drop_path_rate / sum(blocks)
        for stage, (count, width) in enumerate(zip(blocks, widths, strict=True)):
            after = width * _EXPANSION if is_bottleneck else width
            strides = [1 if stage == 0 else 2] + [1] * (count - 1)
            stages.append(nn.Sequential())
            for stride in strides:
                make, done = _bottleneck if is_bottleneck else _basic, done + 1
                body = make(before, width, stride)
                stages[-1].append(Residual(body, before, after, stride, shortcut, done * rate))
                before = after
        self.stages = nn.Sequential(*stages)
        self.head = nn.Linear(before, classes)
        he_normal(self)

    def embed(self, images: Tensor) -> Tensor:
        """Return the averaged maps [N, D] of images of any size."""
        maps: Tensor = self.stages(self.stem(images))
        return maps.mean(dim=(2, 3))


class Residual(nn.Module):
    """ReLU(body(x) + shortcut(x)). [N, in, H, W] -> [N, out, H/stride, W/stride].

    In training the body is left out for a share `drop_path` of the images, by chance, and counts
    for so much more in the others.
    """

    def __init__(
        self,
        body: nn.Sequential,
        channels_in: int,
        channels_out: int,
        stride: int,
        kind: str,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.body = body
        self.drop_path = drop_path
        has_grown = stride != 1 or channels_in != channels_out
        self.shortcut: nn.Module | None
        if kind == "plain":
            self.shortcut = None
        elif kind == "C" or (kind == "B" and has_grown):
            self.shortcut = nn.Sequential(*_convolution(channels_in, channels_out, 1, stride))
        elif has_grown:
            self.shortcut = ZeroPadded(channels_out - channels_in, stride)
        else:
            self.shortcut = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Return float [N, out, H/stride, W/stride]."""
        y = self.body(x)
        if self.training and self.drop_path:
            kept = torch.rand(len(y), 1, 1, 1, device=y.device) >= self.drop_path
            y = y * kept / (1 - self.drop_path)
        return functional.relu(y if self.shortcut is None else y + self.shortcut(x))


class ZeroPadded(nn.Module):
    """Shortcut A: every `stride`-th pixel, and channels of zeros for those that are missing."""

    def __init__(self, missing: int, stride: int) -> None:
        super().__init__()
        self.missing = missing
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """Return float [N, C + missing, H/stride, W/stride]."""
        picked = x[:, :, :: self.stride, :: self.stride]
        return functional.pad(picked, (0, 0, 0, 0, 0, self.missing))


def imagenet_resnet(
    classes: int,
    depth: int,
    channels: int = 3,
    shortcut: str = "B",
    width: int = 64,
    drop_path_rate: float = 0.0,
) -> ResNet:
    """Return ResNet-`depth` version 1, 18 to 152 layers; `width` is that of the stem."""
    if depth not in _IMAGENET:
        raise ValueError(f"depth must be one of {', '.join(map(str, _IMAGENET))}, got {depth}")
    blocks, is_bottleneck = _IMAGENET[depth]
    stem = nn.Sequential(
        *_convolution(channels, width, 7, stride=2),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(kernel_size=3, stride=2, padding=1),
    )
    widths = [width * 2**stage for stage in range(4)]
    return ResNet(classes, channels, stem, blocks, widths, is_bottleneck, shortcut, drop_path_rate)


def cifar_resnet(
    classes: int,
    depth: int,
    channels: int = 3,
    shortcut: str = "A",
    width: int = 16,
    drop_path_rate: float = 0.0,
) -> ResNet:
    """Return the net of section 4.2, `depth` = 6n + 2 layers, for pictures of about 32 pixels."""
    if depth < 8 or depth % 6 != 2:
        raise ValueError(f"depth must be 6n + 2, got {depth}")
    stem = nn.Sequential(*_convolution(channels, width, 3), nn.ReLU(inplace=True))
    blocks = [(depth - 2) // 6] * 3
    widths = [width, 2 * width, 4 * width]
    return ResNet(classes, channels, stem, blocks, widths, False, shortcut, drop_path_rate)


RESNETS = {
    **{f"resnet{depth}_v1": partial(imagenet_resnet, depth=depth) for depth in _IMAGENET},
    **{
        f"cifar_resnet{depth}": partial(cifar_resnet, depth=depth)
        for depth in (20, 32, 44, 56, 110, 1202)
    },
}


def _basic(channels: int, width: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        *_convolution(channels, width, 3, stride),
        nn.ReLU(inplace=True),
        *_convolution(width, width, 3),
    )


def _bottleneck(channels: int, width: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        *_convolution(channels, width, 1, stride),
        nn.ReLU(inplace=True),
        *_convolution(width, width, 3),
        nn.ReLU(inplace=True),
        *_convolution(width, width * _EXPANSION, 1),
    )


def _convolution(
    channels_in: int, channels_out: int, kernel_size: int, stride: int = 1
) -> tuple[nn.Conv2d, nn.BatchNorm2d]:
    convolution = nn.Conv2d(
        channels_in,
        channels_out,
        kernel_size,
        stride=stride,
        padding=kernel_size // 2,
        bias=False,
    )
    return convolution, nn.BatchNorm2d(channels_out)
