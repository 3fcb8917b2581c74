"""Settings of a recipe that would do nothing, or that contradict each other."""

from training.errors import TrainingError
from training.recipe import DataRecipe, Recipe
from training.recipe_training import AugmentRecipe, AverageRecipe, OptimRecipe


def check_settings_have_effect(recipe: Recipe, origin: str) -> None:
    """Refuse what the run would pass over in silence."""
    _check_augmentation(recipe, origin)
    _check_optimiser(recipe, origin)
    _check_training(recipe, origin)
    _check_data(recipe.data, origin)


_NAMED_CLASSES = ("parquet", "webdataset")
_UNNAMED_CLASSES = ("mnist", "cifar", "torchvision")


def _check_data(data: DataRecipe, origin: str) -> None:
    told = f'data.source = "{data.source}"'
    is_sharded = bool(data.train_shards)
    needed = {
        "train": data.source != "digits" and not is_sharded,
        "classes": data.source in _NAMED_CLASSES,
        "dataset": data.source == "torchvision",
    }
    for key, is_needed in needed.items():
        if is_needed and getattr(data, key) is None:
            raise TrainingError(f"{origin}: {told} needs data.{key}")
    is_ours = {
        "train": data.source != "digits" and not is_sharded,
        "validation": data.source not in ("digits", "torchvision") and not is_sharded,
        "classes": data.source in (*_NAMED_CLASSES, *_UNNAMED_CLASSES),
        "dataset": data.source == "torchvision",
        "is_download_allowed": data.source == "torchvision",
        "train_shards": data.source == "parquet",
        "validation_shards": is_sharded,
        "group_pattern": data.source == "folder",
    }
    for key, is_used in is_ours.items():
        if not is_used and getattr(data, key):
            raise TrainingError(f"{origin}: data.{key} does nothing with {told}")
    if is_sharded and data.loading == "memory":
        raise TrainingError(f'{origin}: data.train_shards needs data.loading = "stream"')


def _check_augmentation(recipe: Recipe, origin: str) -> None:
    loading, augment, plain = recipe.data.loading, recipe.augment, AugmentRecipe()
    other = {
        "memory": ("crop_min_area",),
        "stream": ("translate_px", "translate_fill", "cutout_px"),
    }
    for key in other[loading]:
        if getattr(augment, key) != getattr(plain, key):
            raise TrainingError(
                f'{origin}: augment.{key} does nothing with data.loading = "{loading}"'
            )
    if loading == "stream" and augment.flip == "alternating":
        raise TrainingError(f'{origin}: augment.flip = "alternating" needs data.loading = "memory"')
    policies = {
        "is_trivial_augment_on": augment.is_trivial_augment_on,
        "randaugment_magnitude": augment.randaugment_magnitude is not None,
        "augmix_severity": augment.augmix_severity is not None,
    }
    chosen = [name for name, is_chosen in policies.items() if is_chosen]
    if len(chosen) > 1:
        raise TrainingError(f"{origin}: augment takes one policy, not {' and '.join(chosen)}")
    if augment.randaugment_operations != plain.randaugment_operations and (
        augment.randaugment_magnitude is None
    ):
        raise TrainingError(f"{origin}: augment.randaugment_operations needs randaugment_magnitude")
    if augment.augmix_consistency and augment.augmix_severity is None:
        raise TrainingError(f"{origin}: augment.augmix_consistency needs augmix_severity")
    if augment.augmix_consistency and (augment.mixup_alpha or augment.cutmix_alpha):
        raise TrainingError(
            f"{origin}: augment.augmix_consistency goes without mixup_alpha and cutmix_alpha"
        )
    if augment.mix_probability != plain.mix_probability and not (
        augment.mixup_alpha or augment.cutmix_alpha
    ):
        raise TrainingError(f"{origin}: augment.mix_probability needs mixup_alpha or cutmix_alpha")


def _check_optimiser(recipe: Recipe, origin: str) -> None:
    optim = recipe.optim
    plain = OptimRecipe(lr=optim.lr)
    owners = {
        "betas": optim.name == "adamw",
        "rmsprop_decay": optim.name == "rmsprop",
        "eps": optim.name != "sgd",
        "milestones": optim.schedule == "step",
        "step_factor": optim.schedule == "step",
        "low_momentum": optim.schedule == "one_cycle",
    }
    for key, is_used in owners.items():
        if not is_used and getattr(optim, key) != getattr(plain, key):
            told = f'optim.name = "{optim.name}", optim.schedule = "{optim.schedule}"'
            raise TrainingError(f"{origin}: optim.{key} does nothing with {told}")
    if list(optim.milestones) != sorted(set(optim.milestones)):
        raise TrainingError(f"{origin}: optim.milestones must rise")
    epochs = [epoch for epoch, _ in recipe.train.size_schedule]
    if epochs != sorted(set(epochs)):
        raise TrainingError(f"{origin}: the epochs of train.size_schedule must rise")


def _check_training(recipe: Recipe, origin: str) -> None:
    model, average, train = recipe.model, recipe.average, recipe.train
    sources = [model.pretrained, bool(model.weights), model.initialisation != "default"]
    if sum(sources) > 1:
        raise TrainingError(
            f"{origin}: model takes one of pretrained, weights and initialisation, not several"
        )
    if average.kind != "swa" and average.start_fraction != AverageRecipe().start_fraction:
        raise TrainingError(f'{origin}: average.start_fraction needs average.kind = "swa"')
    if train.frozen_norm != "eval" and not train.unfreeze_after_epochs:
        raise TrainingError(f"{origin}: train.frozen_norm needs train.unfreeze_after_epochs")
    if recipe.data.train_shards and train.imbalance == "balanced_sampling":
        raise TrainingError(
            f'{origin}: train.imbalance = "balanced_sampling" goes without data.train_shards, '
            "which are read a few row groups at a time"
        )
    if train.is_feature_cache_on:
        _check_feature_cache(recipe, origin)


def _check_feature_cache(recipe: Recipe, origin: str) -> None:
    """The features of an image are computed once, so it has to be the same image every time."""
    train, told = recipe.train, f"{origin}: train.is_feature_cache_on goes without"
    if recipe.augment != AugmentRecipe():
        raise TrainingError(f"{told} augmentation")
    for key in ("size_schedule", "unfreeze_after_epochs", "freeze_after_epochs"):
        if getattr(train, key):
            raise TrainingError(f"{told} train.{key}")
    for key in ("is_gradient_checkpointing_on", "is_compiled", "probe_every_epochs"):
        if getattr(train, key):
            raise TrainingError(f"{told} train.{key}")
    if not recipe.model.has_weights:
        raise TrainingError(f"{origin}: train.is_feature_cache_on needs pretrained weights")
