"""DenseNet-BC for CIFAR: every layer sees all maps before it (Huang et al., arXiv 1608.06993).

Those for ImageNet are `torchvision:densenet121` and its sisters.
"""

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from training.models.classifier import Classifier
from training.models.initialise import he_normal


class DenseNetBC(Classifier):
    """Three dense blocks with bottlenecks, joined by halving transitions.

    `depth` 100 and `growth` 12: 769,162 parameters at 10 classes, 288 million multiply-adds at 32.

    Args:
        classes: number of outputs.
        depth: 6n + 4, layers with weights.
        growth: maps that a layer adds.
        channels: of the images.
        compression: share of the maps that a transition keeps.
        dropout: after each convolution of a block.
    """

    def __init__(
        self,
        classes: int,
        depth: int = 100,
        growth: int = 12,
        channels: int = 3,
        compression: float = 0.5,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(channels)
        if depth < 10 or depth % 6 != 4:
            raise ValueError(f"depth must be 6n + 4, got {depth}")
        width = 2 * growth
        self.stem = nn.Conv2d(channels, width, kernel_size=3, padding=1, bias=False)
        self.blocks = nn.Sequential()
        for block in range(3):
            for _ in range((depth - 4) // 6):
                self.blocks.append(DenseLayer(width, growth, dropout))
                width += growth
            if block < 2:
                kept = int(width * compression)
                self.blocks.append(_transition(width, kept))
                width = kept
        self.norm = nn.BatchNorm2d(width)
        self.head = nn.Linear(width, classes)
        he_normal(self)

    def embed(self, images: Tensor) -> Tensor:
        """Return the averaged maps [N, D] of images of 4 pixels or more a side."""
        maps = functional.relu(self.norm(self.blocks(self.stem(images))))
        return maps.mean(dim=(2, 3))


class DenseLayer(nn.Module):
    """Adds `growth` maps to those it is given. [N, in, H, W] -> [N, in + growth, H, W]."""

    def __init__(self, channels: int, growth: int, dropout: float) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, 4 * growth, kernel_size=1, bias=False),
            nn.Dropout(dropout),
            nn.BatchNorm2d(4 * growth),
            nn.ReLU(inplace=True),
            nn.Conv2d(4 * growth, growth, kernel_size=3, padding=1, bias=False),
            nn.Dropout(dropout),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return float [N, in + growth, H, W]."""
        return torch.cat((x, self.body(x)), dim=1)


def _transition(channels_in: int, channels_out: int) -> nn.Sequential:
    return nn.Sequential(
        nn.BatchNorm2d(channels_in),
        nn.ReLU(inplace=True),
        nn.Conv2d(channels_in, channels_out, kernel_size=1, bias=False),
        nn.AvgPool2d(2),
    )


DENSENETS = {
    f"cifar_densenet_bc{depth}_{growth}": partial(DenseNetBC, depth=depth, growth=growth)
    for depth, growth in ((100, 12), (190, 40), (250, 24))
}
