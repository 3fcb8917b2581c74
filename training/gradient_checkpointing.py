"""Gradient checkpointing: activations computed twice, so that few are kept (arXiv 1604.06174)."""

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from training.batch_norms import keep_batch_statistics
from training.errors import TrainingError


def checkpoint_gradients(net: nn.Module) -> None:
    """Let every chain of layers in `net` keep only about the root of its activations.

    Weights, their names and what is learned stay the same.

    Raises:
        TrainingError: the network has no `nn.Sequential` of two layers or more.
    """
    chains = list(_chains(net))
    if not chains:
        raise TrainingError(
            f"{type(net).__name__}: has no nn.Sequential that gradient checkpointing could cut"
        )
    for chain in chains:
        layers = list(chain)
        length = math.ceil(len(layers) / math.isqrt(len(layers)))
        parts = [nn.Sequential(*layers[at : at + length]) for at in range(0, len(layers), length)]
        # Not a module of its own, which would change the names of the weights.
        object.__setattr__(chain, "forward", partial(_forward, chain, parts))


def _chains(module: nn.Module) -> Iterator[nn.Sequential]:
    """Yield the outermost sequences, of stages rather those of their blocks."""
    for child in module.children():
        is_chain = isinstance(child, nn.Sequential) and len(child) > 1
        if is_chain and not all(isinstance(one, nn.Sequential) for one in child.children()):
            assert isinstance(child, nn.Sequential)
            yield child
        else:
            yield from _chains(child)


def _forward(chain: nn.Sequential, parts: list[nn.Sequential], images: Tensor) -> Tensor:
    if not (chain.training and torch.is_grad_enabled()):
        for part in parts:
            images = part(images)
        return images
    for part in parts:
        images = checkpoint(part, images, use_reentrant=False, context_fn=partial(_contexts, part))
    return images


def _contexts(part: nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    # Batch normalisation must not count the batch a second time.
    return nullcontext(), keep_batch_statistics(part)
