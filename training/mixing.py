"""Mixing the images of a batch with each other: mixup and CutMix, by torchvision's transforms."""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.transforms import v2

from training.loading import seeded
from training.recipe_training import AugmentRecipe


class Mixing:
    """Mixes every batch, or those that chance picks; always the same for the same step.

    Args:
        augment: the recipe's.
        classes: how many there are.
        seed: of the run.
    """

    def __init__(self, augment: AugmentRecipe, *, classes: int, seed: int) -> None:
        kinds = (v2.MixUp, augment.mixup_alpha), (v2.CutMix, augment.cutmix_alpha)
        ways = [kind(alpha=alpha, num_classes=classes) for kind, alpha in kinds if alpha]
        self._mix = v2.RandomChoice(ways) if ways else None
        self._probability = augment.mix_probability
        self._seed = seed

    def mix(self, images: Tensor, labels: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """Return images and targets: the labels, int64 [B], or shares of classes, float [B, C].

        Args:
            images: float [B, 3, H, W], or uint8 without mixup.
            labels: int64 [B].
            step: of the run.
        """
        if self._mix is None:
            return images, labels
        with seeded(self._seed, "mix", step):
            if float(torch.rand(())) >= self._probability:
                return images, labels
            mixed: tuple[Tensor, Tensor] = self._mix(images, labels)
        return mixed
