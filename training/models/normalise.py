"""The first step of every graph: pixels as they are served -> what a network is trained on."""

import torch
from torch import Tensor, nn

from service.bundle.manifest import Normalisation


class Normalise(nn.Module):
    """`(x - 255 mean) / (255 std)` and NHWC -> NCHW; in training and in the exported graph."""

    def __init__(self, normalisation: Normalisation) -> None:
        super().__init__()
        self.register_buffer("offset", torch.tensor(normalisation.mean) * 255, persistent=False)
        self.register_buffer(
            "factor", 1 / (torch.tensor(normalisation.std) * 255), persistent=False
        )
        self.offset: Tensor
        self.factor: Tensor

    def forward(self, views: Tensor) -> Tensor:
        """Return float32 [N, 3, H, W], channels last in memory, of uint8 [N, H, W, 3]."""
        return ((views.float() - self.offset) * self.factor).permute(0, 3, 1, 2)
