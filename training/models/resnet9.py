"""ResNet-9: few layers, two of them residual, that learn CIFAR-10 in minutes on a GPU.

Written from David Page's "How to train your ResNet" (myrtle.ai, 2018). 6,573,120 parameters at 10
classes, 379 million multiply-adds at 32x32.
"""

from torch import Tensor, nn

from training.models.classifier import Classifier

# Keeps early logits small, which the high learning rate needs.
_LOGIT_SCALE = 0.125


class ResNet9(Classifier):
    """Four convolutions, three of which halve the picture, and two residual blocks.

    Args:
        classes: number of outputs.
        channels: of the images.
        width: maps of the first convolution; each further one has twice as many.
    """

    def __init__(self, classes: int, channels: int = 3, width: int = 64) -> None:
        super().__init__(channels)
        self.features = nn.Sequential(
            _convolution(channels, width),
            _convolution(width, 2 * width, is_halved=True),
            Residual(2 * width),
            _convolution(2 * width, 4 * width, is_halved=True),
            _convolution(4 * width, 8 * width, is_halved=True),
            Residual(8 * width),
        )
        self.head = nn.Linear(8 * width, classes, bias=False)

    def embed(self, images: Tensor) -> Tensor:
        """Return the largest of each map, scaled, [N, D], of images of any size from 8 on."""
        maps: Tensor = self.features(images)
        return maps.amax(dim=(2, 3)) * _LOGIT_SCALE


class Residual(nn.Module):
    """x + body(x), where the body ends with a ReLU. [N, C, H, W] -> [N, C, H, W]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            _convolution(channels, channels), _convolution(channels, channels)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return float [N, C, H, W]."""
        found: Tensor = x + self.body(x)
        return found


def _convolution(channels_in: int, channels_out: int, *, is_halved: bool = False) -> nn.Sequential:
    layers = nn.Sequential(
        nn.Conv2d(channels_in, channels_out, kernel_size=3, padding=1, bias=False),
        nn.BatchNorm2d(channels_out),
        nn.ReLU(inplace=True),
    )
    if is_halved:
        layers.append(nn.MaxPool2d(2))
    return layers
