"""Images as a client might send them instead: corrupted, turned, shifted, mirrored, small.

A perturbation changes an image at the size that its crops are cut from, and the result goes down
the served path again as a lossless file. So severity means the same for every photograph, and no
second preprocessing is needed.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, overload

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from service.bundle.decode import Limits, decode
from service.bundle.manifest import Preprocess
from service.bundle.preprocess import resize
from service.errors import RequestError
from training.data import Dataset
from training.errors import TrainingError

Corruption = Literal["noise", "blur", "jpeg", "brightness", "contrast"]
Axes = Literal["none", "horizontal", "vertical", "both"]
# Maps an RGB image and a generator that depends on the image's place alone to another image.
Perturb = Callable[[Image.Image, np.random.Generator], Image.Image]

SEVERITIES = 5
# Hendrycks and Dietterich 2019 (arXiv 1903.12261), as their code has them for ImageNet-C ...
_PHOTOGRAPH: dict[Corruption, tuple[float, ...]] = {
    "noise": (0.08, 0.12, 0.18, 0.26, 0.38),
    "blur": (1, 2, 3, 4, 6),
    "jpeg": (25, 18, 15, 10, 7),
    "brightness": (0.1, 0.2, 0.3, 0.4, 0.5),
    "contrast": (0.4, 0.3, 0.2, 0.1, 0.05),
}
# ... and for CIFAR-10-C, whose images have fewer pixels to spoil.
_THUMBNAIL: dict[Corruption, tuple[float, ...]] = {
    "noise": (0.04, 0.06, 0.08, 0.09, 0.10),
    "blur": (0.4, 0.6, 0.7, 0.8, 1.0),
    "jpeg": (80, 65, 58, 50, 40),
    "brightness": (0.05, 0.1, 0.15, 0.2, 0.3),
    "contrast": (0.75, 0.5, 0.4, 0.3, 0.15),
}
_THUMBNAIL_BELOW_PX = 64
CORRUPTIONS: tuple[Corruption, ...] = tuple(_PHOTOGRAPH)


@dataclass(frozen=True, slots=True, kw_only=True)
class _PerturbedImages(Sequence[bytes]):
    """The images of a data set, perturbed when they are asked for, as PNG files."""

    dataset: Dataset
    preprocess: Preprocess
    perturb: Perturb

    def __len__(self) -> int:
        return len(self.dataset)

    @overload
    def __getitem__(self, index: int) -> bytes: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[bytes]: ...

    def __getitem__(self, index: int | slice) -> bytes | Sequence[bytes]:
        if isinstance(index, slice):
            return [self[one] for one in range(*index.indices(len(self)))]
        try:
            data = self.dataset.image_bytes(index)
            rgb = decode(data, Limits(), background=self.preprocess.background).rgb
        except RequestError as error:
            raise TrainingError(f"{self.dataset.name}: image {index}: {error}") from error
        changed = self.perturb(resize(rgb, self.preprocess), np.random.default_rng(index))
        file = io.BytesIO()
        changed.save(file, "PNG", compress_level=1)
        return file.getvalue()


def perturbed(dataset: Dataset, preprocess: Preprocess, perturb: Perturb) -> Dataset:
    """Returns the data set with every image perturbed; each always in the same way."""
    images = _PerturbedImages(dataset=dataset, preprocess=preprocess, perturb=perturb)
    return replace(dataset, images=images)


def corrupt(kind: Corruption, severity: int, pixels: int) -> Perturb:
    """Returns one of the common corruptions.

    Args:
        kind: Which.
        severity: 1 to 5.
        pixels: Shorter side of the model's input; small images are spoiled less.
    """
    table = _THUMBNAIL if pixels < _THUMBNAIL_BELOW_PX else _PHOTOGRAPH
    amount = table[kind][severity - 1]
    if kind == "blur":
        return lambda image, _: image.filter(ImageFilter.GaussianBlur(amount))
    if kind == "jpeg":
        return lambda image, _: _as_jpeg(image, int(amount))
    change = {"noise": _add_noise, "brightness": _brighten, "contrast": _flatten}[kind]

    def apply(image: Image.Image, chance: np.random.Generator) -> Image.Image:
        values = np.asarray(image, np.float64) / 255
        return _to_image(change(values, amount, chance))

    return apply


def leave(image: Image.Image, _: np.random.Generator) -> Image.Image:
    """Returns the image: what the perturbed ones are compared with."""
    return image


def rotate(degrees: float, diameter: int) -> Perturb:
    """Returns a rotation about the centre, seen through a circle, so that no corner turns."""
    return lambda image, _: mask_circle(image.rotate(degrees, Image.Resampling.BICUBIC), diameter)


def mirror(axes: Axes, diameter: int) -> Perturb:
    """Returns a reflection, seen through a circle: horizontal swaps left and right."""

    def apply(image: Image.Image, _: np.random.Generator) -> Image.Image:
        if axes in ("horizontal", "both"):
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        if axes in ("vertical", "both"):
            image = image.transpose(Image.Transpose.FLIP_TOP_BOTTOM)
        return mask_circle(image, diameter)

    return apply


def shift(pixels: int, diameter: int) -> Perturb:
    """Returns a shift to one of four sides, by the image's chance, seen through a circle.

    What comes in at the border is its reflection.
    """

    def apply(image: Image.Image, chance: np.random.Generator) -> Image.Image:
        axis, sign = int(chance.integers(2)), int(chance.choice((-1, 1)))
        values = np.asarray(image)
        place = np.arange(values.shape[axis]) - sign * pixels
        last = values.shape[axis] - 1
        place = np.abs(np.where(place > last, 2 * last - place, place))
        return mask_circle(Image.fromarray(values.take(place, axis=axis)), diameter)

    return apply


def shrink(factor: float) -> Perturb:
    """Returns a reduction to `factor` of the side; the served path enlarges what it gets."""

    def apply(image: Image.Image, _: np.random.Generator) -> Image.Image:
        size = max(1, round(image.width * factor)), max(1, round(image.height * factor))
        return image.resize(size, Image.Resampling.LANCZOS)

    return apply


def mask_circle(image: Image.Image, diameter: int) -> Image.Image:
    """Returns the image with its mean colour outside of a circle around its centre."""
    values = np.asarray(image).copy()
    height, width, _ = values.shape
    down = np.arange(height)[:, None] - (height - 1) / 2
    across = np.arange(width) - (width - 1) / 2
    outside = down**2 + across**2 > (diameter / 2) ** 2
    values[outside] = values[~outside].mean(axis=0).round().astype(np.uint8)
    return Image.fromarray(values)


def _add_noise(
    values: NDArray[np.float64], amount: float, chance: np.random.Generator
) -> NDArray[np.float64]:
    return values + chance.normal(scale=amount, size=values.shape)


def _brighten(
    values: NDArray[np.float64], amount: float, _: np.random.Generator
) -> NDArray[np.float64]:
    """Raises the value of hue, saturation, value; black becomes grey."""
    value = values.max(axis=2, keepdims=True)
    brighter = np.minimum(value + amount, 1)
    hue = np.where(value > 0, values / np.where(value > 0, value, 1), 1.0)
    bright: NDArray[np.float64] = hue * brighter
    return bright


def _flatten(
    values: NDArray[np.float64], amount: float, _: np.random.Generator
) -> NDArray[np.float64]:
    mean = values.mean(axis=(0, 1), keepdims=True)
    flat: NDArray[np.float64] = (values - mean) * amount + mean
    return flat


def _to_image(values: NDArray[np.float64]) -> Image.Image:
    return Image.fromarray((values.clip(0, 1) * 255).round().astype(np.uint8))


def _as_jpeg(image: Image.Image, quality: int) -> Image.Image:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    with Image.open(file, formats=("JPEG",)) as opened:
        return opened.convert("RGB")
