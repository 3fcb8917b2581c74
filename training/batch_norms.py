"""The layers of batch normalisation in a network."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

BatchNorm = nn.modules.batchnorm._BatchNorm


def batch_norms(net: nn.Module) -> list[BatchNorm]:
    """Return them, of any number of dimensions."""
    return [one for one in net.modules() if isinstance(one, BatchNorm)]


@contextmanager
def keep_batch_statistics(net: nn.Module) -> Iterator[None]:
    """Let batches go through `net` within without counting them in the running statistics."""
    norms = batch_norms(net)
    kept = [dict(norm._buffers) for norm in norms]
    for norm, buffers in zip(norms, kept, strict=True):
        copies = {key: None if one is None else one.clone() for key, one in buffers.items()}
        norm._buffers.update(copies)
    try:
        yield
    finally:
        for norm, buffers in zip(norms, kept, strict=True):
            norm._buffers.update(buffers)
