"""Resizing with the processor's vector instructions, for bundles that declare `simd_resize`.

The filters are Pillow's: a triangle, Catmull-Rom (a = -0.5) or Lanczos of three lobes, widened when
the image shrinks. The sums are fixed-point with fewer bits than Pillow's, the same whichever
instructions the processor has (tests/bundle/test_simd_resize.py), so a bundle gives the same views
everywhere.
"""

from __future__ import annotations

from typing import Literal

from cykooz_resizer import CropBox, FilterType, ResizeAlg, ResizeOptions, Resizer
from PIL import Image

Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos"]

_FILTERS = {
    "bilinear": FilterType.bilinear,
    "bicubic": FilterType.catmull_rom,
    "lanczos": FilterType.lanczos3,
}


def resize_box(
    rgb: Image.Image,
    size: tuple[int, int],
    interpolation: Interpolation,
    box: tuple[float, float, float, float],
) -> Image.Image:
    """Returns what `rgb.resize(size, interpolation, box=box)` returns, but for rounding.

    Args:
        rgb: An RGB image.
        size: (width, height) of the result, in pixels.
        interpolation: Any but `nearest`.
        box: (left, top, right, bottom) of the source that is resized, in pixels.
    """
    left, top, right, bottom = box
    resized = Image.new("RGB", size)
    # A resizer serves one thread at a time, and a new one costs nothing measurable.
    Resizer().resize_pil(
        rgb,
        resized,
        ResizeOptions(
            resize_alg=ResizeAlg.convolution(_FILTERS[interpolation]),
            crop_box=CropBox(left, top, right - left, bottom - top),
        ),
    )
    return resized
