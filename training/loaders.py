"""The batches that a recipe asks for, to train on or to validate with."""

from collections.abc import Iterable

import torch

from training.augment import build_augmentation, principal_colours
from training.config import Recipe
from training.data import Dataset, decode_views
from training.distributed import ALONE, SharedLoader, Team
from training.errors import TrainingError
from training.imbalance import sampling_weights
from training.loading import Batch, Loader, MemoryLoader, split_views
from training.streaming import StreamedViews, StreamLoader


def build_loader(recipe: Recipe, dataset: Dataset, team: Team = ALONE) -> Loader:
    """Return the batches of training images as the recipe augments them, or a process's part."""
    checked_batch_size(recipe, dataset)
    if recipe.data.loading == "stream":
        return StreamLoader(dataset, recipe, part=(team.rank, team.size))
    views = torch.from_numpy(decode_views(dataset, recipe.input.preprocess))
    colours = principal_colours(views) if recipe.augment.fancy_pca_std else None
    is_balanced = recipe.train.imbalance == "balanced_sampling"
    loader = MemoryLoader(
        views,
        torch.from_numpy(dataset.labels),
        recipe.augment,
        batch_size=recipe.train.batch_size,
        seed=recipe.seed,
        mean=recipe.input.normalisation.mean,
        transform=build_augmentation(recipe.augment, recipe.input.normalisation, colours),
        weights=sampling_weights(dataset) if is_balanced else None,
    )
    return loader if team.is_alone else SharedLoader(loader, team)


def checked_batch_size(recipe: Recipe, dataset: Dataset) -> int:
    """Return the recipe's batch size; TrainingError if there are fewer images than that."""
    size = recipe.train.batch_size
    if len(dataset) < size:
        raise TrainingError(f"train.batch_size {size} is more than the {len(dataset)} images")
    return size


def validation_batches(recipe: Recipe, dataset: Dataset) -> Iterable[Batch]:
    """Return all images once, in order and as served."""
    if recipe.data.loading == "stream":
        return StreamedViews(dataset, recipe.input.preprocess, workers=recipe.data.decode_workers)
    return split_views(decode_views(dataset, recipe.input.preprocess), dataset.labels)
