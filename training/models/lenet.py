"""LeNet-5 as it is lectured: full connections in C3, plain average pooling, tanh.

61,706 parameters at 10 classes (often misprinted as 59,706). The paper of 1998 (LeCun et al.,
section II) has trainable subsampling, a partial C3 and RBF outputs: 60,000 parameters.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional


class LeNet5(nn.Module):
    """Five layers with weights, for 32x32 images.

    Args:
        classes: number of outputs.
        channels: 1 for the lectured net, which sees the mean of the three channels, or 3 (62,006
            parameters at 10 classes).
    """

    def __init__(self, classes: int, channels: int = 1) -> None:
        super().__init__()
        if channels not in (1, 3):
            raise ValueError(f"channels must be 1 or 3, got {channels}")
        self.channels = channels
        self.c1 = nn.Conv2d(channels, 6, kernel_size=5)
        self.c3 = nn.Conv2d(6, 16, kernel_size=5)
        self.c5 = nn.Linear(16 * 5 * 5, 120)
        self.f6 = nn.Linear(120, 84)
        self.head = nn.Linear(84, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits [N, C] of normalised images, float [N, 3, 32, 32]."""
        return self.forward_with_embedding(images)[0]

    def forward_with_embedding(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits [N, C] and F6's outputs [N, 84] that they are read from."""
        if self.channels == 1:
            images = images.mean(dim=1, keepdim=True)
        x = functional.avg_pool2d(torch.tanh(self.c1(images)), 2)
        x = functional.avg_pool2d(torch.tanh(self.c3(x)), 2)
        embedding = torch.tanh(self.f6(torch.tanh(self.c5(x.flatten(1)))))
        return self.head(embedding), embedding
