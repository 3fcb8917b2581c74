"""Progressive resizing: early epochs see smaller images, which costs less."""

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional


def side_at(schedule: Sequence[tuple[float, int]], epochs: float) -> int:
    """Return the shorter side, in pixels, that images are shrunk to after `epochs`; 0 is none."""
    return next((side for epoch, side in reversed(schedule) if epochs >= epoch), 0)


def shrink(images: Tensor, side: int) -> Tensor:
    """Return float [B, 3, H, W] with the shorter of both sides `side` long; 0 leaves it."""
    if side == 0:
        return images
    shorter = min(images.shape[2:])
    size = [round(length * side / shorter) for length in images.shape[2:]]
    return functional.interpolate(images, size, mode="bilinear", antialias=True)
