"""What the augmentation of a recipe does to single images, by torchvision's transforms.

Flips, cuts and shifts belong to the loaders, which do them cheaper; mixing needs a whole batch
(`training.mixing`).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchvision.transforms import v2

from service.bundle.manifest import Normalisation
from training.recipe_training import AugmentRecipe


def build_augmentation(
    augment: AugmentRecipe, normalisation: Normalisation, colours: Tensor | None = None
) -> v2.Transform | None:
    """Return a transform of single images, uint8 [3, H, W] or PIL; None if nothing is asked for.

    Args:
        augment: the recipe's.
        normalisation: what moves in at the edges and covers what is erased has its mean colour.
        colours: principal components of the data's colours, of `principal_colours`; needed when
            `augment.fancy_pca_std` is not 0.
    """
    fill = [round(255 * mean) for mean in normalisation.mean]
    steps = [*_geometry(augment, fill), *_policy(augment, fill), *_appearance(augment, colours)]
    if augment.erase_probability:
        # It passes PIL images over in silence.
        steps += [v2.PILToTensor(), v2.RandomErasing(augment.erase_probability, value=fill)]
    return v2.Compose(steps) if steps else None


def principal_colours(views: Tensor) -> Tensor:
    """Return the principal components of the colours of `views` as the columns of float [3, 3].

    `views` are uint8 [N, H, W, 3]. Each component is as long as the deviation of the colours along
    it, in levels of 255.
    """
    pixels = views.reshape(-1, 3).double()
    values, vectors = torch.linalg.eigh(torch.cov(pixels.T))
    scaled: Tensor = vectors * values.clamp(min=0).sqrt()
    return scaled.float()


class FancyPCA(v2.Transform):  # type: ignore[misc]
    """Adds to all pixels of an image a random multiple of each principal component of the colours.

    Section 4.1 of AlexNet (Krizhevsky et al., 2012), which scales by the eigenvalue where this
    scales by its root, so that `std` does not depend on the range of the pixels.
    """

    def __init__(self, colours: Tensor, std: float) -> None:
        super().__init__()
        self._colours = colours
        self._std = std

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:  # noqa: ARG002
        """Draw what is added to red, green and blue."""
        return {"shift": self._colours @ (self._std * torch.randn(3))}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Return the image with the shift, uint8 [3, H, W]."""
        image = inpt if isinstance(inpt, Tensor) else v2.functional.pil_to_tensor(inpt)
        return (image + params["shift"][:, None, None]).round().clamp(0, 255).to(torch.uint8)


def _geometry(augment: AugmentRecipe, fill: list[int]) -> list[v2.Transform]:
    steps: list[v2.Transform] = []
    bilinear = v2.InterpolationMode.BILINEAR
    if augment.vertical_flip_probability:
        steps.append(v2.RandomVerticalFlip(augment.vertical_flip_probability))
    shift, zoom, shear = augment.shift_fraction, augment.zoom_fraction, augment.shear_degrees
    if augment.rotate_degrees or shift or zoom or shear:
        steps.append(
            v2.RandomAffine(
                augment.rotate_degrees,
                translate=(shift, shift),
                scale=(1 - zoom, 1 + zoom),
                shear=(-shear, shear, -shear, shear),
                interpolation=bilinear,
                fill=fill,
            )
        )
    if augment.perspective_distortion:
        distortion = augment.perspective_distortion
        steps.append(v2.RandomPerspective(distortion, interpolation=bilinear, fill=fill))
    if augment.elastic_alpha:
        steps.append(v2.ElasticTransform(augment.elastic_alpha, interpolation=bilinear, fill=fill))
    return steps


def _policy(augment: AugmentRecipe, fill: list[int]) -> list[v2.Transform]:
    if augment.is_trivial_augment_on:
        return [v2.TrivialAugmentWide()]
    if augment.randaugment_magnitude is not None:
        count, magnitude = augment.randaugment_operations, augment.randaugment_magnitude
        return [v2.RandAugment(count, magnitude, fill=fill)]
    if augment.augmix_severity is not None:
        return [v2.AugMix(augment.augmix_severity, fill=fill)]
    return []


def _appearance(augment: AugmentRecipe, colours: Tensor | None) -> list[v2.Transform]:
    steps: list[v2.Transform] = []
    jitter = (augment.brightness, augment.contrast, augment.saturation, augment.hue)
    if any(jitter):
        steps.append(v2.ColorJitter(*jitter))
    if augment.fancy_pca_std:
        if colours is None:
            raise ValueError("fancy PCA needs the principal colours of the data")
        steps.append(FancyPCA(colours, augment.fancy_pca_std))
    if augment.blur_max_sigma:
        # Three deviations to each side hold the whole bell.
        size = 2 * round(3 * augment.blur_max_sigma) + 1
        blur = v2.GaussianBlur(
            max(3, size), (min(0.1, augment.blur_max_sigma), augment.blur_max_sigma)
        )
        steps.append(v2.RandomApply([blur], p=0.5))
    if augment.noise_std:
        steps += [v2.PILToTensor(), v2.GaussianNoise(sigma=augment.noise_std)]
    return steps
