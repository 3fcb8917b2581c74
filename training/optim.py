"""The optimiser of a recipe, and its learning rate over time."""

import math

import torch
from torch import nn

from training.config import OptimRecipe


def build_optimizer(recipe: OptimRecipe, net: nn.Module) -> torch.optim.Optimizer:
    """Return the optimiser of the trainable parameters; groups keep their peak as `peak_lr`."""
    norm_biases, others, undecayed = _sort_parameters(recipe, net)
    scale, decay = recipe.norm_bias_lr_scale, recipe.weight_decay
    # Decay acts as lr x weight_decay, so the scale is divided out: all shrink at the same rate.
    norm_decay = decay / scale if recipe.is_decay_on_biases else 0.0
    groups = [
        {"params": norm_biases, "lr": recipe.lr * scale, "weight_decay": norm_decay},
        {"params": others, "lr": recipe.lr, "weight_decay": decay},
        {"params": undecayed, "lr": recipe.lr, "weight_decay": 0.0},
    ]
    groups = [{**group, "peak_lr": group["lr"]} for group in groups if group["params"]]
    if recipe.name == "adamw":
        return torch.optim.AdamW(groups)
    return torch.optim.SGD(
        groups, lr=recipe.lr, momentum=recipe.momentum, nesterov=recipe.is_nesterov
    )


def set_lr(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Set every group to `factor` times its peak learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * factor


def lr_factor(recipe: OptimRecipe, step: int, total_steps: int) -> float:
    """Return the share of the peak learning rate at `step`, counted from 0."""
    rise = int(recipe.warmup_fraction * total_steps)
    if step < rise:
        return recipe.start_factor + (1 - recipe.start_factor) * step / rise
    if recipe.schedule == "constant":
        return 1.0
    progress = (step - rise) / max(1, total_steps - rise)
    remaining = (
        1 - progress if recipe.schedule == "linear" else (1 + math.cos(math.pi * progress)) / 2
    )
    return recipe.end_factor + (1 - recipe.end_factor) * remaining


def _sort_parameters(
    recipe: OptimRecipe, net: nn.Module
) -> tuple[list[nn.Parameter], list[nn.Parameter], list[nn.Parameter]]:
    """Return the biases of batch normalisation, the decayed parameters, the undecayed ones."""
    own_norm_biases = {
        id(module.bias)
        for module in net.modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm)
    }
    norm_biases, decayed, undecayed = [], [], []
    for parameter in net.parameters():
        if not parameter.requires_grad:
            continue
        if id(parameter) in own_norm_biases:
            norm_biases.append(parameter)
        elif parameter.ndim > 1 or recipe.is_decay_on_biases:
            decayed.append(parameter)
        else:
            undecayed.append(parameter)
    return norm_biases, decayed, undecayed
