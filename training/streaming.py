"""Batches of images too large to hold in memory: decoded, cut and augmented every time anew."""

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from service.bundle.decode import Limits, decode
from service.bundle.manifest import Preprocess
from service.errors import RequestError
from training.augment import build_augmentation, principal_colours
from training.config import Recipe
from training.consistency import several_looks
from training.data import Dataset, decode_views
from training.errors import TrainingError
from training.imbalance import sampling_weights
from training.loading import Batch, seeded, shuffled_batches

_EVALUATION_BATCH = 64
# Enough for the covariance of three colours.
_COLOUR_IMAGES = 256


class StreamLoader:
    """The same contract as `MemoryLoader`, by worker processes.

    Args:
        dataset: the images.
        recipe: how they are shown.
        part: this process's number and how many share each batch.
    """

    def __init__(self, dataset: Dataset, recipe: Recipe, *, part: tuple[int, int] = (0, 1)) -> None:
        self._part, self._parts = part
        self._images = _AugmentedImages(dataset, recipe)
        self._batch_size = recipe.train.batch_size
        self._seed = recipe.seed
        self._workers = recipe.data.decode_workers
        is_balanced = recipe.train.imbalance == "balanced_sampling"
        self._blocks = None if dataset.blocks is None else torch.from_numpy(dataset.blocks)
        self._weights = sampling_weights(dataset) if is_balanced else None
        self.batches_per_epoch = len(dataset) // self._batch_size

    def batches(self, epoch: int) -> Iterator[Batch]:
        """Yield the batches of an epoch, counted from 0."""
        order = shuffled_batches(
            len(self._images),
            self._batch_size,
            seed=self._seed,
            epoch=epoch,
            weights=self._weights,
            blocks=self._blocks,
        )
        order = order.chunk(self._parts, dim=1)[self._part]
        loader = DataLoader(
            self._images,
            batch_sampler=[[(epoch, index) for index in batch] for batch in order.tolist()],
            num_workers=self._workers,
            # Its own, because a loader without one draws from the generator that dropout uses.
            generator=torch.Generator(),
        )
        yield from loader


class StreamedViews:
    """The served view of every image, decoded anew each time it is iterated over.

    Yields uint8 [B, H, W, 3] and int64 [B], in order.
    """

    def __init__(self, dataset: Dataset, preprocess: Preprocess, *, workers: int) -> None:
        self._images = _ServedImages(dataset, preprocess)
        self._workers = workers

    def __iter__(self) -> Iterator[Batch]:
        loader = DataLoader(
            self._images,
            batch_size=_EVALUATION_BATCH,
            num_workers=self._workers,
            generator=torch.Generator(),
        )
        yield from loader


class _ServedImages(torch.utils.data.Dataset[tuple[NDArray[np.uint8], int]]):
    def __init__(self, dataset: Dataset, preprocess: Preprocess) -> None:
        self._dataset = dataset
        self._preprocess = preprocess

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> tuple[NDArray[np.uint8], int]:
        view = decode_views(self._dataset.subset([index]), self._preprocess)[0]
        return view, int(self._dataset.labels[index])


class _AugmentedImages(torch.utils.data.Dataset[tuple[Tensor, int]]):
    """Maps (epoch, index) to uint8 [H, W, 3], or several looks, and a label; always the same."""

    def __init__(self, dataset: Dataset, recipe: Recipe) -> None:
        self._dataset = dataset
        self._seed = recipe.seed
        self._background = recipe.input.preprocess.background
        self._limits = Limits()
        self._cut = _build_cut(recipe)
        self._augment = _build_augmentation(recipe, dataset)
        self._has_looks = recipe.augment.augmix_consistency > 0

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, int]:
        epoch, index = key
        try:
            data = self._dataset.image_bytes(index)
            image = decode(data, self._limits, background=self._background).rgb
        except RequestError as error:
            raise TrainingError(f"{self._dataset.name}: image {index}: {error}") from error
        with seeded(self._seed, "augment", epoch, index):
            cut = self._cut(image)
            if not self._has_looks:
                view: Tensor = self._augment(cut)
                return view.permute(1, 2, 0), int(self._dataset.labels[index])
            plain = v2.functional.pil_to_tensor(cut)[None]
            views = several_looks(plain, lambda _: self._augment(cut)[None])[0]
        return views.permute(0, 2, 3, 1), int(self._dataset.labels[index])


def _build_cut(recipe: Recipe) -> v2.Transform:
    augment, preprocess = recipe.augment, recipe.input.preprocess
    cut = v2.RandomResizedCrop(
        (preprocess.crop.height, preprocess.crop.width),
        scale=(augment.crop_min_area, 1.0),
        interpolation=v2.InterpolationMode(preprocess.resize.interpolation),
    )
    return v2.Compose([cut, v2.RandomHorizontalFlip()]) if augment.flip == "random" else cut


def _build_augmentation(recipe: Recipe, dataset: Dataset) -> v2.Transform:
    augment, preprocess = recipe.augment, recipe.input.preprocess
    colours = None
    if augment.fancy_pca_std:
        count = min(_COLOUR_IMAGES, len(dataset))
        some = dataset.subset(range(0, len(dataset), len(dataset) // count))
        colours = principal_colours(torch.from_numpy(decode_views(some, preprocess)))
    steps = build_augmentation(augment, recipe.input.normalisation, colours)
    return v2.PILToTensor() if steps is None else v2.Compose([steps, v2.PILToTensor()])
