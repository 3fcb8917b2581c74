"""Weight averaging: an EMA beside the network, or Lookahead that pulls the network back."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from training.config import AverageRecipe


class WeightAverage:
    """A slow copy of the network's floating-point state, batch statistics included.

    kind "ema": the copy follows the network, warmed up so that its random start is soon forgotten.
    kind "lookahead" (Zhang et al., arXiv 1907.08610, scheduled as in arXiv 2404.00498): every few
    steps the copy moves towards the network and the network is set to the copy; the copy grows more
    inert with the cube of the progress.
    kind "swa" (Izmailov et al., arXiv 1803.05407): the copy is the mean of the network after every
    few steps, from a share of the run on.
    """

    def __init__(self, recipe: AverageRecipe, net: nn.Module, total_steps: int) -> None:
        self._recipe = recipe
        self._total_steps = total_steps
        self.slow = {} if recipe.kind == "none" else _float_state(net, is_copied=True)

    @torch.no_grad()
    def update(self, net: nn.Module, step: int) -> None:
        """Take in the network after its `step`-th step, counted from 1."""
        if self._recipe.kind == "none" or step % self._recipe.every_steps:
            return
        if self._recipe.kind == "swa" and self._taken(step) < 1:
            return
        decay = self._decay(step)
        for key, fast in _float_state(net).items():
            self.slow[key].lerp_(fast, 1 - decay)
            if self._recipe.kind == "lookahead":
                fast.copy_(self.slow[key])

    @torch.no_grad()
    def finish(self, net: nn.Module) -> None:
        """Set the network to its average, once the last step is done."""
        if self._recipe.kind == "swa" and self._taken(self._total_steps) < 1:
            return
        for key, fast in _float_state(net).items():
            if key in self.slow:
                fast.copy_(self.slow[key])

    def evaluated_state(self, net: nn.Module) -> Mapping[str, Tensor]:
        """Return the state dict to evaluate in mid-run: the EMA's, else the network's own."""
        own: Mapping[str, Tensor] = net.state_dict()
        return {**own, **self.slow} if self._recipe.kind == "ema" else own

    def _taken(self, step: int) -> int:
        """Return how many networks the mean of "swa" holds after `step`."""
        every = self._recipe.every_steps
        return step // every - int(self._recipe.start_fraction * self._total_steps) // every

    def _decay(self, step: int) -> float:
        if self._recipe.kind == "ema":
            return min(self._recipe.decay, (1 + step) / (10 + step))
        if self._recipe.kind == "swa":
            return 1 - 1 / self._taken(step)
        return self._recipe.decay * (step / self._total_steps) ** 3


def _float_state(net: nn.Module, *, is_copied: bool = False) -> dict[str, Tensor]:
    return {
        key: value.detach().clone() if is_copied else value
        for key, value in net.state_dict().items()
        if value.is_floating_point()
    }
