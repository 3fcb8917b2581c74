"""The network of a recipe, from `recipe.model`."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from training.checkpoint import load_weights
from training.config import ModelRecipe
from training.errors import TrainingError
from training.models.initialise import initialise
from training.models.norm_layers import replace_norms
from training.models.registry import Option, build_model

# What providers call the share of residual branches that are left out.
_DROP_PATH = ("drop_path_rate", "stochastic_depth_prob")


def build_network(recipe: ModelRecipe, *, classes: int, is_trained: bool = False) -> nn.Module:
    """Return the network of a recipe, in training mode.

    Args:
        recipe: which one.
        classes: number of logits.
        is_trained: its weights are loaded afterwards, so none are looked for.

    Raises:
        TrainingError: the network, an option or its first weights cannot be had.
    """
    is_pretrained = recipe.pretrained and not is_trained
    net = _with_drop_path(recipe, classes, is_pretrained)
    if recipe.norm != "default":
        replace_norms(net, recipe.norm)
    if recipe.initialisation != "default" and not is_trained:
        initialise(net, recipe.initialisation)
    if recipe.weights and not is_trained:
        load_backbone(net, recipe.weights, classes)
    if recipe.dropout and not is_trained:
        _add_dropout(net, recipe)
    return net


def load_backbone(net: nn.Module, sources: Sequence[Path], classes: int) -> None:
    """Load the mean of `sources` into `net`.

    Another classifier stays as it is: one of other classes, or of other kind. The mean has no
    statistics of batches of its own: those are the mean too, until it learns.

    Raises:
        TrainingError: they belong to another network.
    """
    own = net.state_dict()
    loaded = [_read_backbone(source, own, classes) for source in sources]
    for key, value in own.items():
        each = torch.stack([weights[key] for weights in loaded])
        value.copy_(each.mean(dim=0, dtype=value.dtype) if value.is_floating_point() else each[0])


def _read_backbone(source: Path, own: Mapping[str, Tensor], classes: int) -> dict[str, Tensor]:
    path = source / "best.safetensors" if source.is_dir() else source
    weights = load_weights(path)
    _replace_other_classifier(own, weights)
    for key in _classifier_of_others(own, weights, classes):
        weights[key] = own[key]
    problem = _mismatch(own, weights)
    if problem:
        raise TrainingError(f"{path}: weights of another network: {problem}")
    return weights


def _replace_other_classifier(own: Mapping[str, Tensor], weights: dict[str, Tensor]) -> None:
    """Put our `head` in the place of the one layer of the weights that we do not have."""
    missing, unknown = own.keys() - weights, weights.keys() - own
    is_head_alone = all(key.startswith("head.") for key in missing)
    if missing and is_head_alone and len({key.rpartition(".")[0] for key in unknown}) == 1:
        for key in unknown:
            del weights[key]
        weights.update({key: own[key] for key in missing})


def _classifier_of_others(
    own: Mapping[str, Tensor], weights: Mapping[str, Tensor], classes: int
) -> list[str]:
    """Returns the parameters of the one layer that differs in the number of classes only."""
    other = [key for key in own if key in weights and own[key].shape != weights[key].shape]
    are_of_one_layer = len({key.rpartition(".")[0] for key in other}) == 1
    differ_in_classes_only = all(
        own[key].shape[0] == classes and own[key].shape[1:] == weights[key].shape[1:]
        for key in other
    )
    return other if are_of_one_layer and differ_in_classes_only else []


def _mismatch(own: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> str:
    for told, keys in (("no", own.keys() - weights), ("an unknown", weights.keys() - own)):
        if keys:
            return f"{told} {min(keys)} ({len(keys)} such in all)"
    for key in own:
        if own[key].shape != weights[key].shape:
            return f"{key} is {tuple(weights[key].shape)}, not {tuple(own[key].shape)}"
    return ""


def _with_drop_path(recipe: ModelRecipe, classes: int, is_pretrained: bool) -> nn.Module:
    options: list[Mapping[str, Option]] = [recipe.options]
    if recipe.drop_path:
        options = [{**recipe.options, name: recipe.drop_path} for name in _DROP_PATH]
    for attempt in options:
        try:
            return build_model(
                recipe.architecture, classes=classes, is_pretrained=is_pretrained, options=attempt
            )
        except TrainingError as error:
            refused = error
            if not (recipe.drop_path and any(name in str(error) for name in _DROP_PATH)):
                raise
    raise TrainingError(f"model.drop_path: {recipe.architecture} has none") from refused


def _add_dropout(net: nn.Module, recipe: ModelRecipe) -> None:
    head = getattr(net, "head", None)
    if not isinstance(head, nn.Module):
        raise TrainingError(f"model.dropout: {recipe.architecture} has no head to put it before")
    dropout = nn.Dropout(recipe.dropout)
    # As a hook, so that weights keep their names.
    head.register_forward_pre_hook(
        lambda own, inputs: (dropout.train(own.training)(inputs[0]), *inputs[1:])
    )
