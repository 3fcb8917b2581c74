"""All advice that a recipe, its images, its weights and its curves give, and how to follow it."""

from __future__ import annotations

import torch

from training.advice import Advice, advise_by_curves
from training.config import Recipe, apply_override, recipe_from_dict, recipe_to_dict
from training.data import load_splits
from training.data_advice import advise_by_data, measure_data
from training.errors import TrainingError
from training.learning_curves import Curves
from training.network import build_network
from training.transfer import probe_transfer
from training.transfer_advice import advise_by_transfer


def advise_recipe(
    recipe: Recipe,
    curves: Curves | None = None,
    *,
    max_images: int = 2000,
    is_transfer_probed: bool = True,
) -> tuple[Advice, ...]:
    """Return what to change, the most fundamental first.

    Args:
        recipe: what is to be trained, or was.
        curves: of a run of it.
        max_images: that pretrained features are probed on.
        is_transfer_probed: whether they are, where there are any.

    Raises:
        TrainingError: the data or the weights cannot be read.
    """
    splits = load_splits(recipe.data)
    facts = measure_data(splits)
    found = list(advise_by_data(recipe, facts))
    if recipe.model.has_weights and is_transfer_probed:
        probe = probe_transfer(recipe, splits, max_images=max_images)
        with torch.device("meta"):
            shape = build_network(recipe.model, classes=len(facts.class_sizes), is_trained=True)
        found.insert(0, advise_by_transfer(recipe, facts, probe, shape))
    if curves is not None:
        found.extend(advise_by_curves(recipe, curves))
    return tuple(found)


def follow(recipe: Recipe, found: tuple[Advice, ...]) -> tuple[Recipe, tuple[str, ...]]:
    """Return the recipe with the settings of all advice, and those that do not go with the rest.

    Of two that set the same key the first is followed.
    """
    left_out: list[str] = []
    taken: set[str] = set()
    for setting in (setting for one in found for setting in one.settings):
        key = setting.partition("=")[0]
        document = recipe_to_dict(recipe)
        apply_override(document, setting)
        try:
            if key in taken:
                raise TrainingError("set already")
            recipe = recipe_from_dict(document)
            taken.add(key)
        except TrainingError:
            left_out.append(setting)
    return recipe, tuple(left_out)
