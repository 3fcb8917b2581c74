"""GoogLeNet as it won ILSVRC 2014 (Szegedy et al., "Going Deeper with Convolutions", 1409.4842).

5x5 convolutions, biases, response normalisation and two auxiliary classifiers. The form with batch
normalisation and 3x3 in place of 5x5 is `torchvision:googlenet`. What the paper leaves open is as
in the reproduction by the Berkeley Vision and Learning Center (`bvlc_googlenet`): the constants of
the normalisation, Xavier's weights, biases of 0.2.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from training.models.classifier import Classifier
from training.models.initialise import xavier_uniform


class Widths(NamedTuple):
    """Channels of a module: 1x1; 3x3 and 5x5 with their reductions; after the pooling."""

    one: int
    reduce_three: int
    three: int
    reduce_five: int
    five: int
    pool: int


# Table 1 of the paper, 3a to 5b; pictures are halved before 4a and 5a.
_MODULES = {
    "3a": Widths(64, 96, 128, 16, 32, 32),
    "3b": Widths(128, 128, 192, 32, 96, 64),
    "4a": Widths(192, 96, 208, 16, 48, 64),
    "4b": Widths(160, 112, 224, 24, 64, 64),
    "4c": Widths(128, 128, 256, 24, 64, 64),
    "4d": Widths(112, 144, 288, 32, 64, 64),
    "4e": Widths(256, 160, 320, 32, 128, 128),
    "5a": Widths(256, 160, 320, 32, 128, 128),
    "5b": Widths(384, 192, 384, 48, 128, 128),
}
_AUXILIARY_AFTER = ("4a", "4d")


class GoogLeNet2014(Classifier):
    """6,998,552 parameters, 13,378,280 with the auxiliary classifiers; 1.58 G multiply-adds at 224.

    Args:
        classes: number of outputs.
        channels: of the images.
        has_auxiliary: two more classifiers in the middle, whose losses count 0.3 while training.
        dropout: before the classifier; the auxiliary ones have the paper's 0.7.
    """

    auxiliary_weight = 0.3

    def __init__(
        self, classes: int, channels: int = 3, has_auxiliary: bool = True, dropout: float = 0.4
    ) -> None:
        super().__init__(channels)
        self.stem = nn.Sequential(
            *_convolution(channels, 64, 7, stride=2),
            _pool(),
            _response_norm(),
            *_convolution(64, 64, 1),
            *_convolution(64, 192, 3),
            _response_norm(),
            _pool(),
        )
        self.inceptions = nn.ModuleDict()
        self.auxiliary = nn.ModuleDict()
        width = 192
        for name, widths in _MODULES.items():
            self.inceptions[name] = Inception(width, widths)
            width = widths.one + widths.three + widths.five + widths.pool
            if has_auxiliary and name in _AUXILIARY_AFTER:
                self.auxiliary[name] = AuxiliaryHead(width, classes)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(width, classes)
        xavier_uniform(self, bias=0.2)
        nn.init.zeros_(self.head.bias)

    def embed(self, images: Tensor) -> Tensor:
        """Return the averaged maps [N, 1024] of images of 31 pixels or more a side."""
        return self._embed(images)[0]

    def forward_with_auxiliary(self, images: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return logits [N, C] and those of the auxiliary classifiers, the shallower first."""
        embedding, middles = self._embed(self.seen(images))
        heads = self.auxiliary.items()
        return self.head(embedding), tuple(head(middles[name]) for name, head in heads)

    def _embed(self, images: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        x, middles = self.stem(images), {}
        for name, inception in self.inceptions.items():
            if name in ("4a", "5a"):
                x = functional.max_pool2d(x, kernel_size=3, stride=2, ceil_mode=True)
            x = inception(x)
            if name in self.auxiliary:
                middles[name] = x
        return self.dropout(x.mean(dim=(2, 3))), middles


class Inception(nn.Module):
    """Convolutions of three sizes and a pooling side by side. [N, in, H, W] -> [N, sum, H, W]."""

    def __init__(self, channels: int, widths: Widths) -> None:
        super().__init__()
        self.one = nn.Sequential(*_convolution(channels, widths.one, 1))
        self.three = nn.Sequential(
            *_convolution(channels, widths.reduce_three, 1),
            *_convolution(widths.reduce_three, widths.three, 3),
        )
        self.five = nn.Sequential(
            *_convolution(channels, widths.reduce_five, 1),
            *_convolution(widths.reduce_five, widths.five, 5),
        )
        self.pool = nn.Sequential(
            nn.MaxPool2d(kernel_size=3, stride=1, padding=1),
            *_convolution(channels, widths.pool, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return float [N, one + three + five + pool, H, W]."""
        return torch.cat((self.one(x), self.three(x), self.five(x), self.pool(x)), dim=1)


class AuxiliaryHead(nn.Module):
    """A classifier on maps in the middle of the network. [N, in, H, W] -> logits [N, C]."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.reduce = nn.Sequential(*_convolution(channels, 128, 1))
        self.hidden = nn.Linear(128 * 4 * 4, 1024)
        self.dropout = nn.Dropout(0.7)
        self.head = nn.Linear(1024, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits [N, C]."""
        # The paper's pooling, which at 224 pixels leaves 4x4; other pictures are brought to that.
        x = functional.avg_pool2d(x, 5, stride=3) if min(x.shape[2:]) >= 5 else x
        x = self.reduce(functional.adaptive_avg_pool2d(x, 4))
        logits: Tensor = self.head(self.dropout(functional.relu(self.hidden(x.flatten(1)))))
        return logits


def _convolution(
    channels_in: int, channels_out: int, kernel_size: int, stride: int = 1
) -> tuple[nn.Conv2d, nn.ReLU]:
    convolution = nn.Conv2d(
        channels_in, channels_out, kernel_size, stride=stride, padding=kernel_size // 2
    )
    return convolution, nn.ReLU(inplace=True)


def _pool() -> nn.MaxPool2d:
    return nn.MaxPool2d(kernel_size=3, stride=2, ceil_mode=True)


def _response_norm() -> nn.LocalResponseNorm:
    return nn.LocalResponseNorm(size=5, alpha=1e-4, beta=0.75, k=1.0)
