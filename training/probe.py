"""What goes on inside a network: the variance of every layer, and rectified units that are dead.

A unit is a channel of a picture [N, C, H, W] or a feature [N, D]. It is dead when it is 0 for all
images and places that are shown: its gradient is 0, so it learns nothing any more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from training.batch_norms import batch_norms, keep_batch_statistics

aten = torch.ops.aten
_RECTIFIERS = {aten.relu, aten.relu_, aten.threshold, aten.threshold_}
# ReLU6 is one of these, with bounds.
_CLAMPS = {aten.hardtanh, aten.hardtanh_}
_LAYERS = (nn.Conv2d, nn.Linear, nn.GELU, nn.SiLU)


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerProbe:
    """One layer on one batch.

    Attributes:
        name: of the module in the network; of a rectifier, of the one that calls it.
        kind: of the layer, as `Conv2d`.
        mean: of its output.
        variance: of its output.
        dead_share: of a ReLU, the share of units that are dead; None for other layers.
    """

    name: str
    kind: str
    mean: float
    variance: float
    dead_share: float | None


class ReluWatch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While it is entered, looks at what every ReLU puts out, whichever way it is called.

    Args:
        on_relu: is given the output of each, and which of its units are dead, bool [C].
    """

    def __init__(self, on_relu: Callable[[Tensor, Tensor], None] | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._on_relu = on_relu
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
        if _is_rectifier(func, args) and isinstance(out, Tensor) and out.ndim > 1:
            dead = (out <= 0).transpose(0, 1).flatten(1).all(dim=1)
            self._units += len(dead)
            self._dead += int(dead.sum())
            if self._on_relu is not None:
                self._on_relu(out, dead)
        return out


@torch.no_grad()
def probe_layers(net: nn.Module, images: Tensor) -> tuple[LayerProbe, ...]:
    """Return what the layers of `net` put out for `images`, in the order of their computation.

    The network is left as it is: it is looked at in evaluation mode, but batch normalisation sees
    the batch as in training, so that the start of a run is not hidden by statistics of 0 and 1.
    """
    seen: list[LayerProbe] = []
    running = [""]

    def enter(name: str) -> Callable[[nn.Module, Any], None]:
        return lambda _module, _inputs: running.append(name)

    def leave(module: nn.Module, _inputs: Any, output: Any) -> None:
        name = running.pop()
        if isinstance(module, _LAYERS):
            seen.append(_measured(name, type(module).__name__, output))

    def note_relu(output: Tensor, dead: Tensor) -> None:
        seen.append(_measured(running[-1], "ReLU", output, float(dead.float().mean())))

    handles = []
    for name, module in net.named_modules():
        handles.append(module.register_forward_pre_hook(enter(name)))
        handles.append(module.register_forward_hook(leave))
    try:
        with _batch_statistics(net), ReluWatch(note_relu):
            net(images)
    finally:
        for handle in handles:
            handle.remove()
    return tuple(seen)


def describe_probe(layers: tuple[LayerProbe, ...]) -> str:
    """Return a table, a line a layer."""
    width = max((len(one.name) for one in layers), default=5)
    lines = [f"{'layer':<{width}}  {'kind':<8} {'mean':>10} {'variance':>10} dead"]
    for one in layers:
        dead = "" if one.dead_share is None else f"{one.dead_share:5.1%}"
        lines.append(
            f"{one.name:<{width}}  {one.kind:<8} {one.mean:>10.3g} {one.variance:>10.3g} {dead}"
        )
    return "\n".join(lines)


def probe_to_dict(layers: tuple[LayerProbe, ...]) -> list[Mapping[str, Any]]:
    """Return plain JSON values."""
    return [asdict(one) for one in layers]


def _is_rectifier(func: Any, args: Sequence[Any]) -> bool:
    is_clamp = func.overloadpacket in _CLAMPS and len(args) > 1 and args[1] == 0
    return is_clamp or func.overloadpacket in _RECTIFIERS


def _measured(name: str, kind: str, output: Tensor, dead_share: float | None = None) -> LayerProbe:
    values = output.float()
    return LayerProbe(
        name=name,
        kind=kind,
        mean=float(values.mean()),
        variance=float(values.var(correction=0)),
        dead_share=dead_share,
    )


@contextmanager
def _batch_statistics(net: nn.Module) -> Iterator[None]:
    modes = {module: module.training for module in net.modules()}
    net.eval()
    for norm in batch_norms(net):
        norm.train()
    try:
        with keep_batch_statistics(net):
            yield
    finally:
        for module, is_training in modes.items():
            module.training = is_training
