"""SqueezeNet 1.1 with torchvision's state-dict names, its first convolution's padding pinned to 0.

The authors' weights were trained without that padding; copies of the net that pad by 1 load them
without complaint and lose accuracy. From Iandola et al., arXiv 1602.07360, and version 1.1 of
github.com/forresti/SqueezeNet.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

_LAST_CHANNELS = 512
_CLASSIFIERS = ("convolution", "linear")


class SqueezeNet11(nn.Module):
    """1,235,496 parameters at 1,000 classes.

    Args:
        classes: number of outputs.
        dropout: before the classifier.
        classifier: "convolution", then ReLU and an average, as published; "linear" reads the
            averaged maps, for transfer: features can be cached then, and logits may be negative.
    """

    def __init__(self, classes: int, dropout: float = 0.5, classifier: str = "convolution") -> None:
        super().__init__()
        if classifier not in _CLASSIFIERS:
            raise ValueError(f"classifier must be {' or '.join(_CLASSIFIERS)}, got {classifier}")
        # Positions in these sequences are names in weight files; layers without weights count too.
        self.features = nn.Sequential(
            nn.Conv2d(3, 64, kernel_size=3, stride=2, padding=0),
            nn.ReLU(),
            _pool(),
            Fire(64, 16, 64),
            Fire(128, 16, 64),
            _pool(),
            Fire(128, 32, 128),
            Fire(256, 32, 128),
            _pool(),
            Fire(256, 48, 192),
            Fire(384, 48, 192),
            Fire(384, 64, 256),
            Fire(512, 64, 256),
        )
        if classifier == "linear":
            self.dropout = nn.Dropout(dropout)
            self.head = nn.Linear(_LAST_CHANNELS, classes)
            nn.init.normal_(self.head.weight, std=0.01)
            nn.init.zeros_(self.head.bias)
            return
        last = nn.Conv2d(_LAST_CHANNELS, classes, kernel_size=1)
        nn.init.normal_(last.weight, std=0.01)
        self.classifier = nn.Sequential(nn.Dropout(dropout), last, nn.ReLU())

    def forward(self, images: Tensor) -> Tensor:
        """Return logits [N, C] of normalised images, float [N, 3, H, W]."""
        return self.forward_with_embedding(images)[0]

    def forward_with_embedding(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits [N, C] and the averaged feature maps [N, 512] below the classifier."""
        maps = self.features(images)
        if hasattr(self, "head"):
            embedding = maps.mean(dim=(2, 3))
            return self.head(self.dropout(embedding)), embedding
        return self.classifier(maps).mean(dim=(2, 3)), maps.mean(dim=(2, 3))


class Fire(nn.Module):
    """Squeeze to few channels, then expand by 1x1 and 3x3 side by side: out = 2 x expand."""

    def __init__(self, channels_in: int, squeeze: int, expand: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(channels_in, squeeze, kernel_size=1)
        self.expand1x1 = nn.Conv2d(squeeze, expand, kernel_size=1)
        self.expand3x3 = nn.Conv2d(squeeze, expand, kernel_size=3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Return float [N, 2 x expand, H, W]."""
        x = functional.relu(self.squeeze(x))
        return torch.cat(
            (functional.relu(self.expand1x1(x)), functional.relu(self.expand3x3(x))), dim=1
        )


def _pool() -> nn.MaxPool2d:
    # Caffe rounds the size of a pooled picture up.
    return nn.MaxPool2d(kernel_size=3, stride=2, ceil_mode=True)
