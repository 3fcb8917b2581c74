"""Answers to classes of different sizes: weighted losses, shifted logits, balanced sampling."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from training.data import Dataset


def class_weights(labels: NDArray[np.int64], classes: int) -> Tensor:
    """Return float32 [C], the inverse of each class's share; their mean over the images is 1."""
    counts = _counts(labels, classes)
    return (len(labels) / (classes * counts)).float()


def log_priors(labels: NDArray[np.int64], classes: int) -> Tensor:
    """Return float32 [C], the logarithm of each class's share of the images."""
    return (_counts(labels, classes) / len(labels)).log().float()


def sampling_weights(dataset: Dataset) -> Tensor:
    """Return float32 [N], by which drawing images shows all classes equally often."""
    weights = class_weights(dataset.labels, len(dataset.class_names))
    return weights[torch.from_numpy(dataset.labels)]


def _counts(labels: NDArray[np.int64], classes: int) -> Tensor:
    # A class without images, which a recipe of several sources may have, must not divide by 0.
    return torch.from_numpy(np.bincount(labels, minlength=classes)).double().clamp(min=1)
