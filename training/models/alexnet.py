"""AlexNet (Krizhevsky, Sutskever and Hinton, NIPS 2012) and its successor ZFNet.

ZFNet is Zeiler and Fergus, arXiv 1311.2901, figure 3; the wide variant is the last row of table 3.
The AlexNet that came later, on one GPU and without normalisation (arXiv 1404.5997), is
`torchvision:alexnet`.
"""

import torch
from torch import Tensor, nn

from training.models.classifier import Classifier
from training.models.initialise import gaussian

_FC = 4096
_LAST_SIDE = 6


class AlexNet2012(Classifier):
    """Two towers of halved convolutions that meet in the third; 60,965,224 parameters.

    724 million multiply-adds at 224. The towers stood for two GPUs; here they are two groups.

    Args:
        classes: number of outputs.
        channels: of the images.
        towers: 1 joins them: 62,378,344 parameters, 1.135 G multiply-adds.
        dropout: before both hidden layers.
    """

    def __init__(
        self, classes: int, channels: int = 3, towers: int = 2, dropout: float = 0.5
    ) -> None:
        super().__init__(channels)
        self.features = nn.Sequential(
            nn.Conv2d(channels, 96, kernel_size=11, stride=4, padding=2),
            nn.ReLU(inplace=True),
            _response_norm(),
            nn.MaxPool2d(kernel_size=3, stride=2),
            nn.Conv2d(96, 256, kernel_size=5, padding=2, groups=towers),
            nn.ReLU(inplace=True),
            _response_norm(),
            nn.MaxPool2d(kernel_size=3, stride=2),
            nn.Conv2d(256, 384, kernel_size=3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(384, 384, kernel_size=3, padding=1, groups=towers),
            nn.ReLU(inplace=True),
            nn.Conv2d(384, 256, kernel_size=3, padding=1, groups=towers),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(kernel_size=3, stride=2),
            nn.AdaptiveAvgPool2d(_LAST_SIDE),
        )
        self.hidden = _hidden(256, dropout)
        self.head = nn.Linear(_FC, classes)
        gaussian(self, std=0.01)
        # Section 5: ones in the second, fourth and fifth convolution and the hidden layers, so that
        # ReLUs start alive.
        convolutions = [layer for layer in self.features if isinstance(layer, nn.Conv2d)]
        hidden = [layer for layer in self.hidden if isinstance(layer, nn.Linear)]
        for layer in (convolutions[1], convolutions[3], convolutions[4], *hidden):
            nn.init.ones_(torch.as_tensor(layer.bias))

    def embed(self, images: Tensor) -> Tensor:
        """Return the second hidden layer [N, 4096] of images of 63 pixels or more a side."""
        embedding: Tensor = self.hidden(self.features(images))
        return embedding


class ZFNet(Classifier):
    """AlexNet with a finer start: 7x7 by 2, then 5x5 by 2; 62,357,608 parameters.

    1.17 G multiply-adds at 224.

    Args:
        classes: number of outputs.
        channels: of the images.
        is_wide: 512, 1024 and 512 filters in the last convolutions in place of 384, 384 and 256:
            107,627,624 parameters, 2.48 G multiply-adds.
        dropout: before both hidden layers.
    """

    def __init__(
        self, classes: int, channels: int = 3, is_wide: bool = False, dropout: float = 0.5
    ) -> None:
        super().__init__(channels)
        third, fourth, fifth = (512, 1024, 512) if is_wide else (384, 384, 256)
        self.features = nn.Sequential(
            nn.Conv2d(channels, 96, kernel_size=7, stride=2, padding=1),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(kernel_size=3, stride=2, ceil_mode=True),
            _response_norm(),
            nn.Conv2d(96, 256, kernel_size=5, stride=2),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(kernel_size=3, stride=2, ceil_mode=True),
            _response_norm(),
            nn.Conv2d(256, third, kernel_size=3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(third, fourth, kernel_size=3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(fourth, fifth, kernel_size=3, padding=1),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(kernel_size=3, stride=2),
            nn.AdaptiveAvgPool2d(_LAST_SIDE),
        )
        self.hidden = _hidden(fifth, dropout)
        self.head = nn.Linear(_FC, classes)
        gaussian(self, std=0.01)

    def embed(self, images: Tensor) -> Tensor:
        """Return the second hidden layer [N, 4096] of images of 63 pixels or more a side."""
        embedding: Tensor = self.hidden(self.features(images))
        return embedding


def _response_norm() -> nn.LocalResponseNorm:
    # The paper's alpha of 1e-4 multiplies a sum over 5 channels, PyTorch's a mean.
    return nn.LocalResponseNorm(size=5, alpha=5 * 1e-4, beta=0.75, k=2.0)


def _hidden(channels: int, dropout: float) -> nn.Sequential:
    return nn.Sequential(
        nn.Flatten(),
        nn.Dropout(dropout),
        nn.Linear(channels * _LAST_SIDE**2, _FC),
        nn.ReLU(inplace=True),
        nn.Dropout(dropout),
        nn.Linear(_FC, _FC),
        nn.ReLU(inplace=True),
    )
