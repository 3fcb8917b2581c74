"""What training minimises."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from training.config import TrainRecipe
from training.consistency import disagreement, first_look
from training.imbalance import class_weights, log_priors


class Objective:
    """Cross-entropy with label smoothing, weighted or adjusted for classes of different sizes.

    Args:
        recipe: which of those.
        consistency: weight of the disagreement between several looks at an image.
        labels: of the training images, int64 [N].
        classes: how many there are.
        device: that the logits are on.
    """

    def __init__(
        self,
        recipe: TrainRecipe,
        labels: NDArray[np.int64],
        classes: int,
        device: torch.device | None = None,
        consistency: float = 0.0,
    ) -> None:
        self._consistency = consistency
        self._smoothing = recipe.label_smoothing
        self._weights: Tensor | None = None
        self._log_priors: Tensor | None = None
        if recipe.imbalance == "class_weights":
            self._weights = class_weights(labels, classes).to(device)
        elif recipe.imbalance == "logit_adjustment":
            self._log_priors = log_priors(labels, classes).to(device)

    def __call__(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the mean loss of logits [B, C], or of several looks [B, L, C], in nats.

        `targets` are labels, int64 [B], or shares of classes, float [B, C].
        """
        if logits.ndim == 3:
            apart = self._consistency * disagreement(logits)
            return self(first_look(logits), targets) + apart
        logits = logits.float()
        if self._log_priors is not None:
            logits = logits + self._log_priors
        if self._weights is None:
            return functional.cross_entropy(logits, targets, label_smoothing=self._smoothing)
        losses = functional.cross_entropy(
            logits, targets, label_smoothing=self._smoothing, reduction="none"
        )
        # Over the images, not over their weights: then the parts of a batch, and the processes of a
        # run, add up to the whole.
        weights = self._weights[targets] if targets.ndim == 1 else targets @ self._weights
        return (losses * weights).mean()
