"""Locally connected layers: windows as in a convolution, but other weights at every place.

Where each place of the picture means something of its own, as in aligned faces, shared weights are
no gain. The network is Krizhevsky's for CIFAR-10 (cuda-convnet, `layers-conv-local-11pct`).
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from training.models.classifier import Classifier
from training.models.initialise import he_normal

_LAST_SIDE = 6


class LocallyConnected2d(nn.Module):
    """A convolution whose weights are not shared. [N, in, H, W] -> [N, out, H', W'].

    Args:
        channels_in: of the maps it is given.
        channels_out: of the maps it makes.
        size: H and W, which its weights are bound to.
        kernel_size: side of a window.
        stride: pixels from one window to the next.
        padding: zeros on every side.
        has_bias: one a place and output channel.
    """

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        size: tuple[int, int],
        kernel_size: int,
        stride: int = 1,
        padding: int = 0,
        has_bias: bool = True,
    ) -> None:
        super().__init__()
        self.kernel_size, self.stride, self.padding = kernel_size, stride, padding
        height, width = ((side + 2 * padding - kernel_size) // stride + 1 for side in size)
        self.out_size = (height, width)
        places, fan_in = height * width, channels_in * kernel_size**2
        self.weight = nn.Parameter(torch.empty(places, channels_out, fan_in))
        nn.init.normal_(self.weight, std=math.sqrt(2 / fan_in))
        self.bias = nn.Parameter(torch.zeros(channels_out, places)) if has_bias else None

    def forward(self, x: Tensor) -> Tensor:
        """Return float [N, out, H', W']."""
        windows = functional.unfold(
            x, self.kernel_size, padding=self.padding, stride=self.stride
        )  # [N, fan_in, places]
        y: Tensor = torch.matmul(self.weight, windows.permute(2, 1, 0)).permute(2, 1, 0)
        if self.bias is not None:
            y = y + self.bias
        return y.reshape(-1, y.shape[1], *self.out_size)


class ConvLocalNet(Classifier):
    """Two convolutions, two locally connected layers, a linear classifier, for about 24 pixels.

    2,112,970 parameters at 10 classes, 19.5 million multiply-adds at 24; pictures of other sizes
    are averaged to 6x6 before the local layers.
    """

    def __init__(self, classes: int, channels: int = 3) -> None:
        super().__init__(channels)
        self.features = nn.Sequential(
            nn.Conv2d(channels, 64, kernel_size=5, padding=2),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(kernel_size=3, stride=2, padding=1),
            _response_norm(),
            nn.Conv2d(64, 64, kernel_size=5, padding=2),
            nn.ReLU(inplace=True),
            _response_norm(),
            nn.MaxPool2d(kernel_size=3, stride=2, padding=1),
            nn.AdaptiveAvgPool2d(_LAST_SIDE),
        )
        size = (_LAST_SIDE, _LAST_SIDE)
        self.local = nn.Sequential(
            LocallyConnected2d(64, 64, size, kernel_size=3, padding=1),
            nn.ReLU(inplace=True),
            LocallyConnected2d(64, 32, size, kernel_size=3, padding=1),
            nn.ReLU(inplace=True),
            nn.Flatten(),
        )
        self.head = nn.Linear(32 * _LAST_SIDE**2, classes)
        # Not the authors' deviations, which are for pixels of 0 to 255.
        he_normal(self)

    def embed(self, images: Tensor) -> Tensor:
        """Return the second local layer [N, 1152] of images of any size."""
        embedding: Tensor = self.local(self.features(images))
        return embedding


def _response_norm() -> nn.LocalResponseNorm:
    return nn.LocalResponseNorm(size=9, alpha=0.001, beta=0.75, k=1.0)
