"""Weights in 16 bits in the file, in 32 as soon as it is loaded.

A file half as large at no cost where it serves: runtimes widen constants once, while they load, and
everything is computed in float32 as before. What the weights lose is lost before anything is
measured, so calibration, gates and accuracy are of the network that is served.
"""

import copy
from collections.abc import Iterator
from typing import TypeVar

from torch import Tensor, nn
from torch.nn.utils import parametrize

from training.errors import TrainingError

_Module = TypeVar("_Module", bound=nn.Module)

# The exporter widens smaller ones itself, and there is little to save.
_MIN_WEIGHTS = 10_000


def round_to_half(network: nn.Module) -> nn.Module:
    """Returns a float32 copy of the network whose large weights are float16's numbers.

    Raises:
        TrainingError: A weight is too large for float16.
    """
    rounded = copy.deepcopy(network)
    for name, layer in _with_large_weights(rounded):
        halved = layer.weight.detach().half()
        if not halved.isfinite().all():
            raise TrainingError(f"{name}.weight is too large for 16 bits (over 65,504)")
        layer.weight.data = halved.float()
    return rounded


def stored_in_half(network: _Module) -> _Module:
    """Returns a copy of a rounded network, or of a graph around it, with float16 weights."""
    stored = copy.deepcopy(network)
    for _, layer in _with_large_weights(stored):
        layer.weight = nn.Parameter(layer.weight.detach().half(), requires_grad=False)
        # Unsafe because the type changes, which is what this is for.
        parametrize.register_parametrization(layer, "weight", _Widened(), unsafe=True)
    return stored


class _Widened(nn.Module):
    """What is kept in float16 and used in float32."""

    def forward(self, kept: Tensor) -> Tensor:
        return kept.float()


def _with_large_weights(network: nn.Module) -> Iterator[tuple[str, nn.Conv2d | nn.Linear]]:
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear) and module.weight.numel() >= _MIN_WEIGHTS:
            yield name, module
