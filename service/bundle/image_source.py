"""The forms that an image may come in: a file, its pixels, or the tensor that a client made."""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from service.bundle.decode_cost import estimate_decode_s
from service.bundle.manifest import Manifest, Normalisation, TtaPolicy
from service.bundle.preprocess import PreparedImage, Views, cut_views, prepare
from service.bundle.shared_image import SharedImage
from service.bundle.structure import Limits, check_size
from service.errors import ErrorCode, RequestError

# Seconds of the reference core of `decode_cost`; without a decoder a resize is what is left.
_EACH_S: Final = 0.5e-3
_S_A_BYTE: Final = 1.5e-9

# Of one level of 255. What was normalised in float32 is off by 1e-4 and in float16 by up to 0.2,
# while a tensor that was resized as floats has levels everywhere in between.
_LEVEL_TOLERANCE: Final = 0.25


@dataclass(frozen=True, slots=True, kw_only=True)
class PixelImage:
    """A decoded image: uint8 RGB in row-major order.

    Its shape is [height, width, 3], or [3, height, width] when `is_planar`.
    """

    content: bytes | memoryview
    width: int
    height: int
    is_planar: bool = False

    def __len__(self) -> int:
        """Returns the size in bytes."""
        return len(self.content)

    def to_array(self) -> NDArray[np.uint8]:
        """Returns the pixels as uint8 [height, width, 3], contiguous."""
        pixels = np.frombuffer(self.content, np.uint8)
        if not self.is_planar:
            return pixels.reshape(self.height, self.width, 3)
        planes = pixels.reshape(3, self.height, self.width)
        return np.ascontiguousarray(planes.transpose(1, 2, 0))


@dataclass(frozen=True, slots=True, kw_only=True)
class NormalisedView:
    """What a network sees: float32 [3, height, width] RGB, normalised as the manifest says."""

    content: bytes | memoryview
    width: int
    height: int

    def __len__(self) -> int:
        """Returns the size in bytes."""
        return len(self.content)


ImageSource = bytes | PixelImage | NormalisedView
# What a model is asked about: what a client sent, or what it has in common with other models.
AskedImage = ImageSource | SharedImage


def estimate_prepare_s(source: AskedImage, max_pixels: int) -> float:
    """Returns the CPU-seconds that `prepare_source` should take; see `decode_cost`."""
    if isinstance(source, bytes):
        return estimate_decode_s(source, max_pixels)
    if isinstance(source, SharedImage):
        return source.cost_share * estimate_decode_s(source.content, max_pixels)
    return _EACH_S + len(source) * _S_A_BYTE


def digest_source(source: AskedImage) -> bytes:
    """Returns what tells an image from any other, in whichever form."""
    if isinstance(source, SharedImage):
        return source.digest
    if isinstance(source, bytes):
        return hashlib.sha256(source).digest()
    content: bytes | memoryview = source.content
    if isinstance(source, PixelImage) and source.is_planar:
        content = source.to_array().data
    form = f"{type(source).__name__} {source.width} {source.height} ".encode()
    return hashlib.sha256(form + content).digest()


def encode_pixels(image: PixelImage) -> bytes:
    """Returns the image as a PNG, which loses nothing."""
    file = io.BytesIO()
    Image.fromarray(image.to_array()).save(file, "PNG", compress_level=1)
    return file.getvalue()


def prepare_source(
    source: AskedImage, manifest: Manifest, *, tta: TtaPolicy, limits: Limits
) -> PreparedImage:
    """Returns the views of an image, uint8 [V, H, W, 3], whichever form it came in.

    Pixels are resized and cropped as those of a file are. A normalised view is what that would
    have given: its pixels are recovered exactly, or it is refused.

    Raises:
        RequestError: As `service.bundle.preprocess.prepare`; `invalid_argument` for a view that is
            none of this model.
    """
    if isinstance(source, bytes):
        return prepare(source, manifest.preprocess, tta=tta, limits=limits)
    if isinstance(source, SharedImage):
        return source.prepare((manifest.preprocess, tta), limits)
    if isinstance(source, PixelImage):
        check_size(source.width, source.height, limits)
        views = cut_views(Image.fromarray(source.to_array()), manifest.preprocess, tta=tta)
    else:
        views = _recover_view(source, manifest, tta)
    form = "pixels" if isinstance(source, PixelImage) else "tensor"
    return PreparedImage(views=views, width=source.width, height=source.height, format=form)


def _recover_view(source: NormalisedView, manifest: Manifest, tta: TtaPolicy) -> Views:
    height, width = manifest.input.height, manifest.input.width
    if (source.height, source.width) != (height, width):
        raise _invalid(f"this model sees FP32 of the shape [3, {height}, {width}]")
    if tta != "none":
        raise _invalid("this model makes several views of an image: send the image")
    values = np.frombuffer(source.content, "<f4").reshape(3, height, width)
    with np.errstate(over="ignore", invalid="ignore"):
        levels = _denormalise(values, manifest.normalisation)
        pixels = np.rint(levels)
        distance = float(np.abs(levels - pixels).max())
    # A NaN compares false, so the comparison asks for what is right.
    if not (distance <= _LEVEL_TOLERANCE and pixels.min() >= 0 and pixels.max() <= 255):
        raise _invalid(
            "these are not 8-bit pixels, normalised with this model's mean and std: send UINT8 "
            "pixels or the image"
        )
    return np.ascontiguousarray(pixels.astype(np.uint8).transpose(1, 2, 0))[None]


def _denormalise(values: NDArray[np.float32], normalisation: Normalisation) -> NDArray[np.float32]:
    mean, std = (
        255 * np.array(one, np.float32).reshape(3, 1, 1)
        for one in (normalisation.mean, normalisation.std)
    )
    return values * std + mean


def _invalid(detail: str) -> RequestError:
    return RequestError(ErrorCode.INVALID_ARGUMENT, detail)
