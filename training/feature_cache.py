"""Feature extraction: what a resting backbone makes of every image, computed once and kept."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from training.checkpoint import load_weights, save_weights
from training.errors import TrainingError
from training.loading import Batch, shuffled_batches
from training.models.classifier import EmbeddingModel
from training.models.normalise import Normalise


def head_of(net: nn.Module) -> nn.Module:
    """Return the classifier that reads the features of `net`.

    Raises:
        TrainingError: it has none.
    """
    head = getattr(net, "head", None)
    if not isinstance(net, EmbeddingModel) or not isinstance(head, nn.Module):
        raise TrainingError(f"{type(net).__name__}: has no features that a classifier reads")
    return head


@torch.no_grad()
def cached_features(
    net: nn.Module, normalise: Normalise, batches: Iterable[Batch], path: Path, fingerprint: str
) -> tuple[Tensor, Tensor]:
    """Return features, float32 [N, D], and labels, int64 [N], of all images in order.

    They are read from `path` if they are those of this network and these images, which
    `fingerprint` names; else they are computed and written there.
    """
    key = f"{fingerprint}-{_digest(net)}"
    if path.exists():
        stored = load_weights(path)
        if f"features-{key}" in stored:
            return stored[f"features-{key}"], stored["labels"]
    head_of(net)
    assert isinstance(net, EmbeddingModel)
    net.eval()
    features, labels = [], []
    for views, own in batches:
        _, embedding = net.forward_with_embedding(normalise(views.to(normalise.scale.device)))
        features.append(embedding.flatten(1).float().cpu())
        labels.append(own)
    found = torch.cat(features), torch.cat(labels)
    save_weights(path, {f"features-{key}": found[0], "labels": found[1]})
    return found


class FeatureLoader:
    """The same contract as `MemoryLoader`, but of features, float32 [B, D]."""

    def __init__(
        self,
        features: Tensor,
        labels: Tensor,
        *,
        batch_size: int,
        seed: int,
        weights: Tensor | None = None,
    ) -> None:
        self._features = features
        self._labels = labels
        self._batch_size = batch_size
        self._seed = seed
        self._weights = weights
        self.batches_per_epoch = len(labels) // batch_size

    def batches(self, epoch: int) -> Iterator[Batch]:
        """Yield the batches of an epoch, counted from 0."""
        order = shuffled_batches(
            len(self._labels),
            self._batch_size,
            seed=self._seed,
            epoch=epoch,
            weights=self._weights,
        )
        for indices in order:
            yield self._features[indices], self._labels[indices]


def _digest(net: nn.Module) -> str:
    """Return what tells networks apart whose features differ; their classifiers may."""
    digest = hashlib.sha256()
    for key, value in net.state_dict().items():
        if not key.startswith("head."):
            digest.update(key.encode())
            digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
