"""The bipyramidal net of introductory courses: each block halves the picture, doubles the maps."""

from itertools import pairwise

from torch import Tensor, nn

from training.models.classifier import Classifier
from training.models.initialise import he_normal

_WIDTHS = (32, 64, 128, 256)
_LAST_SIDE = 8


class Bipyramid(Classifier):
    """3x3 convolution, ReLU and 2x2 max-pool four times, a hidden layer, a linear classifier.

    4,609,190 parameters at 102 classes, 245 million multiply-adds at 128 pixels; pictures of other
    sizes are averaged to 8x8 before the hidden layer.

    Args:
        classes: number of outputs.
        channels: of the images.
        hidden: units of the hidden layer.
        has_norm: batch normalisation after each convolution.
        dropout: on the hidden layer.
    """

    def __init__(
        self,
        classes: int,
        channels: int = 3,
        hidden: int = 256,
        has_norm: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(channels)
        layers: list[nn.Module] = []
        for before, after in pairwise((channels, *_WIDTHS)):
            layers.append(nn.Conv2d(before, after, kernel_size=3, padding=1, bias=not has_norm))
            layers.extend([nn.BatchNorm2d(after)] if has_norm else [])
            layers.extend([nn.ReLU(inplace=True), nn.MaxPool2d(2)])
        self.features = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(_LAST_SIDE), nn.Flatten())
        self.hidden = nn.Sequential(
            nn.Linear(_WIDTHS[-1] * _LAST_SIDE**2, hidden), nn.ReLU(inplace=True)
        )
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(hidden, classes)
        he_normal(self)

    def embed(self, images: Tensor) -> Tensor:
        """Return the hidden layer [N, hidden] of images of 16 pixels or more a side."""
        embedding: Tensor = self.dropout(self.hidden(self.features(images)))
        return embedding
