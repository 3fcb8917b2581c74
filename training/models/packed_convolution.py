"""A 3x3 convolution whose gradient by its weights is taken over mosaics of small images.

oneDNN's kernel for that gradient multiplies row by row of an image: with rows of 3 or 7 pixels most
of a tile of AMX, Intel's matrix unit, is padding. A row of a mosaic has 16 pixels.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

_MOSAIC_PX = 16
_gradients = torch.ops.aten.convolution_backward


class PackedConvolution(nn.Conv2d):
    """A 3x3 convolution with padding 1 and no bias; it computes what `nn.Conv2d` does.

    Only where it learns in bf16 on a processor with AMX is anything packed; elsewhere packing is
    not measured.
    """

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__(channels_in, channels_out, kernel_size=3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return float [N, out, H, W] of float [N, in, H, W]."""
        if not (self.training and x.dtype == torch.bfloat16 and _has_matrix_unit(x.device)):
            return super().forward(x)
        with torch.autocast("cpu", enabled=False):
            convolved: Tensor = Packed.apply(x, self.weight.to(x.dtype))
        return convolved


class Packed(torch.autograd.Function):
    """Convolution of [N, in, H, W] with [out, in, 3, 3], padded by 1."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        """Return [N, out, H, W]."""
        ctx.save_for_backward(x, weight)
        return functional.conv2d(x, weight, padding=1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor]:
        """Return the gradients by `x`, if it is wanted, and by `weight`."""
        x, weight = ctx.saved_tensors
        gradient = gradients[0].contiguous(memory_format=torch.channels_last)
        like = ([1, 1], [1, 1], [1, 1], False, [0, 0], 1)
        wants_x = ctx.needs_input_grad[0]
        by_x = _gradients(gradient, x, weight, None, *like, [wants_x, False, False])[0]
        side = _MOSAIC_PX // (max(x.shape[2:]) + 1)
        if side > 1 and len(x) % side**2 == 0:
            gradient, x = pack(gradient, side), pack(x, side)
        by_weight = _gradients(gradient, x, weight, None, *like, [False, True, False])[1]
        return by_x, by_weight


def pack(x: Tensor, side: int) -> Tensor:
    """Return mosaics of side x side images, a row and a column of zeros behind each image.

    [N, C, H, W] -> [N / side^2, C, side * (H + 1), side * (W + 1)], laid out as channels_last.
    """
    images, channels, height, width = x.shape
    mosaics = images // side**2
    tiles = x.permute(0, 2, 3, 1).reshape(mosaics, side, side, height, width, channels)
    packed = x.new_zeros(mosaics, side, height + 1, side, width + 1, channels)
    packed[:, :, :height, :, :width] = tiles.permute(0, 1, 3, 2, 4, 5)
    rows = packed.view(mosaics, side * (height + 1), side * (width + 1), channels)
    return rows.permute(0, 3, 1, 2)


def _has_matrix_unit(device: torch.device) -> bool:
    return device.type == "cpu" and bool(torch.cpu.get_capabilities().get("amx_bf16"))
