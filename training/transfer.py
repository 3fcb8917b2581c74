"""How much of what a network knows serves new images: linear probes of its frozen features.

Features are taken at several depths, from the last maps of every resolution to those that its
classifier reads (Yosinski et al., arXiv 1411.1792: early layers are general, late ones special).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from training.comparison import compare
from training.config import Recipe
from training.data import Dataset, Splits, decode_views
from training.errors import TrainingError
from training.images import sample_places
from training.models.classifier import EmbeddingModel
from training.models.normalise import Normalise
from training.network import build_network

# What the classifier reads.
LAST = "classifier input"
# Names of the outermost module that tells the classes apart.
CLASSIFIERS = ("head", "classifier")
_BATCH = 64
_RIDGES = tuple(10.0**power for power in range(-2, 6))

Features = dict[str, NDArray[np.float32]]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LinearProbe:
    """A linear classifier on frozen features.

    Attributes:
        layer: whose features; `LAST` are those that the network's own classifier reads.
        hits: which validation images it told right, bool [N].
    """

    layer: str
    hits: NDArray[np.bool_]

    @property
    def top1(self) -> float:
        """The share of validation images that it told right."""
        return float(self.hits.mean())

    def beats(self, other: LinearProbe) -> bool:
        """Whether it is better on the same images by more than chance explains (McNemar's test)."""
        found = compare(other.hits, self.hits)
        return found.is_significant and found.difference > 0


@dataclass(frozen=True, slots=True, kw_only=True)
class TransferProbe:
    """What was found of a pretrained network on new images.

    Attributes:
        depths: from the first layers to what the classifier reads.
        untrained: of the last depth, in the same network before it learnt anything.
        images: that the probes were fitted on.
        validation_images: that they were measured on.
    """

    depths: tuple[LinearProbe, ...]
    untrained: LinearProbe
    images: int
    validation_images: int

    @property
    def last(self) -> LinearProbe:
        """The probe of what the classifier reads."""
        return self.depths[-1]

    @property
    def best(self) -> LinearProbe:
        """The best probe; of equal ones the latest."""
        return max(reversed(self.depths), key=lambda one: one.top1)

    @property
    def is_useful(self) -> bool:
        """Whether what the network knows helps at all."""
        return self.best.beats(self.untrained)

    @property
    def is_similar(self) -> bool:
        """Whether its last features serve the new images, and no earlier ones serve them better."""
        return self.last.beats(self.untrained) and not self.best.beats(self.last)


def probe_transfer(recipe: Recipe, splits: Splits, *, max_images: int = 2000) -> TransferProbe:
    """Return linear probes of the recipe's network with the weights that it starts from.

    Args:
        recipe: its network has weights to start from.
        splits: probes are fitted on the training images and measured on the validation.
        max_images: taken by chance of either, the same each time.

    Raises:
        TrainingError: the network has no weights to start from.
    """
    if not recipe.model.has_weights:
        raise TrainingError("model.pretrained or model.weights is needed to tell what transfers")
    train, validation = (_some(one, max_images) for one in (splits.train, splits.validation))
    blank = replace(recipe.model, pretrained=False, weights=())
    found = []
    for model in (recipe.model, blank):
        torch.manual_seed(recipe.seed)
        net = build_network(model, classes=len(train.class_names)).eval()
        features = [frozen_features(net, recipe, one) for one in (train, validation)]
        found.append(_fit(features[0], train.labels, features[1], validation.labels))
    return TransferProbe(
        depths=tuple(found[0].values()),
        untrained=found[1][LAST],
        images=len(train),
        validation_images=len(validation),
    )


@torch.no_grad()
def frozen_features(net: nn.Module, recipe: Recipe, dataset: Dataset) -> Features:
    """Return the mean maps, float32 [N, D], of each depth by its layer's name, first to last.

    Raises:
        TrainingError: the network has no features that a classifier reads.
    """
    if not isinstance(net, EmbeddingModel):
        raise TrainingError(f"{recipe.model.architecture}: has no features that a classifier reads")
    normalise = Normalise(recipe.input.normalisation)
    found: dict[str, list[Tensor]] = {}
    for start in range(0, len(dataset), _BATCH):
        some = dataset.subset(range(start, min(start + _BATCH, len(dataset))))
        views = torch.from_numpy(decode_views(some, recipe.input.preprocess))
        maps, embedding = _last_maps(net, normalise(views))
        for layer, values in maps.items():
            found.setdefault(layer, []).append(values)
        found.setdefault(LAST, []).append(embedding)
    return {layer: torch.cat(parts).numpy() for layer, parts in found.items()}


def _last_maps(net: nn.Module, images: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """Return the mean of the last maps of each resolution, by their layer, and the embedding."""
    assert isinstance(net, EmbeddingModel)
    last_of: dict[tuple[int, ...], tuple[str, Tensor]] = {}

    def record(name: str, _module: nn.Module, _inputs: object, output: object) -> None:
        if isinstance(output, Tensor) and output.ndim == 4 and output.shape[-1] > 1:
            last_of[tuple(output.shape[2:])] = (name, output)

    handles = [
        module.register_forward_hook(partial(record, name))
        for name, module in net.named_modules()
        if name and name.partition(".")[0] not in CLASSIFIERS
    ]
    try:
        _, embedding = net.forward_with_embedding(images)
    finally:
        for handle in handles:
            handle.remove()
    features = embedding.flatten(1)
    maps = {name: values.mean(dim=(2, 3)) for name, values in last_of.values()}
    return {name: one for name, one in maps.items() if not torch.equal(one, features)}, features


def _fit(
    train: Features, labels: NDArray[np.int64], validation: Features, answers: NDArray[np.int64]
) -> dict[str, LinearProbe]:
    """Return a linear classifier's score at each depth, its shrinkage chosen on `train` alone."""
    from sklearn.linear_model import RidgeClassifierCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    probes = {}
    for layer, features in train.items():
        probe = make_pipeline(StandardScaler(), RidgeClassifierCV(_RIDGES))
        probe.fit(np.nan_to_num(features), labels)
        hits = probe.predict(np.nan_to_num(validation[layer])) == answers
        probes[layer] = LinearProbe(layer=layer, hits=hits)
    return probes


def _some(dataset: Dataset, count: int) -> Dataset:
    return dataset.subset(sample_places(dataset, count))
