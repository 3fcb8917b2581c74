"""Data sets: encoded images with an int label each, and the names of the classes.

A data set yields encoded bytes, because evaluation sends them down the served path. Training
decodes them with the same `service.bundle.preprocess`, once, through `decode_views`.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_digits

from service.bundle.decode import Limits
from service.bundle.manifest import Preprocess
from service.bundle.preprocess import prepare
from service.errors import RequestError
from training.config import DataRecipe
from training.data_formats import (
    Found,
    check_labelled,
    encode_png,
    groups_by_pattern,
    read_cifar,
    read_csv,
    read_idx,
    read_shards,
    read_torchvision,
    read_webdataset,
)
from training.errors import TrainingError
from training.stored_images import ParquetCell, StoredImage
from training.subsets import keep_some, stratified_parts

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp"})


@dataclass(frozen=True, kw_only=True)  # no slots: cached_property needs a __dict__
class Dataset:
    """Labelled images of one split.

    Attributes:
        name: what it was made from: a file name, a folder name or `digits`.
        split: `train` or `validation`.
        images: encoded images, or what reads them.
        labels: int64 [N], index into `class_names`.
        class_names: one name an index.
        groups: of images that belong together, one an image; empty if there are none.
        blocks: which images are cheap to read together, int64 [N]; None if it does not matter.
    """

    name: str
    split: str
    images: Sequence[bytes | StoredImage]
    labels: NDArray[np.int64]
    class_names: tuple[str, ...]
    groups: Sequence[str] = ()
    blocks: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.images)

    def image_bytes(self, index: int) -> bytes:
        """Return the encoded image at `index`, as a client would send it."""
        image = self.images[index]
        return image if isinstance(image, bytes) else image.read_bytes()

    def subset(self, indices: Iterable[int], *, split: str | None = None) -> "Dataset":
        """Return the images at `indices`, in that order."""
        chosen = list(indices)
        return Dataset(
            name=self.name,
            split=self.split if split is None else split,
            images=[self.images[index] for index in chosen],
            labels=self.labels[chosen],
            class_names=self.class_names,
            groups=[self.groups[index] for index in chosen] if self.groups else (),
            blocks=None if self.blocks is None else self.blocks[chosen],
        )

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over every image, its label and the class names, in order."""
        digest = hashlib.sha256(json.dumps(self.class_names).encode())
        for index, label in enumerate(self.labels):
            cell = self.images[index]
            # A table of any size behind a URL is not fetched for this: where it is has to do.
            is_cell = isinstance(cell, ParquetCell)
            try:
                image = repr(cell).encode() if is_cell else self.image_bytes(index)
            except OSError as error:
                raise TrainingError(f"{self.name}: image {index}: {error}") from error
            digest.update(b"%d %d " % (label, len(image)))
            digest.update(image)
        return digest.hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Splits:
    """The two halves of a recipe's data; they share no image."""

    train: Dataset
    validation: Dataset


def load_splits(recipe: DataRecipe) -> Splits:
    """Read the recipe's data.

    Raises:
        TrainingError: a file is missing or malformed, a label has no class, a split has no image.
    """
    whole = _load(recipe, recipe.train, "train")
    if recipe.validation is None and not (
        recipe.validation_shards or recipe.source == "torchvision"
    ):
        splits = split_stratified(whole, recipe.validation_fraction, seed=recipe.split_seed)
    else:
        validation = _load(recipe, recipe.validation, "validation")
        if validation.class_names != whole.class_names:
            raise TrainingError(f"{validation.name}: its classes differ from those of {whole.name}")
        splits = Splits(train=whole, validation=validation)
    if recipe.train_images is not None or recipe.validation_images is not None:
        seed = recipe.split_seed
        splits = Splits(
            train=keep_some(splits.train, recipe.train_images, seed=seed),
            validation=keep_some(splits.validation, recipe.validation_images, seed=seed),
        )
    _check_classes(splits.train)
    return splits


def split_stratified(dataset: Dataset, validation_fraction: float, *, seed: int) -> Splits:
    """Keep a share of every class aside for validation, the same images for the same seed.

    Groups stay whole, so with them the shares are only about that large.
    """
    train, validation = stratified_parts(dataset, validation_fraction, seed=seed)
    return Splits(
        train=dataset.subset(train, split="train"),
        validation=dataset.subset(validation, split="validation"),
    )


def without_unreadable(
    dataset: Dataset, preprocess: Preprocess, max_fraction: float
) -> tuple[Dataset, list[dict[str, str]]]:
    """Return the images that can be served, and which ones cannot and why.

    Raises:
        TrainingError: the share of those that cannot is above `max_fraction`.
    """
    limits, readable, problems = Limits(), [], []
    for index, image in enumerate(dataset.images):
        try:
            prepare(dataset.image_bytes(index), preprocess, limits=limits)
        except (RequestError, OSError) as error:
            name = str(image) if isinstance(image, Path) else f"image {index}"
            problems.append({"split": dataset.split, "image": name, "problem": str(error)})
        else:
            readable.append(index)
    if len(problems) > max_fraction * len(dataset):
        raise TrainingError(
            f"{dataset.name}: {len(problems)} of {len(dataset)} images cannot be read, "
            f"first {problems[0]['image']}: {problems[0]['problem']}"
        )
    return (dataset.subset(readable) if problems else dataset), problems


def load_parquet(path: Path, class_names: tuple[str, ...], *, split: str) -> Dataset:
    """Read columns `image {bytes}` and `label`, the layout of the Hugging Face hub."""
    try:
        table = pq.read_table(path, columns=["image", "label"])
        check_labelled(path, table)
        encoded = table.column("image").combine_chunks().field("bytes")
        labels = table.column("label").to_numpy().astype(np.int64, casting="safe")
    except FileNotFoundError:
        raise TrainingError(f"{path}: no such file") from None
    except (OSError, KeyError, TypeError, pa.ArrowException) as error:
        raise TrainingError(f"{path}: needs columns image {{bytes}} and label: {error}") from error
    if encoded.null_count:
        raise TrainingError(f"{path}: {encoded.null_count} images have no bytes")
    return _checked(
        Dataset(
            name=path.name,
            split=split,
            images=encoded.to_pylist(),
            labels=labels,
            class_names=class_names,
        )
    )


def load_folder(path: Path, *, split: str) -> Dataset:
    """Read one sub-folder a class (its name is the class name), images at any depth below it."""
    if not path.is_dir():
        raise TrainingError(f"{path}: no such folder")
    folders = sorted(entry for entry in path.iterdir() if entry.is_dir())
    files = [
        sorted(file for file in folder.rglob("*") if file.suffix.lower() in IMAGE_SUFFIXES)
        for folder in folders
    ]
    return _checked(
        Dataset(
            name=path.name,
            split=split,
            images=[file for group in files for file in group],
            labels=np.repeat(np.arange(len(files)), [len(group) for group in files]),
            class_names=tuple(folder.name for folder in folders),
        )
    )


def load_digits_images() -> Dataset:
    """Return scikit-learn's 1,797 handwritten digits as 32x32 PNGs; needs no network."""
    digits = load_digits()
    # 8x8 pixels of 0..16; LeNet-5 takes 32x32.
    pixels = np.round(digits.images * (255 / 16)).astype(np.uint8)
    return Dataset(
        name="digits",
        split="train",
        images=[
            encode_png(
                np.asarray(Image.fromarray(image).resize((32, 32), Image.Resampling.BICUBIC))
            )
            for image in pixels
        ],
        labels=digits.target.astype(np.int64),
        class_names=tuple(str(name) for name in digits.target_names),
    )


def load_class_names(path: Path) -> tuple[str, ...]:
    """Read a JSON list of names, or of objects with a `name`, in index order."""
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        names = tuple(entry["name"] if isinstance(entry, dict) else entry for entry in entries)
    except FileNotFoundError:
        raise TrainingError(f"{path}: no such file") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TrainingError(f"{path}: no list of class names: {error}") from error
    if not names or not all(isinstance(name, str) for name in names):
        raise TrainingError(f"{path}: no list of class names")
    return names


def decode_views(dataset: Dataset, preprocess: Preprocess) -> NDArray[np.uint8]:
    """Return the one view of every image that is served, uint8 [N, H, W, 3] RGB.

    Raises:
        TrainingError: an image cannot be read or is refused by the served decoder, and why.
    """
    crop = preprocess.crop
    views = np.empty((len(dataset), crop.height, crop.width, 3), np.uint8)
    limits = Limits()
    for index in range(len(dataset)):
        try:
            views[index] = prepare(dataset.image_bytes(index), preprocess, limits=limits).views[0]
        except (RequestError, OSError) as error:
            raise TrainingError(f"{dataset.name}: image {index}: {error}") from error
    return views


def _load(recipe: DataRecipe, path: Path | None, split: str) -> Dataset:
    if recipe.source == "digits":
        return load_digits_images()
    names = None if recipe.classes is None else load_class_names(recipe.classes)
    shards = recipe.train_shards if split == "train" else recipe.validation_shards
    if shards:
        return _named(read_shards(shards), f"{shards[0]} and others", split, names)
    if recipe.source == "torchvision":
        path = recipe.train
    if path is None:
        raise TrainingError(f'data.source = "{recipe.source}" needs data.{split}')
    if recipe.source == "folder":
        dataset = load_folder(path, split=split)
        if recipe.group_pattern is None:
            return dataset
        return replace(dataset, groups=groups_by_pattern(dataset.images, recipe.group_pattern))
    if recipe.source == "parquet":
        assert names is not None
        return load_parquet(path, names, split=split)
    return _named(_read(recipe, path, split), path.name, split, names)


def _read(recipe: DataRecipe, path: Path, split: str) -> Found:
    if recipe.source == "webdataset":
        return read_webdataset(path, IMAGE_SUFFIXES)
    if recipe.source == "mnist":
        return read_idx(path)
    if recipe.source == "cifar":
        return read_cifar(path)
    if recipe.source == "csv":
        return read_csv(path)
    assert recipe.dataset is not None
    return read_torchvision(
        recipe.dataset, path, split, is_download_allowed=recipe.is_download_allowed
    )


def _named(found: Found, name: str, split: str, names: tuple[str, ...] | None) -> Dataset:
    classes = found.class_names if names is None else names
    if classes is None:
        count = int(found.labels.max()) + 1 if len(found.labels) else 0
        classes = tuple(str(label) for label in range(count))
    return _checked(
        Dataset(
            name=name,
            split=split,
            images=found.images,
            labels=found.labels,
            class_names=classes,
            groups=found.groups,
            blocks=found.blocks,
        )
    )


def _check_classes(train: Dataset) -> None:
    """Refuse what a classifier cannot learn."""
    if len(train.class_names) < 2:
        raise TrainingError(f"{train.name}: one class alone cannot be told from others")
    counts = np.bincount(train.labels, minlength=len(train.class_names))
    if empty := [train.class_names[index] for index in np.flatnonzero(counts == 0)]:
        told = ", ".join(empty[:3])
        raise TrainingError(
            f"{train.name}: no training image of {told} ({len(empty)} such classes)"
        )


def _checked(dataset: Dataset) -> Dataset:
    if len(dataset) == 0:
        raise TrainingError(f"{dataset.name}: holds no images")
    low, high = int(dataset.labels.min()), int(dataset.labels.max())
    if low < 0 or high >= len(dataset.class_names):
        raise TrainingError(
            f"{dataset.name}: labels run from {low} to {high}, "
            f"but there are {len(dataset.class_names)} classes"
        )
    return dataset
