"""What a history records of a run, epoch by epoch."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Series = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Curves:
    """A history, one value an epoch; accuracies are shares.

    Attributes:
        classes: How many there are.
        loss_parts: Training loss of equal parts of each epoch, [E, P], or None.
        dead_relus: Share of ReLUs that never fire on validation images, or None.
        validation_images: How many, or None.
        is_training_plain: The training images are those that are counted: neither augmented nor
            seen with dropout; None if nobody knows.
    """

    train_loss: Series
    train_top1: Series
    validation_loss: Series
    validation_top1: Series
    classes: int
    loss_parts: Series | None = None
    dead_relus: Series | None = None
    validation_images: int | None = None
    is_training_plain: bool | None = None

    @property
    def epochs(self) -> int:
        """How many epochs were recorded."""
        return len(self.train_loss)

    @property
    def guessing(self) -> float:
        """The loss of one who knows nothing, in nats."""
        return math.log(self.classes)

    @property
    def has_learnt(self) -> bool:
        """Whether it ever was clearly better than guessing."""
        chance = 1 / self.classes
        return bool(self.train_top1.max() > chance + 0.1 * (1 - chance))

    @property
    def gap(self) -> Series:
        """By how much accuracy is higher in training."""
        return self.train_top1 - self.validation_top1

    @property
    def last(self) -> slice:
        """The last quarter of the epochs, two at least."""
        return slice(-max(2, self.epochs // 4), None)

    @property
    def first(self) -> slice:
        """The first quarter of the epochs, two at least."""
        return slice(0, max(2, self.epochs // 4))
