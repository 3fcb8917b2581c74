"""Which parameters rest, and what batch normalisation does meanwhile; a function of time alone.

Nothing is remembered from step to step, so a resumed run is exact.
"""

from collections.abc import Mapping

from torch import nn

from training.batch_norms import batch_norms
from training.config import TrainRecipe
from training.errors import TrainingError


def freeze(net: nn.Module, recipe: TrainRecipe, *, epochs: float) -> None:
    """Set what is trained after `epochs`: gradients, and the mode of batch normalisation.

    Raises:
        TrainingError: the recipe names a parameter or module that is not there.
    """
    for name, module in _named(net, recipe.unfreeze_after_epochs):
        is_resting = epochs < recipe.unfreeze_after_epochs[name]
        for parameter in module.parameters():
            parameter.requires_grad_(not is_resting)
        for norm in batch_norms(module):
            norm.train(net.training and not (is_resting and recipe.frozen_norm == "eval"))
    for name, limit in recipe.freeze_after_epochs.items():
        try:
            parameter = net.get_parameter(name)
        except AttributeError:
            raise TrainingError(f"train.freeze_after_epochs: no parameter {name}") from None
        parameter.requires_grad_(epochs < limit)


def _named(net: nn.Module, names: Mapping[str, float]) -> list[tuple[str, nn.Module]]:
    """Return the modules, outer ones first: an inner one has the last word."""
    found = []
    for name in sorted(names, key=lambda name: name.count(".")):
        try:
            found.append((name, net.get_submodule(name)))
        except AttributeError:
            raise TrainingError(f"train.unfreeze_after_epochs: no module {name}") from None
    return found
