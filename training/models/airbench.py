"""airbench: a small convolutional net that learns CIFAR-10 in about ten epochs.

Written from the paper "94% on CIFAR-10 in 3.29 Seconds on a Single GPU" (arXiv 2404.00498).
1,972,792 parameters at 10 classes, 118 million multiply-adds at 32x32. The deep form is that of the
paper's airbench96 (12,721,208 parameters, 615 million multiply-adds), also in two narrower sizes.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from training.models.packed_convolution import PackedConvolution

# 24 filters: the 12 directions of a 2x2 patch in three channels, and their negations (section 3.1).
_WHITENING_FILTERS = 24
_WIDTHS = (64, 256, 256)
_LOGIT_SCALE = 1 / 9


class Airbench(nn.Module):
    """Whitening convolution, three blocks, a max over what is left, a linear classifier.

    Args:
        classes: number of outputs.
        widths: channels of each block.
        is_deep: blocks have a third convolution, and a shortcut over the last two (section 4).
        whitening_epsilon: added to the variance of a direction before it is scaled to 1, so that
            directions that hardly vary are not blown up.
    """

    def __init__(
        self,
        classes: int,
        widths: tuple[int, int, int] = _WIDTHS,
        *,
        is_deep: bool = False,
        whitening_epsilon: float = 5e-4,
    ) -> None:
        super().__init__()
        self._whitening_epsilon = whitening_epsilon
        self.whiten = nn.Conv2d(3, _WHITENING_FILTERS, kernel_size=2)
        self.whiten.weight.requires_grad_(False)
        nn.init.zeros_(torch.as_tensor(self.whiten.bias))
        channels = (_WHITENING_FILTERS, *widths)
        self.blocks = nn.ModuleList(
            (DeepBlock if is_deep else Block)(channels[i], channels[i + 1]) for i in range(3)
        )
        self.head = nn.Linear(widths[-1], classes, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits [N, C] of normalised images, float [N, 3, H, W]."""
        return self.forward_with_embedding(images)[0]

    def forward_with_embedding(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits [N, C] and the features [N, 256] that they are read from."""
        x = functional.gelu(self._whiten(images))
        for block in self.blocks:
            x = block(x)
        embedding = x.amax(dim=(2, 3))
        # The scale keeps early logits small, which the high learning rate needs.
        return self.head(embedding) * _LOGIT_SCALE, embedding

    def _whiten(self, images: Tensor) -> Tensor:
        kind = images.device.type
        # The meta device, on which shapes are reckoned, knows no autocast.
        if kind == "meta" or not torch.is_autocast_enabled(kind):
            whitened: Tensor = self.whiten(images)
            return whitened
        # Whitening is differences of neighbours, enlarged up to 40 times: in bf16 the directions of
        # least variance come out 15 % wrong, and the served graph, in float32, would not agree.
        with torch.autocast(kind, enabled=False):
            exact = functional.conv2d(images, self.whiten.weight).to(torch.get_autocast_dtype(kind))
        bias = torch.as_tensor(self.whiten.bias)
        return exact + bias.to(exact.dtype).view(1, -1, 1, 1)

    @torch.no_grad()
    def whiten_like(self, images: Tensor) -> None:
        """Set the first layer to whiten 2x2 patches of `images`, float [N, 3, H, W] normalised."""
        patches = images.unfold(2, 2, 1).unfold(3, 2, 1)  # [N, 3, H-1, W-1, 2, 2]
        patches = patches.permute(0, 2, 3, 1, 4, 5).reshape(-1, 12).double()
        covariance = patches.T @ patches / len(patches)
        variances, directions = torch.linalg.eigh(covariance)
        # The sign of an eigenvector is arbitrary; fix it, so that a seed means one net everywhere.
        largest = directions.abs().argmax(dim=0)
        directions = directions * directions[largest, torch.arange(12)].sign()
        filters = (directions / torch.sqrt(variances + self._whitening_epsilon)).T.flip(0)
        weight = torch.cat((filters, -filters)).view(_WHITENING_FILTERS, 3, 2, 2)
        self.whiten.weight.copy_(weight)


class Block(nn.Module):
    """Two convolutions; the first halves the picture. [N, in, H, W] -> [N, out, H/2, W/2]."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.conv1 = _convolution(channels_in, channels_out)
        self.norm1 = _norm(channels_out)
        self.conv2 = _convolution(channels_out, channels_out)
        self.norm2 = _norm(channels_out)

    def forward(self, x: Tensor) -> Tensor:
        """Return float [N, out, H/2, W/2]."""
        return functional.gelu(self.norm2(self.conv2(self._halve(x))))

    def _halve(self, x: Tensor) -> Tensor:
        return functional.gelu(self.norm1(functional.max_pool2d(self.conv1(x), 2)))


class DeepBlock(Block):
    """Three convolutions, a shortcut over the last two. [N, in, H, W] -> [N, out, H/2, W/2]."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__(channels_in, channels_out)
        self.conv3 = _convolution(channels_out, channels_out)
        self.norm3 = _norm(channels_out)

    def forward(self, x: Tensor) -> Tensor:
        """Return float [N, out, H/2, W/2]."""
        x = self._halve(x)
        added = self.norm3(self.conv3(functional.gelu(self.norm2(self.conv2(x)))))
        return functional.gelu(x + added)


def _convolution(channels_in: int, channels_out: int) -> nn.Conv2d:
    convolution = PackedConvolution(channels_in, channels_out)
    # The first filters pass their input on, the others keep PyTorch's draw (section 3.2).
    nn.init.dirac_(convolution.weight.data[:channels_in])
    return convolution


def _norm(channels: int) -> nn.BatchNorm2d:
    # The paper's momentum of 0.6 is what is kept; PyTorch counts what is taken anew.
    norm = nn.BatchNorm2d(channels, eps=1e-12, momentum=1 - 0.6)
    norm.weight.requires_grad_(False)
    return norm
