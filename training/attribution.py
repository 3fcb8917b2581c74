"""Which pixels speak for a class, by the gradient of its logit.

Images are normalised float [1, 3, H, W], networks are in evaluation mode, and a map is float32
[H, W], or [h, w] of the layer it was taken from.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from training.errors import TrainingError

Map = NDArray[np.float32]

# Of the range of the image (Smilkov 2017, arXiv 1706.03825, section 3.1: 10 to 20 %).
_NOISE = 0.15
_BATCH = 16


def saliency(net: nn.Module, image: Tensor, index: int) -> Map:
    """Returns the largest gradient of the three channels (Simonyan 2013, arXiv 1312.6034)."""
    return _magnitude(input_gradients(net, image, index)[0])


def smooth_grad(
    net: nn.Module, image: Tensor, index: int, *, samples: int = 32, seed: int = 0
) -> Map:
    """Returns the saliency of the mean gradient around the image (Smilkov 2017)."""
    generator = torch.Generator().manual_seed(seed)
    spread = _NOISE * float(image.max() - image.min())
    noise = torch.randn(samples, *image.shape[1:], generator=generator)
    return _magnitude(input_gradients(net, image + spread * noise, index).mean(dim=0))


def integrated_gradients(
    net: nn.Module, image: Tensor, index: int, *, baseline: Tensor | None = None, steps: int = 64
) -> Map:
    """Returns what each pixel adds to the logit (Sundararajan 2017, arXiv 1703.01365).

    Their sum is by how much the logit exceeds that of the baseline, up to the error of `steps`.

    Args:
        net: Maps images to logits.
        image: Of which the logit is explained.
        index: The class.
        baseline: What says nothing; by default the mean colour, 0 after normalisation.
        steps: Points of the straight path between them, at the middle of equal parts.
    """
    start = torch.zeros_like(image) if baseline is None else baseline
    share = ((torch.arange(steps) + 0.5) / steps).view(-1, 1, 1, 1)
    gradient = input_gradients(net, start + share * (image - start), index).mean(dim=0)
    found: Map = ((image - start)[0] * gradient).sum(dim=0).numpy()
    return found


def grad_cam(net: nn.Module, image: Tensor, index: int, layer: str) -> Map:
    """Returns the weighted maps of a layer that speak for the class (arXiv 1610.02391).

    Raises:
        TrainingError: There is no such layer, or it puts out no maps.
    """
    with _plain(net), recording(net, [layer]) as kept:
        logit = net(image.clone().requires_grad_())[0, index]
        (maps,) = torch.autograd.grad(logit, kept[layer])
    weights = maps[0].mean(dim=(1, 2))
    evidence = (weights[:, None, None] * kept[layer][0].detach()).sum(dim=0)
    found: Map = evidence.clamp_min(0).numpy()
    return found


def input_gradients(net: nn.Module, images: Tensor, index: int) -> Tensor:
    """Returns the gradient of each image's logit, [N, 3, H, W]."""
    found = []
    with _plain(net):
        for some in torch.split(images, _BATCH):
            leaf = some.detach().clone().requires_grad_()
            (gradient,) = torch.autograd.grad(net(leaf)[:, index].sum(), leaf)
            found.append(gradient)
    return torch.cat(found)


def map_layers(net: nn.Module, image: Tensor) -> dict[str, tuple[int, ...]]:
    """Returns the shape [C, h, w] of what each innermost module puts out as maps, in order."""
    leaves = [name for name, one in net.named_modules() if name and not list(one.children())]
    with torch.no_grad(), recording(net, leaves, is_checked=False) as kept:
        net(image)
    return {
        name: tuple(out.shape[1:])
        for name, out in kept.items()
        if out.ndim == 4 and out.shape[2] * out.shape[3] > 1
    }


@contextmanager
def recording(
    net: nn.Module, layers: list[str], *, is_checked: bool = True
) -> Iterator[dict[str, Tensor]]:
    """Yields what the layers put out, by name, filled while the network runs.

    Raises:
        TrainingError: There is no such layer, or (when checked) it puts out no maps [N, C, h, w].
    """
    kept: dict[str, Tensor] = {}

    def keep(name: str) -> object:
        def hook(_module: nn.Module, _inputs: object, out: object) -> None:
            if isinstance(out, Tensor):
                kept.pop(name, None)  # of several calls the last, in its place
                kept[name] = out
            if is_checked and not (isinstance(out, Tensor) and out.ndim == 4):
                raise TrainingError(f"the layer {name} puts out no maps")

        return hook

    handles = []
    try:
        for name in layers:
            try:
                module = net.get_submodule(name)
            except AttributeError:
                raise TrainingError(f"the network has no layer {name!r}") from None
            handles.append(module.register_forward_hook(keep(name)))  # type: ignore[arg-type]
        yield kept
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _plain(net: nn.Module) -> Iterator[None]:
    """Lets no gradient be kept for the weights: only those of the image are wanted."""
    wanted = [one for one in net.parameters() if one.requires_grad]
    for one in wanted:
        one.requires_grad_(False)
    try:
        yield
    finally:
        for one in wanted:
            one.requires_grad_(True)


def _magnitude(gradient: Tensor) -> Map:
    largest: Map = gradient.abs().amax(dim=0).numpy()
    return largest
