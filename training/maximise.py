"""What a unit looks for: patches of real images that excite it most, and an image made for it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from training.attribution import recording
from training.layer_trace import trace_layers
from training.models.normalise import Normalise

_BATCH = 32
_JITTER_PX = 4
# Each level of a made image is so many times coarser than it.
_CELLS_PX = (2, 4, 8, 16)


@dataclass(frozen=True, slots=True, kw_only=True)
class Patch:
    """The part of an image that an output of a unit sees: uint8 [h, w, 3]."""

    image: int
    activation: float
    pixels: NDArray[np.uint8]


def strongest_patches(
    net: nn.Module,
    normalise: Normalise,
    views: NDArray[np.uint8],
    layer: str,
    channels: Sequence[int],
    count: int,
) -> dict[int, list[Patch]]:
    """Returns for each channel of a layer the patches that excite it most, one an image.

    Args:
        net: In evaluation mode.
        normalise: Of its images.
        views: uint8 [N, H, W, 3].
        layer: Its name; a patch is its receptive field, or the whole view where that is unknown.
        channels: Which of its maps.
        count: Patches for each.

    Raises:
        TrainingError: There is no such layer, or it puts out no maps.
    """
    peaks, places = [], []
    with torch.no_grad(), recording(net, [layer]) as kept:
        for some in torch.split(torch.from_numpy(views), _BATCH):
            net(normalise(some))
            maps = kept[layer][:, list(channels)]
            peak, place = maps.flatten(2).max(dim=2)
            peaks.append(peak)
            places.append(place)
    width = int(kept[layer].shape[3])
    strength, place = torch.cat(peaks), torch.cat(places)
    cut = _field_cutter(net, layer, views.shape[1:3])
    found: dict[int, list[Patch]] = {}
    for column, channel in enumerate(channels):
        best = strength[:, column].topk(min(count, len(views))).indices.tolist()
        found[channel] = [
            Patch(
                image=image,
                activation=float(strength[image, column]),
                pixels=cut(views[image], *divmod(int(place[image, column]), width)),
            )
            for image in best
        ]
    return found


def maximise(
    net: nn.Module,
    normalise: Normalise,
    size: tuple[int, int],
    objective: Callable[[Tensor], Tensor],
    count: int,
    *,
    steps: int = 96,
    seed: int = 0,
) -> NDArray[np.uint8]:
    """Returns images that make an objective large, uint8 [count, H, W, 3], by gradient ascent.

    The image is a sum of coarse and fine ones and is moved by some pixels at every step, or the
    answer would be noise (Olah 2017, distill.pub/2017/feature-visualization).

    Args:
        net: In evaluation mode.
        normalise: Of its images.
        size: Height and width.
        objective: Maps normalised images [count, 3, H, W] to a number for each, [count].
        count: How many images.
        steps: Of the ascent.
        seed: Of the grey noise it starts from.
    """
    generator = torch.Generator().manual_seed(seed)
    levels = [
        (0.1 * torch.randn(count, 3, *(-(-side // cell) for side in size), generator=generator))
        for cell in _CELLS_PX
    ]
    optimizer = torch.optim.Adam([one.requires_grad_() for one in levels], lr=0.1)

    def draw() -> Tensor:
        # Sigmoids of the sum are the pixels, so that they stay in range.
        scaled = [functional.interpolate(one, size, mode="bilinear") for one in levels]
        return torch.stack(scaled).sum(dim=0).sigmoid()

    parameters = [one for one in net.parameters() if one.requires_grad]
    for one in parameters:
        one.requires_grad_(False)
    for _ in range(steps):
        pixels = draw()
        down, across = torch.randint(-_JITTER_PX, _JITTER_PX + 1, (2,), generator=generator)
        moved = pixels.roll((int(down), int(across)), dims=(2, 3))
        seen = 255 * moved * normalise.scale + normalise.shift
        loss = -objective(seen).sum()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    for one in parameters:
        one.requires_grad_(True)
    with torch.no_grad():
        made = (draw() * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()
    found: NDArray[np.uint8] = made.numpy()
    return found


def _field_cutter(
    net: nn.Module, layer: str, size: tuple[int, ...]
) -> Callable[[NDArray[np.uint8], int, int], NDArray[np.uint8]]:
    """Returns a function that cuts what the output at (row, column) of a layer sees."""
    height, width = size
    rows = trace_layers(copy.deepcopy(net).to("meta"), (height, width))
    fields = [row.fields for row in rows if row.path == layer]

    def span(field: object, place: int, length: int) -> slice:
        offset, stride, extent = (getattr(field, key) for key in ("offset", "stride", "size"))
        start = round(offset + place * stride)
        # Beyond the border there is padding: the patch is cut there, but never to nothing.
        return slice(min(max(0, start), length - 1), max(1, min(length, round(start + extent))))

    def cut(view: NDArray[np.uint8], row: int, column: int) -> NDArray[np.uint8]:
        if not fields or fields[-1][0].stride == 0:
            return view
        down, across = fields[-1]
        return view[span(down, row, height), span(across, column, width)]

    return cut
