"""A contact sheet: what the augmentation of a recipe makes of some of its training images."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from training.config import Recipe
from training.data import decode_views, load_splits
from training.errors import TrainingError
from training.loaders import build_loader
from training.mixing import Mixing


def draw_sheet(recipe: Recipe, path: Path, *, images: int = 8, looks: int = 8) -> None:
    """Draw a row an image: as it is served, then as `looks` epochs show it to the network.

    The pictures come out of the very loader and mixing that training uses.

    Raises:
        TrainingError: there are fewer images than that.
    """
    served, shown, names = sheet_pixels(recipe, images=images, looks=looks)
    _draw(served, shown, names, path, title=f"{recipe.name}: augmentation")


def sheet_pixels(
    recipe: Recipe, *, images: int, looks: int
) -> tuple[NDArray[np.uint8], NDArray[np.uint8], list[str]]:
    """Return served views [N, H, W, 3], what epochs show of them [N, L, H, W, 3], class names."""
    dataset = load_splits(recipe.data).train
    if len(dataset) < images:
        raise TrainingError(f"{dataset.name}: {len(dataset)} images, but {images} are to be drawn")
    some = dataset.subset(np.linspace(0, len(dataset) - 1, images).astype(int).tolist())
    served = decode_views(some, recipe.input.preprocess)
    # Each label is the image's own number, so that a shuffled batch tells which is which.
    numbered = replace(some, labels=np.arange(images), class_names=tuple(map(str, range(images))))
    # One look at each image, however many a step is going to take.
    single = replace(recipe.augment, augmix_consistency=0.0)
    batch = replace(recipe.train, batch_size=images)
    whole = replace(recipe, train=batch, augment=single)
    loader = build_loader(whole, numbered)
    mixing = Mixing(recipe.augment, classes=images, seed=recipe.seed)
    shown = np.empty((images, looks, *served.shape[1:]), np.uint8)
    for epoch in range(looks):
        ((views, numbers),) = loader.batches(epoch)
        planes, _ = mixing.mix(views.permute(0, 3, 1, 2).float(), numbers, epoch)
        pixels = planes.round().clamp(0, 255).to(torch.uint8)
        shown[numbers.numpy(), epoch] = pixels.permute(0, 2, 3, 1).numpy()
    return served, shown, [dataset.class_names[label] for label in some.labels]


def _draw(
    served: NDArray[np.uint8],
    shown: NDArray[np.uint8],
    names: list[str],
    path: Path,
    *,
    title: str,
) -> None:
    from matplotlib.figure import Figure  # here: only those who draw pay for the import

    rows, columns = shown.shape[0], shown.shape[1] + 1
    figure = Figure(figsize=(1.25 * columns, 1.25 * rows + 0.5), layout="constrained")
    places = figure.subplots(rows, columns, squeeze=False)
    for row in range(rows):
        for column, pixels in enumerate([served[row], *shown[row]]):
            axes = places[row, column]
            axes.imshow(pixels)
            axes.set_xticks([])
            axes.set_yticks([])
            axes.spines[:].set_visible(False)
            if row == 0:
                axes.set_title("served" if column == 0 else f"epoch {column}", fontsize=8)
        places[row, 0].set_ylabel(names[row], fontsize=8)
    figure.suptitle(title, fontsize=10)
    figure.savefig(path, dpi=100, format="png")
