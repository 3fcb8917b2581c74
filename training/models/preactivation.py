"""Residual nets for CIFAR that normalise before they convolve: pre-activation and wide ResNets.

Pre-activation: He et al., "Identity Mappings in Deep Residual Networks", arXiv 1603.05027, with
bottlenecks. Wide: Zagoruyko and Komodakis, arXiv 1605.07146, with two 3x3 convolutions. Those for
ImageNet are `timm:resnetv2_*`, and `torchvision:wide_resnet50_2` and `_101_2`.
"""

from functools import partial

from torch import Tensor, nn
from torch.nn import functional

from training.models.classifier import Classifier
from training.models.initialise import he_normal

_STEM = 16
_EXPANSION = 4


class PreactivationNet(Classifier):
    """Three stages of blocks, of which the first in each projects its normalised input.

    Args:
        classes: number of outputs.
        channels: of the images.
        blocks: a stage.
        width: of the first stage; the others have twice and four times as much.
        is_bottleneck: 1x1, 3x3, 1x1 with four times the width outside; else two of 3x3.
        dropout: between the two convolutions of a block that is no bottleneck.
    """

    def __init__(
        self,
        classes: int,
        channels: int,
        blocks: int,
        width: int,
        is_bottleneck: bool,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(channels)
        self.stem = nn.Conv2d(channels, _STEM, kernel_size=3, padding=1, bias=False)
        self.stages = nn.Sequential()
        before = _STEM
        for stage in range(3):
            inner = width * 2**stage
            after = inner * _EXPANSION if is_bottleneck else inner
            for block in range(blocks):
                stride = 2 if stage > 0 and block == 0 else 1
                body = (
                    _bottleneck(before, inner, stride)
                    if is_bottleneck
                    else _wide(before, inner, stride, dropout)
                )
                is_projected = block == 0 and (before != after or stride != 1)
                self.stages.append(
                    PreactivationBlock(body, before, after, stride if is_projected else None)
                )
                before = after
        self.norm = nn.BatchNorm2d(before)
        self.head = nn.Linear(before, classes)
        he_normal(self)

    def embed(self, images: Tensor) -> Tensor:
        """Return the averaged maps [N, D] of images of any size."""
        maps = functional.relu(self.norm(self.stages(self.stem(images))))
        return maps.mean(dim=(2, 3))


class PreactivationBlock(nn.Module):
    """x + body(ReLU(norm(x))); where the shape changes, the normalised x is projected instead."""

    def __init__(
        self, body: nn.Sequential, channels_in: int, channels_out: int, stride: int | None
    ) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels_in)
        self.body = body
        self.projection = (
            None
            if stride is None
            else nn.Conv2d(channels_in, channels_out, kernel_size=1, stride=stride, bias=False)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return float [N, out, H/stride, W/stride]."""
        active = functional.relu(self.norm(x))
        carried: Tensor = x if self.projection is None else self.projection(active)
        found: Tensor = carried + self.body(active)
        return found


def preactivation_resnet(
    classes: int, depth: int, channels: int = 3, width: int = 16
) -> PreactivationNet:
    """Return the net of `depth` = 9n + 2 layers."""
    if depth < 11 or depth % 9 != 2:
        raise ValueError(f"depth must be 9n + 2, got {depth}")
    return PreactivationNet(classes, channels, (depth - 2) // 9, width, is_bottleneck=True)


def wide_resnet(
    classes: int, depth: int, width: int, channels: int = 3, dropout: float = 0.0
) -> PreactivationNet:
    """Return WRN-`depth`-`width` of `depth` = 6n + 4 layers, `width` times as wide as a ResNet."""
    if depth < 10 or depth % 6 != 4:
        raise ValueError(f"depth must be 6n + 4, got {depth}")
    return PreactivationNet(classes, channels, (depth - 4) // 6, _STEM * width, False, dropout)


PREACTIVATION_NETS = {
    **{
        f"cifar_preresnet{depth}": partial(preactivation_resnet, depth=depth)
        for depth in (110, 164, 1001)
    },
    **{
        f"wrn{depth}_{width}": partial(wide_resnet, depth=depth, width=width)
        for depth, width in ((16, 4), (16, 8), (22, 8), (28, 10), (40, 4))
    },
}


def _bottleneck(channels: int, width: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, width, kernel_size=1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(inplace=True),
        nn.Conv2d(width, width, kernel_size=3, stride=stride, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(inplace=True),
        nn.Conv2d(width, width * _EXPANSION, kernel_size=1, bias=False),
    )


def _wide(channels: int, width: int, stride: int, dropout: float) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, width, kernel_size=3, stride=stride, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(inplace=True),
        nn.Dropout(dropout),
        nn.Conv2d(width, width, kernel_size=3, padding=1, bias=False),
    )
