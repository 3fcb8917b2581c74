"""Sheets of small pictures, as RGB images."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

_GAP_PX = 4
_TEXT_PX = 14
_FONT_PX = 11


def grey(values: NDArray[np.floating]) -> Image.Image:
    """Returns a map [h, w] as grey, its least black and its largest white."""
    low, high = float(values.min()), float(values.max())
    scaled = (values - low) / (high - low) if high > low else np.zeros_like(values)
    return Image.fromarray((scaled * 255).round().astype(np.uint8)).convert("RGB")


def clipped(values: NDArray[np.floating], percent: float = 99) -> NDArray[np.floating]:
    """Returns a map with its few largest values cut off, which would leave the rest black."""
    limit = float(np.percentile(values, percent))
    return np.minimum(values, limit) if limit > 0 else values


def signed(values: NDArray[np.floating]) -> Image.Image:
    """Returns a map [h, w] with what is above 0 in red and what is below in blue, 0 white."""
    most = float(np.percentile(np.abs(values), 99)) or 1.0
    share = (values / most).clip(-1, 1)[:, :, None]
    red, blue = np.array([178.0, 24.0, 43.0]), np.array([33.0, 102.0, 172.0])
    colour = np.where(share > 0, red, blue)
    mixed = 255 * (1 - np.abs(share)) + colour * np.abs(share)
    return Image.fromarray(mixed.round().astype(np.uint8))


def enlarge(picture: Image.Image, side: int) -> Image.Image:
    """Returns the picture with its longer side `side` pixels, its own pixels sharp."""
    factor = side / max(picture.size)
    size = max(1, round(picture.width * factor)), max(1, round(picture.height * factor))
    smooth = Image.Resampling.LANCZOS if factor < 1 else Image.Resampling.NEAREST
    return picture.resize(size, smooth)


def sheet(
    pictures: Sequence[Image.Image],
    *,
    columns: int,
    side: int,
    captions: Sequence[str] = (),
) -> Image.Image:
    """Returns the pictures in rows, each enlarged into a square, with its caption below."""
    text = _TEXT_PX if captions else 0
    rows = max(1, -(-len(pictures) // columns))
    across, down = side + _GAP_PX, side + text + _GAP_PX
    whole = Image.new("RGB", (columns * across + _GAP_PX, rows * down + _GAP_PX), "white")
    draw = ImageDraw.Draw(whole)
    font = ImageFont.load_default(_FONT_PX)
    for place, picture in enumerate(pictures):
        left, top = _GAP_PX + place % columns * across, _GAP_PX + place // columns * down
        whole.paste(enlarge(picture, side), (left, top))
        if captions:
            caption = captions[place]
            while font.getlength(caption) > side and len(caption) > 4:
                caption = caption[:-2] + "…"
            draw.text((left, top + side), caption, fill="black", font=font)
    return whole
