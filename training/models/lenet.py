"""LeNet-5, as it is lectured and as it was published (LeCun et al., Proceedings of the IEEE 1998).

Lectured: full connections in C3, plain average pooling, tanh; 61,706 parameters at 10 classes
(often misprinted as 59,706). Published, section II.B: trainable subsampling, a partial C3, RBF
outputs; 60,000 trainable parameters.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from training.models.classifier import Classifier

# Which maps of S2 each map of C3 sees (table I of the paper): 60 of 96 pairs.
_C3_SEES = (
    *((0, 1, 2), (1, 2, 3), (2, 3, 4), (3, 4, 5), (0, 4, 5), (0, 1, 5)),
    *((0, 1, 2, 3), (1, 2, 3, 4), (2, 3, 4, 5), (0, 3, 4, 5), (0, 1, 4, 5), (0, 1, 2, 5)),
    *((0, 1, 3, 4), (1, 2, 4, 5), (0, 2, 3, 5), (0, 1, 2, 3, 4, 5)),
)
_F6 = 84


class LeNet5(Classifier):
    """Five layers with weights, for 32x32 images; others are brought to 5x5 before C5.

    Args:
        classes: number of outputs.
        channels: 1 for the lectured net, which sees the mean of the three channels, or 3 (62,006
            parameters at 10 classes).
    """

    def __init__(self, classes: int, channels: int = 1) -> None:
        super().__init__(channels)
        self.c1 = nn.Conv2d(channels, 6, kernel_size=5)
        self.c3 = nn.Conv2d(6, 16, kernel_size=5)
        self.c5 = nn.Linear(16 * 5 * 5, 120)
        self.f6 = nn.Linear(120, _F6)
        self.head = nn.Linear(_F6, classes)

    def embed(self, images: Tensor) -> Tensor:
        """Return F6's outputs [N, 84] of images [N, channels, H, W], 16 pixels or more a side."""
        x = functional.avg_pool2d(torch.tanh(self.c1(images)), 2)
        x = functional.avg_pool2d(torch.tanh(self.c3(x)), 2)
        x = functional.adaptive_avg_pool2d(x, 5)
        return torch.tanh(self.f6(torch.tanh(self.c5(x.flatten(1)))))


class LeNet5Of1998(Classifier):
    """The published net; its logits are the negative squared distances to a fixed code a class.

    The paper drew digits as codes by hand and says that random ones of -1 and +1 would do; ours
    are random, so that there can be any number of classes.
    """

    def __init__(self, classes: int, channels: int = 1) -> None:
        super().__init__(channels)
        self.c1 = nn.Conv2d(channels, 6, kernel_size=5)
        self.s2 = Subsampling(6)
        self.c3 = PartialConvolution()
        self.s4 = Subsampling(16)
        self.c5 = nn.Linear(16 * 5 * 5, 120)
        self.f6 = nn.Linear(120, _F6)
        self.head = NearestCode(classes)
        for layer in (self.c1, self.c5, self.f6):
            _uniform(layer.weight, fan_in=layer.weight[0].numel())
            nn.init.zeros_(torch.as_tensor(layer.bias))

    def embed(self, images: Tensor) -> Tensor:
        """Return F6's outputs [N, 84] of images [N, channels, H, W], 16 pixels or more a side."""
        x = _squash(self.s2(_squash(self.c1(images))))
        x = _squash(self.s4(_squash(self.c3(x))))
        x = functional.adaptive_avg_pool2d(x, 5)
        return _squash(self.f6(_squash(self.c5(x.flatten(1)))))


class Subsampling(nn.Module):
    """The sum of each 2x2 square, scaled and shifted by two numbers a map."""

    def __init__(self, maps: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.empty(maps, 1, 1))
        self.shift = nn.Parameter(torch.zeros(maps, 1, 1))
        _uniform(self.scale, fan_in=4)

    def forward(self, x: Tensor) -> Tensor:
        """Return float [N, maps, H/2, W/2]."""
        return 4 * functional.avg_pool2d(x, 2) * self.scale + self.shift


class PartialConvolution(nn.Module):
    """C3: 5x5 filters on some maps only. [N, 6, H, W] -> [N, 16, H-4, W-4]."""

    def __init__(self) -> None:
        super().__init__()
        pairs = [(out, seen) for out, all_seen in enumerate(_C3_SEES) for seen in all_seen]
        self.weight = nn.Parameter(torch.empty(len(pairs), 5, 5))
        self.bias = nn.Parameter(torch.zeros(len(_C3_SEES)))
        self.register_buffer("outputs", torch.tensor([out for out, _ in pairs]), persistent=False)
        self.register_buffer("inputs", torch.tensor([seen for _, seen in pairs]), persistent=False)
        self.outputs: Tensor
        self.inputs: Tensor
        start = 0
        for all_seen in _C3_SEES:
            _uniform(self.weight[start : start + len(all_seen)], fan_in=25 * len(all_seen))
            start += len(all_seen)

    def forward(self, x: Tensor) -> Tensor:
        """Return float [N, 16, H-4, W-4]."""
        full = self.weight.new_zeros(len(_C3_SEES), 6, 5, 5)
        full = full.index_put((self.outputs, self.inputs), self.weight)
        return functional.conv2d(x, full, self.bias)


class NearestCode(nn.Module):
    """Minus the squared distance of the embedding [N, 84] to the code of each class: [N, C]."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.register_buffer("codes", torch.randint(0, 2, (classes, _F6)).float() * 2 - 1)
        self.codes: Tensor

    def forward(self, embedding: Tensor) -> Tensor:
        """Return logits [N, C], at most 0."""
        return -(embedding[:, None] - self.codes).square().sum(dim=2)


def _squash(x: Tensor) -> Tensor:
    # Appendix A: so that f(1) = 1 and f(-1) = -1.
    return 1.7159 * torch.tanh(2 / 3 * x)


def _uniform(weight: Tensor, fan_in: int) -> None:
    bound = 2.4 / fan_in
    with torch.no_grad():
        weight.uniform_(-bound, bound)
