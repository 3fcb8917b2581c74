"""Gradient checkpointing: activations computed twice, so that few are kept (arXiv 1604.06174)."""

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

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
    return nullcontext(), _unchanged_statistics(part)


@contextmanager
def _unchanged_statistics(part: nn.Module) -> Iterator[None]:
    """Keep batch normalisation from counting the batch a second time."""
    norms = [one for one in part.modules() if isinstance(one, nn.modules.batchnorm._BatchNorm)]
    kept = [dict(norm._buffers) for norm in norms]
    for norm, buffers in zip(norms, kept, strict=True):
        copies = {key: None if one is None else one.clone() for key, one in buffers.items()}
        norm._buffers.update(copies)
    try:
        yield
    finally:
        for norm, buffers in zip(norms, kept, strict=True):
            norm._buffers.update(buffers)
