"""Where in a view the evidence for a class lies: as a grid of numbers, and drawn over the view."""

from __future__ import annotations

import io
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from service.bundle.preprocess import Views

Grid = NDArray[np.float32]

# 7 x 7 cells, as the class activation map of most networks at 224 x 224 pixels. With the view
# itself that is 50 views: one batch of a GPU.
OCCLUSION_CELLS: Final = 7
OCCLUSION_VIEWS: Final = OCCLUSION_CELLS**2 + 1

_TINY: Final = np.finfo(np.float32).tiny
_SHOWN_SIDE: Final = 224
_STRONGEST: Final = 0.75
# From nothing to most, dark to light, so that it reads without colour vision too.
_RAMP: Final = np.array(
    [(20, 11, 53), (101, 21, 110), (188, 55, 84), (240, 112, 32), (251, 180, 26), (252, 255, 164)],
    np.float32,
)


def class_evidence(maps: NDArray[np.float32], index: int) -> Grid:
    """Returns the evidence for one class, float32 [h, w], of `cam` float32 [C, h, w].

    Relative to the mean over the classes, because a softmax only sees differences. The mean over
    the cells is the class's logit, relative in the same way.
    """
    evidence: Grid = maps[index] - maps.mean(axis=0)
    return evidence


def occlude(view: NDArray[np.uint8], colour: tuple[int, int, int]) -> Views:
    """Returns the view uint8 [H, W, 3] and its copies with one place each covered, row by row.

    A cover is twice as wide as a cell: what lies on the border of two is still covered once.
    """
    height, width, _ = view.shape
    views = np.repeat(view[None], OCCLUSION_VIEWS, axis=0)
    for row in range(OCCLUSION_CELLS):
        for column in range(OCCLUSION_CELLS):
            down, across = _span(row, height), _span(column, width)
            views[1 + row * OCCLUSION_CELLS + column, down, across] = colour
    return views


def occlusion_evidence(probabilities: NDArray[np.float32], index: int) -> Grid:
    """Returns by how many nats a class's log-probability falls when a cell is covered.

    Args:
        probabilities: float32 [50, C], of the views that `occlude` made.
        index: The class.
    """
    logs = np.log(np.maximum(probabilities[:, index], _TINY))
    evidence: Grid = (logs[0] - logs[1:]).reshape(OCCLUSION_CELLS, OCCLUSION_CELLS)
    return evidence


def draw_overlay(view: NDArray[np.uint8], evidence: Grid) -> bytes:
    """Returns a PNG of the view, uint8 [H, W, 3], with its evidence in colour over it.

    Small views are enlarged by a whole factor. Evidence against the class is not drawn.
    """
    factor = max(1, -(-_SHOWN_SIDE // min(view.shape[:2])))
    size = view.shape[1] * factor, view.shape[0] * factor
    picture = Image.fromarray(view).resize(size, Image.Resampling.NEAREST)
    heat = np.maximum(evidence, 0)
    heat = heat / max(float(heat.max()), float(_TINY))
    smooth = Image.fromarray(heat.astype(np.float32)).resize(size, Image.Resampling.BICUBIC)
    share = np.asarray(smooth).clip(0, 1)
    steps = np.arange(len(_RAMP)) / (len(_RAMP) - 1)
    colour = np.stack([np.interp(share, steps, channel) for channel in _RAMP.T], axis=2)
    # Where there is no evidence the picture shows through, greyed so that colour means evidence.
    grey = np.asarray(picture.convert("L"), np.float32)[:, :, None]
    opacity = _STRONGEST * np.sqrt(share)[:, :, None]
    blended = grey * (1 - opacity) + colour * opacity
    return _encode_png(blended.round().astype(np.uint8))


def draw_views(views: Views) -> tuple[bytes, ...]:
    """Returns a PNG of each view, pixel for pixel."""
    return tuple(map(_encode_png, views))


def _encode_png(pixels: NDArray[np.uint8]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def _span(cell: int, pixels: int) -> slice:
    """Returns the pixels of a cell and half a cell on either side."""
    wide = pixels / OCCLUSION_CELLS
    return slice(max(0, round((cell - 0.5) * wide)), round((cell + 1.5) * wide))
