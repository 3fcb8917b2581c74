"""What goes on inside a network: variance of every layer, dead ReLUs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from training.batch_norms import batch_norms, keep_batch_statistics

_LAYERS = (nn.Conv2d, nn.Linear, nn.ReLU, nn.ReLU6, nn.GELU, nn.SiLU)
_RECTIFIERS = (nn.ReLU, nn.ReLU6)


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerProbe:
    """One layer on one batch.

    Attributes:
        name: of the module in the network.
        kind: of the layer, as `Conv2d`.
        mean: of its output.
        variance: of its output.
        dead_share: of a ReLU, the share of channels that are 0 at every place of every image;
            None for other layers.
    """

    name: str
    kind: str
    mean: float
    variance: float
    dead_share: float | None


@torch.no_grad()
def probe_layers(net: nn.Module, images: Tensor) -> tuple[LayerProbe, ...]:
    """Return what the layers of `net` put out for `images`, in the order of their computation.

    The network is left as it is: it is looked at in evaluation mode, but batch normalisation sees
    the batch as in training, so that the start of a run is not hidden by statistics of 0 and 1.
    """
    seen: dict[str, LayerProbe] = {}
    handles = [
        module.register_forward_hook(_record(seen, name))
        for name, module in net.named_modules()
        if isinstance(module, _LAYERS)
    ]
    try:
        with _batch_statistics(net):
            net(images)
    finally:
        for handle in handles:
            handle.remove()
    return tuple(seen.values())


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


def _record(seen: dict[str, LayerProbe], name: str) -> Any:
    def hook(module: nn.Module, _: object, output: Tensor) -> None:
        values = output.float()
        channels = values.transpose(0, 1).flatten(1) if values.ndim > 1 else values[None]
        is_rectifier = isinstance(module, _RECTIFIERS)
        # A module that is used several times is told of once, the last time.
        seen[name] = LayerProbe(
            name=name,
            kind=type(module).__name__,
            mean=float(values.mean()),
            variance=float(values.var(correction=0)),
            dead_share=float((channels <= 0).all(dim=1).float().mean()) if is_rectifier else None,
        )

    return hook


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
