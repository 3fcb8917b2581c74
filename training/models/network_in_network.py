"""Network in Network: 1x1 convolutions after each wide one, no hidden layer (arXiv 1312.4400)."""

from itertools import pairwise

from torch import Tensor, nn

from training.models.classifier import Classifier
from training.models.initialise import gaussian


class NetworkInNetwork(Classifier):
    """Its classifier is a convolution, whose maps are averaged.

    Args:
        classes: number of outputs.
        channels: of the images.
        is_for_imagenet: the authors' net for 224 pixels, four blocks (7,595,176 parameters, 0.97 G
            multiply-adds; Caffe rounds the size of a pooled picture up, which makes it 1.10 G).
            Else the one for CIFAR-10, three blocks (966,986 at 10 classes, 222 M at 32).
        dropout: between blocks.
    """

    def __init__(
        self,
        classes: int,
        channels: int = 3,
        is_for_imagenet: bool = False,
        dropout: float = 0.5,
    ) -> None:
        super().__init__(channels)
        if is_for_imagenet:
            blocks = _imagenet_blocks(channels, dropout)
            last = 1024
        else:
            blocks = _cifar_blocks(channels, dropout)
            last = 192
        self.features = nn.Sequential(*blocks)
        self.classifier = _convolution(last, classes)
        # The deviation of the authors' configuration files.
        gaussian(self, std=0.05)

    def forward_with_embedding(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits [N, C] and the averaged maps [N, D] below the classifier."""
        maps = self.features(self.seen(images))
        return self.classifier(maps).mean(dim=(2, 3)), maps.mean(dim=(2, 3))


def _imagenet_blocks(channels: int, dropout: float) -> list[nn.Module]:
    return [
        *_block(channels, (96, 96, 96), kernel_size=11, stride=4),
        nn.MaxPool2d(kernel_size=3, stride=2),
        *_block(96, (256, 256, 256), kernel_size=5, padding=2),
        nn.MaxPool2d(kernel_size=3, stride=2),
        *_block(256, (384, 384, 384), kernel_size=3, padding=1),
        nn.MaxPool2d(kernel_size=3, stride=2),
        nn.Dropout(dropout),
        *_block(384, (1024, 1024), kernel_size=3, padding=1),
    ]


def _cifar_blocks(channels: int, dropout: float) -> list[nn.Module]:
    return [
        *_block(channels, (192, 160, 96), kernel_size=5, padding=2),
        nn.MaxPool2d(kernel_size=3, stride=2, ceil_mode=True),
        nn.Dropout(dropout),
        *_block(96, (192, 192, 192), kernel_size=5, padding=2),
        nn.AvgPool2d(kernel_size=3, stride=2, ceil_mode=True),
        nn.Dropout(dropout),
        *_block(192, (192, 192), kernel_size=3, padding=1),
    ]


def _block(
    channels: int, widths: tuple[int, ...], kernel_size: int, stride: int = 1, padding: int = 0
) -> list[nn.Module]:
    wide = nn.Conv2d(channels, widths[0], kernel_size, stride=stride, padding=padding)
    layers: list[nn.Module] = [wide, nn.ReLU(inplace=True)]
    for before, after in pairwise(widths):
        layers.append(_convolution(before, after))
    return layers


def _convolution(channels_in: int, channels_out: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(channels_in, channels_out, 1), nn.ReLU(inplace=True))
