"""Consistency between several looks at an image, as AugMix asks for (arXiv 1912.02781, section 3).

A batch then holds three looks at each image: as it is, and augmented twice. The loss of the first
is what it always is; beside it counts how far the three answers are apart.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

LOOKS = 3

Logits = tuple[Tensor, list[tuple[float, Tensor]]]


def one_by_one(images: Tensor) -> Tensor:
    """Return [B * L, ...] of several looks [B, L, ...] at pictures; others as they are."""
    return images.flatten(0, 1) if images.ndim == 5 else images


def logits_of_looks(
    compute: Callable[[nn.Module, Tensor], Logits], net: nn.Module, images: Tensor
) -> Logits:
    """Return what `compute` does; of images [B, L, 3, H, W] the logits are [B, L, C]."""
    logits, auxiliary = compute(net, one_by_one(images))
    if images.ndim < 5:
        return logits, auxiliary
    parted = [(weight, _by_image(other, images)) for weight, other in auxiliary]
    return _by_image(logits, images), parted


def like_views(images: Tensor, views: Tensor) -> Tensor:
    """Return images [B * L, ...] as [B, L, ...] where `views` are several looks; else as is."""
    return _by_image(images, views) if views.ndim == 5 else images


def disagreement(logits: Tensor) -> Tensor:
    """Return the mean Jensen-Shannon divergence, in nats, between the looks of logits [B, L, C].

    0 where all give the same answer, at most ln L.
    """
    log_shares = logits.float().log_softmax(dim=2)
    shares = log_shares.exp()
    # As the authors have it: where nothing is left, its logarithm would be infinite.
    log_mean = shares.mean(dim=1, keepdim=True).clamp(min=1e-7).log()
    return (shares * (log_shares - log_mean)).sum(dim=2).mean()


def first_look(logits: Tensor) -> Tensor:
    """Return the logits [B, C] of the images as they are."""
    return logits[:, 0] if logits.ndim == 3 else logits


def several_looks(plain: Tensor, augment: Callable[[int], Tensor]) -> Tensor:
    """Return `plain` and what `augment` makes of it for looks 1 and 2, [B, L, H, W, 3]."""
    return torch.stack([plain, *(augment(look) for look in range(1, LOOKS))], dim=1)


def _by_image(flat: Tensor, looks: Tensor) -> Tensor:
    return flat.reshape(*looks.shape[:2], *flat.shape[1:])
