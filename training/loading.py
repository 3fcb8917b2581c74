"""Batches of training images, augmented; the same for the same (seed, epoch, batch) always.

No random state is carried from batch to batch, which is what makes a resumed run exact.
"""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from training.config import AugmentRecipe
from training.consistency import several_looks
from training.errors import TrainingError

Batch = tuple[Tensor, Tensor]
# Fewer than a process keeps in memory (`stored_images`).
_BLOCKS_SHUFFLED_TOGETHER = 4


class Loader(Protocol):
    """Yields uint8 [B, H, W, 3] and int64 [B]; a last batch that is not full is left out."""

    batches_per_epoch: int

    def batches(self, epoch: int) -> Iterator[Batch]:
        """Yield the batches of an epoch, counted from 0."""


def seed_of(*parts: int | str) -> int:
    """Return a seed for a random generator, unrelated between different `parts`."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def generator_of(*parts: int | str) -> torch.Generator:
    """Return a random generator that depends on `parts` and on nothing else."""
    return torch.Generator().manual_seed(seed_of(*parts))


@contextmanager
def seeded(*parts: int | str) -> Iterator[None]:
    """Let what the block draws depend on `parts` alone; behind it all goes on as without it.

    Not by `torch.manual_seed`, which also seeds every accelerator, for good, and where there is
    none formats the whole call stack for each: a tenth of what it takes to load a photograph.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed_of(*parts))
        yield


def shuffled_batches(
    images: int,
    batch_size: int,
    *,
    seed: int,
    epoch: int,
    weights: Tensor | None = None,
    blocks: Tensor | None = None,
) -> Tensor:
    """Return the order of an epoch as image indices, int64 [batches, batch_size].

    With `weights`, float [N], images are drawn by them, each any number of times. With `blocks`,
    int64 [N], the blocks are shuffled, and then the images of every few blocks.
    """
    generator = generator_of(seed, "order", epoch)
    if blocks is not None:
        order = _shuffled_in_windows(blocks, generator)
    elif weights is None:
        order = torch.randperm(images, generator=generator)
    else:
        order = torch.multinomial(weights, images, replacement=True, generator=generator)
    full = images // batch_size
    return order[: full * batch_size].view(full, batch_size)


def _shuffled_in_windows(blocks: Tensor, generator: torch.Generator) -> Tensor:
    names: Tensor = torch.unique(blocks)
    names = names[torch.randperm(len(names), generator=generator)]
    windows = []
    for window in torch.split(names, _BLOCKS_SHUFFLED_TOGETHER):
        members = torch.isin(blocks, window).nonzero()[:, 0]
        windows.append(members[torch.randperm(len(members), generator=generator)])
    return torch.cat(windows)


class MemoryLoader:
    """Images held in memory; shifted and flipped by one gather a batch.

    Args:
        views: uint8 [N, H, W, 3].
        labels: int64 [N].
        augment: the recipe's augmentation.
        batch_size: images a batch.
        seed: of the run.
        mean: what is painted over a cut-out, RGB of 0..1.
        transform: what else is done to each image, uint8 [3, H, W] -> uint8 [3, H, W].
        weights: to draw images by, float [N]; without them each comes once an epoch.
    """

    def __init__(
        self,
        views: Tensor,
        labels: Tensor,
        augment: AugmentRecipe,
        *,
        batch_size: int,
        seed: int,
        mean: tuple[float, float, float] = (0.5, 0.5, 0.5),
        transform: Callable[[Tensor], Tensor] | None = None,
        weights: Tensor | None = None,
    ) -> None:
        if augment.cutout_px > min(views.shape[1:3]):
            raise TrainingError(f"augment.cutout_px {augment.cutout_px} is more than the image has")
        self._mean = (255 * torch.tensor(mean)).round().to(torch.uint8)
        self._padded = _pad(views, augment)
        self._size = views.shape[1:3]
        self._labels = labels
        self._augment = augment
        self._batch_size = batch_size
        self._seed = seed
        self._transform = transform
        self._weights = weights
        self._first_flips = torch.rand(len(views), generator=generator_of(seed, "flip")) < 0.5
        self.batches_per_epoch = len(views) // batch_size

    def batches(self, epoch: int) -> Iterator[Batch]:
        """Yield the batches of an epoch, counted from 0."""
        order = shuffled_batches(
            len(self._labels),
            self._batch_size,
            seed=self._seed,
            epoch=epoch,
            weights=self._weights,
        )
        for number, indices in enumerate(order):
            chance = generator_of(self._seed, "augment", epoch, number)
            flips = self._draw_flips(indices, epoch, chance)
            views = self._gather(indices, flips, chance)
            if self._augment.cutout_px:
                self._cut_out(views, chance)
            if self._augment.augmix_consistency:
                transform = partial(self._transform_each, views, epoch, number)
                views = several_looks(views, transform)
            elif self._transform is not None:
                views = self._transform_each(views, epoch, number)
            yield views, self._labels[indices]

    def _draw_flips(self, indices: Tensor, epoch: int, chance: torch.Generator) -> Tensor:
        if self._augment.flip == "none":
            return torch.zeros(len(indices), dtype=torch.bool)
        if self._augment.flip == "random":
            return torch.rand(len(indices), generator=chance) < 0.5
        # Every two epochs show each image both ways (arXiv 2404.00498, section 3.6).
        return self._first_flips[indices] ^ bool(epoch % 2)

    def _gather(self, indices: Tensor, flips: Tensor, chance: torch.Generator) -> Tensor:
        height, width = self._size
        shifts = 2 * self._augment.translate_px + 1
        top, left = torch.randint(shifts, (2, len(indices), 1), generator=chance)
        rows = top + torch.arange(height)
        columns = torch.arange(width)
        columns = left + torch.where(flips[:, None], columns.flip(0), columns)
        return self._padded[indices[:, None, None], rows[:, :, None], columns[:, None, :]]

    def _transform_each(self, views: Tensor, epoch: int, number: int, *look: int) -> Tensor:
        assert self._transform is not None
        with seeded(self._seed, "transform", epoch, number, *look):
            images = [self._transform(view) for view in views.permute(0, 3, 1, 2)]
        return torch.stack(images).permute(0, 2, 3, 1)

    def _cut_out(self, views: Tensor, chance: torch.Generator) -> None:
        """Paint over a square of each view, in place."""
        side = self._augment.cutout_px
        inside = []
        for length in self._size:
            first = torch.randint(length - side + 1, (len(views), 1), generator=chance)
            place = torch.arange(length)
            inside.append((place >= first) & (place < first + side))
        views[inside[0][:, :, None] & inside[1][:, None, :]] = self._mean


def split_views(
    views: NDArray[np.uint8], labels: NDArray[np.int64], *, batch_size: int = 512
) -> list[Batch]:
    """Return views held in memory as batches to evaluate on, in order."""
    return list(
        zip(
            torch.split(torch.from_numpy(views), batch_size),
            torch.split(torch.from_numpy(labels), batch_size),
            strict=True,
        )
    )


def _pad(views: Tensor, augment: AugmentRecipe) -> Tensor:
    width = augment.translate_px
    if width == 0:
        return views
    mode = "reflect" if augment.translate_fill == "reflect" else "constant"
    # Only floating point can be padded by reflection on every device; 8 bits survive the trip.
    chunks = [
        functional.pad(chunk.permute(0, 3, 1, 2).float(), (width,) * 4, mode=mode)
        for chunk in torch.split(views, 4096)
    ]
    return torch.cat([chunk.permute(0, 2, 3, 1).to(torch.uint8) for chunk in chunks])
