"""A trainer as it is before the first step: data, network, optimiser as the recipe says."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from training.averaging import WeightAverage
from training.checkpoint import save_json
from training.config import Recipe
from training.data import Dataset, Splits, decode_views, load_splits, without_unreadable
from training.distributed import ALONE, Team
from training.errors import TrainingError
from training.feature_cache import FeatureLoader, cached_features, head_of
from training.gradient_checkpointing import checkpoint_gradients
from training.hardware import Precision, choose_precision, describe_hardware, library_versions
from training.imbalance import sampling_weights
from training.loaders import build_loader, checked_batch_size, validation_batches
from training.loading import Loader
from training.mixing import Mixing
from training.models.airbench import Airbench
from training.models.auxiliary import logits_for_training
from training.models.normalise import Normalise
from training.network import build_network
from training.objective import Objective
from training.optim import build_optimizer
from training.trainer import Pipeline, Trainer

# Enough 2x2 patches for their covariance (arXiv 2404.00498, section 3.1).
_WHITENING_IMAGES = 5000


def build_trainer(
    recipe: Recipe,
    run_dir: Path,
    target: torch.device,
    on_step: Callable[[int], None] | None = None,
    team: Team = ALONE,
) -> Trainer:
    """Read the data and make everything as it is before the first step; nothing is written."""
    precision = choose_precision(recipe.train.precision, target)
    if recipe.train.batch_size % team.size:
        raise TrainingError(
            f"train.batch_size {recipe.train.batch_size} is not shared by {team.size} processes"
        )
    if recipe.train.accumulation_parts > recipe.train.batch_size // team.size:
        raise TrainingError(
            f"train.accumulation_parts {recipe.train.accumulation_parts} is more than the "
            f"{recipe.train.batch_size // team.size} images of a process's batch"
        )
    splits = _readable(recipe, load_splits(recipe.data), run_dir, team)
    classes = len(splits.train.class_names)
    torch.manual_seed(recipe.seed)
    net = _build_net(recipe, splits.train).to(target)
    if recipe.train.is_channels_last:
        net = net.to(memory_format=torch.channels_last)
    if recipe.train.is_gradient_checkpointing_on:
        checkpoint_gradients(net)
    normalise = Normalise(recipe.input.normalisation).to(target)
    own = splits.validation.subset(range(team.rank, len(splits.validation), team.size))
    validation = validation_batches(recipe, splits.validation if team.is_alone else own)
    served = Pipeline(net=net, normalise=normalise, validation=validation)
    if recipe.train.is_feature_cache_on:
        if not team.is_alone:
            raise TrainingError("train.is_feature_cache_on needs no more than one process")
        loader, shown = _cache_features(recipe, splits, served, run_dir)
    else:
        loader, shown = build_loader(recipe, splits.train, team), served
    total_steps = max(1, math.ceil(loader.batches_per_epoch * recipe.train.epochs))
    compute = logits_for_training
    return Trainer(
        recipe=recipe,
        run_dir=run_dir,
        target=target,
        precision=precision,
        facts=_facts(splits, target, precision),
        loader=loader,
        total_steps=total_steps,
        served=served,
        validation=shown.validation,
        net=shown.net,
        normalise=shown.normalise,
        optimizer=build_optimizer(recipe.optim, shown.net),
        average=WeightAverage(recipe.average, shown.net, total_steps),
        mixing=Mixing(recipe.augment, classes=classes, seed=recipe.seed),
        objective=Objective(
            recipe.train,
            splits.train.labels,
            classes,
            target,
            consistency=recipe.augment.augmix_consistency,
        ),
        scaler=torch.amp.GradScaler(target.type, enabled=precision == "fp16"),
        compute=torch.compile(compute) if recipe.train.is_compiled else compute,
        on_step=on_step,
        team=team,
    )


def _readable(recipe: Recipe, splits: Splits, run_dir: Path, team: Team) -> Splits:
    """Return the splits without images that cannot be read, if the recipe puts up with some."""
    share = recipe.data.max_unreadable_fraction
    if share == 0:
        return splits
    train, missing = without_unreadable(splits.train, recipe.input.preprocess, share)
    validation, others = without_unreadable(splits.validation, recipe.input.preprocess, share)
    if team.is_writer:
        save_json(run_dir / "unreadable.json", {"images": [*missing, *others]})
    return Splits(train=train, validation=validation)


def _cache_features(
    recipe: Recipe, splits: Splits, served: Pipeline, run_dir: Path
) -> tuple[Loader, Pipeline]:
    """Return the features of the images in place of the images, and the head in that of the net."""
    found = {}
    for dataset in (splits.train, splits.validation):
        batches = validation_batches(recipe, dataset)
        path = run_dir / f"features-{dataset.split}.safetensors"
        assert isinstance(served.normalise, Normalise)
        found[dataset.split] = cached_features(
            served.net, served.normalise, batches, path, dataset.fingerprint
        )
    is_balanced = recipe.train.imbalance == "balanced_sampling"
    loader = FeatureLoader(
        *found["train"],
        batch_size=checked_batch_size(recipe, splits.train),
        seed=recipe.seed,
        weights=sampling_weights(splits.train) if is_balanced else None,
    )
    head = head_of(served.net)
    return loader, Pipeline(net=head, normalise=nn.Identity(), validation=[found["validation"]])


def _facts(splits: Splits, target: torch.device, precision: Precision) -> dict[str, Any]:
    return {
        "class_names": list(splits.train.class_names),
        "data": {
            split.split: {
                "name": split.name,
                "images": len(split),
                "fingerprint": split.fingerprint,
            }
            for split in (splits.train, splits.validation)
        },
        "hardware": describe_hardware(target),
        "precision": precision,
        "libraries": library_versions(),
    }


def _build_net(recipe: Recipe, dataset: Dataset) -> nn.Module:
    net = build_network(recipe.model, classes=len(dataset.class_names))
    if isinstance(net, Airbench) and not recipe.model.weights:
        some = dataset.subset(range(min(_WHITENING_IMAGES, len(dataset))))
        views = torch.from_numpy(decode_views(some, recipe.input.preprocess))
        net.whiten_like(Normalise(recipe.input.normalisation)(views))
    return net
