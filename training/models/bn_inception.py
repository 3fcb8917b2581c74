"""BN-Inception: the network that batch normalisation was presented with (arXiv 1502.03167).

Often called Inception-v2; the net that Szegedy et al. (1512.00567) call so is another one, whose
table leaves too much open to be rebuilt.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from training.models.classifier import Classifier
from training.models.initialise import he_normal


class Widths(NamedTuple):
    """Channels of a module (figure 5 of the paper); `pool` 0 passes the pooled maps on as they are.

    Where `one` is 0 there is no 1x1 branch, and the module halves the picture.
    """

    one: int
    reduce_three: int
    three: int
    reduce_double: int
    double: int
    pool: int
    is_max: bool = False


_MODULES = {
    "3a": Widths(64, 64, 64, 64, 96, 32),
    "3b": Widths(64, 64, 96, 64, 96, 64),
    "3c": Widths(0, 128, 160, 64, 96, 0, is_max=True),
    "4a": Widths(224, 64, 96, 96, 128, 128),
    "4b": Widths(192, 96, 128, 96, 128, 128),
    "4c": Widths(160, 128, 160, 128, 160, 96),
    "4d": Widths(96, 128, 192, 160, 192, 96),
    "4e": Widths(0, 128, 192, 192, 256, 0, is_max=True),
    "5a": Widths(352, 192, 320, 160, 224, 128),
    "5b": Widths(352, 192, 320, 192, 224, 128, is_max=True),
}


class BNInception(Classifier):
    """11,194,984 parameters, 2.02 G multiply-adds at 224."""

    def __init__(self, classes: int, channels: int = 3) -> None:
        super().__init__(channels)
        self.stem = nn.Sequential(
            *_convolution(channels, 64, 7, stride=2),
            nn.MaxPool2d(kernel_size=3, stride=2, ceil_mode=True),
            *_convolution(64, 64, 1),
            *_convolution(64, 192, 3),
            nn.MaxPool2d(kernel_size=3, stride=2, ceil_mode=True),
        )
        self.inceptions = nn.Sequential()
        width = 192
        for widths in _MODULES.values():
            self.inceptions.append(Inception(width, widths))
            passed = widths.pool if widths.pool else width
            width = widths.one + widths.three + widths.double + passed
        self.head = nn.Linear(width, classes)
        he_normal(self)

    def embed(self, images: Tensor) -> Tensor:
        """Return the averaged maps [N, 1024] of images of any size."""
        maps: Tensor = self.inceptions(self.stem(images))
        return maps.mean(dim=(2, 3))


class Inception(nn.Module):
    """1x1, 3x3, twice 3x3 and a pooling side by side. [N, in, H, W] -> [N, sum, H', W']."""

    def __init__(self, channels: int, widths: Widths) -> None:
        super().__init__()
        stride = 1 if widths.one else 2
        branches = [nn.Sequential(*_convolution(channels, widths.one, 1))] if widths.one else []
        branches.append(
            nn.Sequential(
                *_convolution(channels, widths.reduce_three, 1),
                *_convolution(widths.reduce_three, widths.three, 3, stride),
            )
        )
        branches.append(
            nn.Sequential(
                *_convolution(channels, widths.reduce_double, 1),
                *_convolution(widths.reduce_double, widths.double, 3),
                *_convolution(widths.double, widths.double, 3, stride),
            )
        )
        pool = nn.MaxPool2d if widths.is_max else nn.AvgPool2d
        project = _convolution(channels, widths.pool, 1) if widths.pool else ()
        branches.append(nn.Sequential(pool(3, stride=stride, padding=1), *project))
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        """Return the branches' maps, one after the other."""
        return torch.cat([branch(x) for branch in self.branches], dim=1)


def _convolution(
    channels_in: int, channels_out: int, kernel_size: int, stride: int = 1
) -> tuple[nn.Conv2d, nn.BatchNorm2d, nn.ReLU]:
    convolution = nn.Conv2d(
        channels_in,
        channels_out,
        kernel_size,
        stride=stride,
        padding=kernel_size // 2,
        bias=False,
    )
    return convolution, nn.BatchNorm2d(channels_out), nn.ReLU(inplace=True)
