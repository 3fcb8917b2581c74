"""Parts of a data set in which every class has its share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from sklearn.model_selection import StratifiedGroupKFold, train_test_split

from training.errors import TrainingError

if TYPE_CHECKING:
    from training.data import Dataset


def stratified_parts(
    dataset: Dataset, validation_fraction: float, *, seed: int
) -> tuple[list[int], list[int]]:
    """Return the places of training and validation images, the same for the same seed.

    Groups stay whole, so with them the shares are only about that large.

    Raises:
        TrainingError: a class or its groups are too few for it.
    """
    try:
        if dataset.groups:
            count = max(2, round(1 / validation_fraction))
            folds = StratifiedGroupKFold(count, shuffle=True, random_state=seed)
            train, validation = next(folds.split(dataset.labels, dataset.labels, dataset.groups))
        else:
            train, validation = train_test_split(
                np.arange(len(dataset)),
                test_size=validation_fraction,
                random_state=seed,
                stratify=dataset.labels,
            )
    except ValueError as error:
        raise TrainingError(f"{dataset.name}: cannot be split: {error}") from error
    return sorted(train.tolist()), sorted(validation.tolist())


def keep_some(dataset: Dataset, count: int | None, *, seed: int) -> Dataset:
    """Return `count` images, of every class its share; None keeps all.

    They are the same for the same seed, and those of a smaller count are among them.

    Raises:
        TrainingError: there are fewer than that.
    """
    if count is None or count == len(dataset):
        return dataset
    if count > len(dataset):
        raise TrainingError(f"{dataset.name}: has {len(dataset)} images, {count} are asked for")
    order = np.random.default_rng(seed).permutation(len(dataset))
    shuffled = dataset.labels[order]
    # How far into its own class each image comes, 0 to 1: those that come first are kept.
    place = np.empty(len(dataset))
    for label in np.unique(shuffled):
        members = np.flatnonzero(shuffled == label)
        place[members] = (np.arange(len(members)) + 0.5) / len(members)
    return dataset.subset(sorted(order[np.argsort(place, kind="stable")[:count]].tolist()))
