"""The optimiser of a recipe, and its learning rate and momentum over time."""

import math
from itertools import groupby

import torch
from torch import nn

from training.batch_norms import batch_norms
from training.config import OptimRecipe


def build_optimizer(recipe: OptimRecipe, net: nn.Module) -> torch.optim.Optimizer:
    """Return the optimiser of the trainable parameters; groups keep their peak as `peak_lr`."""
    norm_biases, others, undecayed = _sort_parameters(recipe, net)
    scale, decay = recipe.norm_bias_lr_scale, recipe.weight_decay
    # Decay acts as lr x weight_decay, so the scale is divided out: all shrink at the same rate.
    norm_decay = decay / scale if recipe.is_decay_on_biases else 0.0
    kinds = [(norm_biases, scale, norm_decay), (others, 1.0, decay), (undecayed, 1.0, 0.0)]
    depth = {} if recipe.layer_decay == 1 else layer_lr_scales(net, recipe.layer_decay)
    groups = []
    for parameters, lr_scale, weight_decay in kinds:
        ranked = sorted(parameters, key=lambda parameter: depth.get(id(parameter), 1.0))
        for of_layer, members in groupby(ranked, key=lambda one: depth.get(id(one), 1.0)):
            lr = recipe.lr * lr_scale * of_layer
            groups.append(
                {"params": list(members), "lr": lr, "peak_lr": lr, "weight_decay": weight_decay}
            )
    if recipe.name == "adamw":
        return torch.optim.AdamW(groups, betas=recipe.betas, eps=recipe.eps)
    if recipe.name == "rmsprop":
        return torch.optim.RMSprop(
            groups, alpha=recipe.rmsprop_decay, momentum=recipe.momentum, eps=recipe.eps
        )
    return torch.optim.SGD(
        groups, lr=recipe.lr, momentum=recipe.momentum, nesterov=recipe.is_nesterov
    )


def set_lr(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Set every group to `factor` times its peak learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * factor


def set_momentum(optimizer: torch.optim.Optimizer, momentum: float) -> None:
    """Set the momentum of every group; for AdamW that is its first beta."""
    for group in optimizer.param_groups:
        if "betas" in group:
            group["betas"] = (momentum, group["betas"][1])
        else:
            group["momentum"] = momentum


def lr_factor(recipe: OptimRecipe, step: int, total_steps: int) -> float:
    """Return the share of the peak learning rate at `step`, counted from 0."""
    if recipe.schedule == "one_cycle":
        return _one_cycle(recipe, step, total_steps, recipe.start_factor, 1.0, recipe.end_factor)
    rise = int(recipe.warmup_fraction * total_steps)
    if step < rise:
        return recipe.start_factor + (1 - recipe.start_factor) * step / rise
    if recipe.schedule == "constant":
        return 1.0
    if recipe.schedule == "step":
        passed = sum(step >= milestone * total_steps for milestone in recipe.milestones)
        return recipe.step_factor**passed
    progress = (step - rise) / max(1, total_steps - rise)
    remaining = (
        1 - progress if recipe.schedule == "linear" else (1 + math.cos(math.pi * progress)) / 2
    )
    return recipe.end_factor + (1 - recipe.end_factor) * remaining


def momentum_at(recipe: OptimRecipe, step: int, total_steps: int) -> float | None:
    """Return the momentum at `step`, counted from 0; None if it stays as it is."""
    low = recipe.low_momentum
    if low is None:
        return None
    high = recipe.betas[0] if recipe.name == "adamw" else recipe.momentum
    return _one_cycle(recipe, step, total_steps, high, low, high)


def layer_lr_scales(net: nn.Module, decay: float) -> dict[int, float]:
    """Return the share of the learning rate of each parameter, by its id: 1 for the classifier.

    Every layer before it has `decay` times the share of the next one. What a layer is, timm says of
    its own networks; elsewhere it is a module with a weight matrix or a block of them.
    """
    backbone = getattr(net, "backbone", None)
    if backbone is not None and hasattr(backbone, "group_matcher"):
        # Takes seconds, and other networks do without.
        from timm.optim._param_groups import param_groups_layer_decay

        groups = param_groups_layer_decay(backbone, layer_decay=decay)
        scales = {id(one): decay * group["lr_scale"] for group in groups for one in group["params"]}
        # timm numbers the layers up to the head, which is not in the backbone any more.
        highest = max(scales.values(), default=decay)
        return {key: scale * decay / highest for key, scale in scales.items()}
    layers: dict[str, int] = {}
    for name, parameter in net.named_parameters():
        # The normalisation behind a convolution is no layer of its own.
        if parameter.ndim > 1 or not layers:
            layers.setdefault(_layer_of(name), len(layers))
    shares, number = {}, 0
    for name, parameter in net.named_parameters():
        number = layers.get(_layer_of(name), number)
        shares[id(parameter)] = decay ** (len(layers) - 1 - number)
    return shares


def _layer_of(name: str) -> str:
    """Return the name of the block that a parameter is in, or of the module that has it."""
    parts = name.split(".")[:-1]
    numbers = [place for place, part in enumerate(parts) if part.isdigit()]
    # As in `stages.2.0.body.3`: the second number is that of the block.
    return ".".join(parts[: numbers[:2][-1] + 1] if numbers else parts)


def _one_cycle(
    recipe: OptimRecipe, step: int, total_steps: int, first: float, middle: float, last: float
) -> float:
    """Return a value that moves along two half cosines, as PyTorch's OneCycleLR has it."""
    top, end = recipe.warmup_fraction * total_steps - 1, total_steps - 1
    if step < top:
        return middle + (first - middle) * (1 + math.cos(math.pi * step / top)) / 2
    progress = (step - max(top, 0)) / max(1, end - max(top, 0))
    return last + (middle - last) * (1 + math.cos(math.pi * progress)) / 2


def _sort_parameters(
    recipe: OptimRecipe, net: nn.Module
) -> tuple[list[nn.Parameter], list[nn.Parameter], list[nn.Parameter]]:
    """Return the biases of batch normalisation, the decayed parameters, the undecayed ones."""
    own_norm_biases = {id(norm.bias) for norm in batch_norms(net)}
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
