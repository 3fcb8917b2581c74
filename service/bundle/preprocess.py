"""Encoded bytes -> the views that a model sees: the one implementation of preprocessing.

Resize and crop round as torchvision's `Resize` and `CenterCrop` on PIL images, pixel for pixel
(tests/bundle/test_preprocess.py). Normalisation is not here: it is in the model's graph.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from service.bundle.decode import Limits, decode
from service.bundle.manifest import Preprocess, TtaPolicy
from service.bundle.simd_resize import resize_box

Views = NDArray[np.uint8]
Anchor = Literal[
    "centre", "centre_of_mirrored", "top_left", "top_right", "bottom_left", "bottom_right"
]

_RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}

# With `jpeg_scaled_decode` the decoder keeps at least twice the pixels that the resize needs:
# half the difference to a full decode for a third of the gain (docs/decisions.md).
_SCALED_DECODE_MARGIN = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """One crop of the resized image; `scale` multiplies the bundle's resize size."""

    anchor: Anchor = "centre"
    flip: bool = False
    scale: float = 1.0


_FIVE: tuple[Anchor, ...] = ("top_left", "top_right", "bottom_left", "bottom_right", "centre")
# torchvision's TenCrop mirrors the image and then crops it; this is the same, in the same order.
_FIVE_OF_MIRRORED: tuple[Anchor, ...] = (
    *("top_right", "top_left", "bottom_right", "bottom_left"),
    "centre_of_mirrored",
)

TTA_POLICIES: dict[TtaPolicy, tuple[View, ...]] = {
    "none": (View(),),
    "hflip": (View(), View(flip=True)),
    "five_crop": tuple(View(anchor=anchor) for anchor in _FIVE),
    "ten_crop": (
        *(View(anchor=anchor) for anchor in _FIVE),
        *(View(anchor=anchor, flip=True) for anchor in _FIVE_OF_MIRRORED),
    ),
    "multi_scale": tuple(
        View(scale=scale, flip=flip) for scale in (1.0, 1.15, 1.3) for flip in (False, True)
    ),
}


# What two models have to have in common for their views to be the same.
Way = tuple[Preprocess, TtaPolicy]


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedImage:
    """The views of one image, uint8 [V, H, W, 3] RGB, with facts of the file they came from.

    What `is_shared` was made for several models at once: the time it took is not that of one.
    """

    views: Views
    width: int
    height: int
    format: str
    is_shared: bool = False


def count_views(policy: TtaPolicy) -> int:
    """Returns how many views a test-time augmentation policy makes of one image."""
    return len(TTA_POLICIES[policy])


def is_tta_policy(name: str) -> bool:
    """Whether `name` is a known test-time augmentation policy."""
    return name in TTA_POLICIES


def prepare(
    data: bytes, preprocess: Preprocess, *, tta: TtaPolicy = "none", limits: Limits
) -> PreparedImage:
    """Returns the views of the encoded image `data`, uint8 [V, H, W, 3].

    Raises:
        RequestError: As `service.bundle.decode.decode`.
    """
    way = preprocess, tta
    return prepare_all(data, (way,), limits=limits)[way]


def prepare_all(data: bytes, ways: Iterable[Way], *, limits: Limits) -> dict[Way, PreparedImage]:
    """Returns the views of the encoded image `data` for each way; decodes once those that agree.

    Raises:
        RequestError: As `service.bundle.decode.decode`.
    """
    prepared = {}
    for decoding, same in group_by_decoding(ways).items():
        image = decode(data, limits, **decoding._asdict())
        for preprocess, tta in same:
            prepared[preprocess, tta] = PreparedImage(
                views=cut_views(image.rgb, preprocess, tta=tta),
                width=image.width,
                height=image.height,
                format=image.format,
            )
    return prepared


class Decoding(NamedTuple):
    """How a file is decoded; see `service.bundle.decode.decode`."""

    background: tuple[int, int, int]
    scaled_to: tuple[int, int] | None
    to_srgb: bool


def group_by_decoding(ways: Iterable[Way]) -> dict[Decoding, list[Way]]:
    """Returns the ways, each once, by what the decoder has to do for them."""
    groups: dict[Decoding, list[Way]] = {}
    for preprocess, tta in dict.fromkeys(ways):
        margin = preprocess.resize.size * _SCALED_DECODE_MARGIN
        decoding = Decoding(
            background=preprocess.background,
            scaled_to=(margin, margin) if preprocess.jpeg_scaled_decode else None,
            to_srgb=preprocess.colour_profile == "convert_to_srgb",
        )
        groups.setdefault(decoding, []).append((preprocess, tta))
    return groups


def cut_views(rgb: Image.Image, preprocess: Preprocess, *, tta: TtaPolicy = "none") -> Views:
    """Returns the views of an upright RGB image, uint8 [V, H, W, 3]."""
    cuts: dict[tuple[float, Anchor], Views] = {}
    resized = cache(lambda scale: resize(rgb, preprocess, scale))
    views = []
    for view in TTA_POLICIES[tta]:
        key = view.scale, view.anchor
        if key not in cuts:
            if _resizes_crop_only(preprocess):
                crop = _resize_crop(rgb, preprocess, view)
            else:
                crop = _crop(resized(view.scale), preprocess, view.anchor)
            cuts[key] = np.asarray(crop)
        views.append(cuts[key][:, ::-1] if view.flip else cuts[key])
    return views[0][None] if len(views) == 1 else np.stack(views)


def resized_size(width: int, height: int, preprocess: Preprocess, scale: float) -> tuple[int, int]:
    """Returns (width, height) after the resize, rounded as torchvision rounds."""
    size = int(preprocess.resize.size * scale)
    if preprocess.resize.policy == "squash":
        return size, size
    shorter_side = preprocess.resize.policy == "shorter_side"
    # torchvision truncates the other side: transforms/functional.py, _compute_resized_output_size.
    if (width <= height) == shorter_side:
        return size, max(1, int(size * height / width))
    return max(1, int(size * width / height)), size


def _offset(view: Anchor, width: int, height: int, preprocess: Preprocess) -> tuple[int, int]:
    """Returns (left, top) of a crop; round() to even is what torchvision's CenterCrop does."""
    right, bottom = width - preprocess.crop.width, height - preprocess.crop.height
    if view == "centre":
        return round(right / 2.0), round(bottom / 2.0)
    if view == "centre_of_mirrored":
        return right - round(right / 2.0), round(bottom / 2.0)
    return (right if view.endswith("right") else 0), (bottom if view.startswith("bottom") else 0)


def resize(rgb: Image.Image, preprocess: Preprocess, scale: float = 1.0) -> Image.Image:
    """Returns the image that crops are cut from; of one that it returned, that image itself."""
    size = resized_size(*rgb.size, preprocess, scale)
    interpolation = preprocess.resize.interpolation
    if rgb.size == size:
        resized = rgb
    elif preprocess.simd_resize:
        resized = resize_box(rgb, size, interpolation, (0, 0, *rgb.size))
    else:
        resized = rgb.resize(size, _RESAMPLING[interpolation])
    if preprocess.resize.policy != "longer_side_pad":
        return resized
    side = int(preprocess.resize.size * scale)
    square = Image.new("RGB", (side, side), preprocess.background)
    square.paste(resized, ((side - size[0]) // 2, (side - size[1]) // 2))
    return square


def _crop(resized: Image.Image, preprocess: Preprocess, anchor: Anchor) -> Image.Image:
    left, top = _offset(anchor, *resized.size, preprocess)
    box = left, top, left + preprocess.crop.width, top + preprocess.crop.height
    return resized if box == (0, 0, *resized.size) else resized.crop(box)


def _resizes_crop_only(preprocess: Preprocess) -> bool:
    wanted = preprocess.crop_only_resize or preprocess.simd_resize
    return wanted and preprocess.resize.policy != "longer_side_pad"


def _resize_crop(rgb: Image.Image, preprocess: Preprocess, view: View) -> Image.Image:
    """Returns `_crop(resize(rgb))` without computing the pixels outside the crop."""
    width, height = resized_size(*rgb.size, preprocess, view.scale)
    left, top = _offset(view.anchor, width, height, preprocess)
    crop = preprocess.crop
    across, down = rgb.width / width, rgb.height / height
    box = (
        left * across,
        top * down,
        min((left + crop.width) * across, rgb.width),
        min((top + crop.height) * down, rgb.height),
    )
    size = crop.width, crop.height
    if preprocess.simd_resize:
        return resize_box(rgb, size, preprocess.resize.interpolation, box)
    return rgb.resize(size, _RESAMPLING[preprocess.resize.interpolation], box=box)
