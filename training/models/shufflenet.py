"""ShuffleNet version 1: grouped 1x1 convolutions with a shuffle of channels between (1707.01083).

Version 2 is `torchvision:shufflenet_v2_x1_0` and its sisters.
"""

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from training.models.classifier import Classifier
from training.models.initialise import he_normal

# Width of the second stage by the number of groups (table 1), and units a stage.
_WIDTHS = {1: 144, 2: 200, 3: 240, 4: 272, 8: 384}
_UNITS = (4, 8, 4)
_STEM = 24


class ShuffleNetV1(Classifier):
    """With 3 groups: 1,865,728 parameters at width 1 (137 M multiply-adds at 224), 5,448,208 at 2.

    Args:
        classes: number of outputs.
        channels: of the images.
        groups: of the 1x1 convolutions: 1, 2, 3, 4 or 8.
        width: factor of all widths; the paper has 0.25, 0.5, 1, 1.5 and 2.
    """

    def __init__(
        self, classes: int, channels: int = 3, groups: int = 3, width: float = 1.0
    ) -> None:
        super().__init__(channels)
        if groups not in _WIDTHS:
            raise ValueError(f"groups must be one of {', '.join(map(str, _WIDTHS))}, got {groups}")
        self.stem = nn.Sequential(
            nn.Conv2d(channels, _STEM, kernel_size=3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(_STEM),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(kernel_size=3, stride=2, padding=1),
        )
        self.units = nn.Sequential()
        before = _STEM
        for stage, count in enumerate(_UNITS):
            after = int(_WIDTHS[groups] * width) * 2**stage
            for unit in range(count):
                # The very first has too few channels for groups (section 3.3).
                first = 1 if stage == unit == 0 else groups
                self.units.append(ShuffleUnit(before, after, groups, first, 1 if unit else 2))
                before = after
        self.head = nn.Linear(before, classes)
        he_normal(self)

    def embed(self, images: Tensor) -> Tensor:
        """Return the averaged maps [N, D] of images of any size."""
        maps: Tensor = self.units(self.stem(images))
        return maps.mean(dim=(2, 3))


class ShuffleUnit(nn.Module):
    """A bottleneck with a depthwise 3x3; with stride 2 its input, averaged, is put beside it."""

    def __init__(
        self, channels_in: int, channels_out: int, groups: int, first_groups: int, stride: int
    ) -> None:
        super().__init__()
        self.groups = groups
        self.stride = stride
        inner = channels_out // 4
        made = channels_out - channels_in if stride == 2 else channels_out
        self.squeeze = nn.Sequential(
            nn.Conv2d(channels_in, inner, kernel_size=1, groups=first_groups, bias=False),
            nn.BatchNorm2d(inner),
            nn.ReLU(inplace=True),
        )
        self.expand = nn.Sequential(
            nn.Conv2d(inner, inner, 3, stride=stride, padding=1, groups=inner, bias=False),
            nn.BatchNorm2d(inner),
            nn.Conv2d(inner, made, kernel_size=1, groups=groups, bias=False),
            nn.BatchNorm2d(made),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return float [N, out, H/stride, W/stride]."""
        y = self.expand(functional.channel_shuffle(self.squeeze(x), self.groups))
        if self.stride == 1:
            return functional.relu(x + y)
        carried = functional.avg_pool2d(x, kernel_size=3, stride=2, padding=1)
        return functional.relu(torch.cat((carried, y), dim=1))


SHUFFLENETS = {
    f"shufflenet_v1_x{str(width).replace('.', '_')}": partial(ShuffleNetV1, width=width)
    for width in (0.5, 1.0, 1.5, 2.0)
}
