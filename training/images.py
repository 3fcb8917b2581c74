"""Images that a person points at, matched with the classes of a model."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from service.bundle.manifest import Label, Manifest
from training.config import recipe_from_dict
from training.data import IMAGE_SUFFIXES, Dataset, load_folder, load_parquet, load_splits
from training.errors import TrainingError

UNLABELLED = -1

_SPLIT = "validation"
# Crops of scikit-learn's two photographs: as many as parity needs, 8 x 4 of each.
_CROP_GRID = (8, 4)
_CROP_PIXELS = 256


def load_images(path: Path, labels: Sequence[Label]) -> Dataset:
    """Returns the images at `path`; their labels index `labels`.

    A Parquet file has columns `image {bytes}` and `label`. In a folder of folders, each is named
    after a class or its id. In a flat folder a file's class is the id before the first `_` of its
    name, as in `n01440764_tench.JPEG`; when no file has one, the labels are `UNLABELLED`.

    Raises:
        TrainingError: There are no images, or a class is not one of `labels`.
    """
    names = tuple(label.name for label in labels)
    if path.is_file():
        return load_parquet(path, names, split=_SPLIT)
    if not path.is_dir():
        raise TrainingError(f"{path}: no such file or folder")
    if any(entry.is_dir() for entry in path.iterdir()):
        return match_classes(load_folder(path, split=_SPLIT), labels)
    files = sorted(file for file in path.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES)
    if not files:
        raise TrainingError(f"{path}: holds no images")
    return Dataset(
        name=path.resolve().name,
        split=_SPLIT,
        images=files,
        labels=_labels_of(files, labels),
        class_names=names,
    )


def choose_images(path: Path | None, manifest: Manifest) -> Dataset:
    """Returns the images at `path`, or without one those that a bundle was validated on.

    Raises:
        TrainingError: As `load_images` or `validation_images`.
    """
    return validation_images(manifest) if path is None else load_images(path, manifest.labels)


def validation_images(manifest: Manifest) -> Dataset:
    """Returns the images that a bundle of ours was validated on, by the recipe in its manifest.

    Raises:
        TrainingError: It has no recipe, or the data is not where the recipe says.
    """
    recipe = manifest.provenance.recipe
    if "data" not in recipe:
        raise TrainingError(f"{manifest.name} was not trained by a recipe; give --data")
    data = recipe_from_dict(recipe, origin=f"recipe of {manifest.name}").data
    return match_classes(load_splits(data).validation, manifest.labels)


def sample_places(dataset: Dataset, count: int | None) -> list[int]:
    """Returns the places of `count` images by chance, the same each time; all if None or fewer."""
    if count is None or count >= len(dataset):
        return list(range(len(dataset)))
    chosen: list[int] = np.random.default_rng(0).permutation(len(dataset))[:count].tolist()
    return sorted(chosen)


def match_classes(dataset: Dataset, labels: Sequence[Label]) -> Dataset:
    """Returns the data set with its classes numbered as `labels`, found by name or id.

    Raises:
        TrainingError: A class is not among `labels`, or its name is there twice.
    """
    names = tuple(label.name for label in labels)
    if dataset.class_names == names:
        return dataset
    index_of = np.array([_find(name, labels, dataset.name) for name in dataset.class_names])
    return replace(dataset, labels=index_of[dataset.labels], class_names=names)


def sample_photographs(labels: Sequence[Label]) -> Dataset:
    """Returns 64 crops of the two photographs that come with scikit-learn, without labels."""
    from sklearn.datasets import load_sample_images

    crops: list[bytes] = []
    for pixels in load_sample_images().images:
        photograph = Image.fromarray(pixels)
        crops.extend(_crops(photograph))
    return Dataset(
        name="scikit-learn-photographs",
        split=_SPLIT,
        images=crops,
        labels=np.full(len(crops), UNLABELLED, np.int64),
        class_names=tuple(label.name for label in labels),
    )


def _labels_of(
    files: Iterable[Path], labels: Sequence[Label]
) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    by_id = {label.id: index for index, label in enumerate(labels) if label.id is not None}
    found = [(file, by_id.get(file.name.partition("_")[0], UNLABELLED)) for file in files]
    missing = [file.name for file, index in found if index == UNLABELLED]
    if missing and len(missing) < len(found):
        raise TrainingError(f"{missing[0]}: does not start with the id of a class; others do")
    return np.array([index for _, index in found], np.int64)


def _find(name: str, labels: Sequence[Label], dataset: str) -> int:
    for index, label in enumerate(labels):
        if label.id == name:
            return index
    same = [index for index, label in enumerate(labels) if label.name == name]
    if len(same) != 1:
        problem = "is no class of the model" if not same else "names several classes; use their ids"
        raise TrainingError(f"{dataset}: {name!r} {problem}")
    return same[0]


def _crops(photograph: Image.Image) -> Iterable[bytes]:
    columns, rows = _CROP_GRID
    for left in np.linspace(0, photograph.width - _CROP_PIXELS, columns).astype(int).tolist():
        for top in np.linspace(0, photograph.height - _CROP_PIXELS, rows).astype(int).tolist():
            buffer = io.BytesIO()
            crop = photograph.crop((left, top, left + _CROP_PIXELS, top + _CROP_PIXELS))
            crop.save(buffer, "JPEG", quality=90)
            yield buffer.getvalue()
