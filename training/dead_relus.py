"""Rectified units that never fire: their gradient is 0, so they learn nothing any more."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten
_RECTIFIERS = {aten.relu, aten.relu_, aten.threshold, aten.threshold_}


class ReluWatch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While it is entered, looks at what every ReLU puts out, whichever way it is called.

    A unit is a channel of a picture [N, C, H, W] or a feature [N, D]; it is dead when it is 0 for
    all images and places that were shown.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._units = 0
        self._dead = 0

    @property
    def dead_share(self) -> float | None:
        """The share of dead units; None where there was no ReLU."""
        return self._dead / self._units if self._units else None

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        """Run the operator and look at what came out."""
        out = func(*args, **(kwargs or {}))
        if func.overloadpacket in _RECTIFIERS and isinstance(out, Tensor) and out.ndim > 1:
            dead = (out <= 0).transpose(0, 1).flatten(1).all(dim=1)
            self._units += len(dead)
            self._dead += int(dead.sum())
        return out
