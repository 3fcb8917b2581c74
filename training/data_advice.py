"""What the images of a recipe ask for, before anything is trained."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from training.advice import Advice
from training.config import Recipe
from training.data import Splits
from training.data_check import check_data
from training.images import sample_places
from training.scores import wilson_interval

# So few images a class that what they lack should come from elsewhere (docs/decisions.md).
FEW_A_CLASS = 100
# Ten times was measured to cost recall (tests/training/test_train_techniques.py).
_UNEVEN = 4.0
_SIZE_RATIO = 2.0
_OFF_MEAN, _OFF_STD = 0.1, 1.5
_WIDE_INTERVAL = 0.05
_LOOKED_AT = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class DataFacts:
    """What was measured of the images of a recipe.

    Attributes:
        class_sizes: training images of each class.
        validation_images: how many.
        shorter_side: in pixels, the median.
        mean: of the channels, of pixels scaled to [0, 1].
        std: of the channels.
    """

    class_sizes: dict[str, int]
    validation_images: int
    shorter_side: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    @property
    def images_a_class(self) -> float:
        """Training images of a class, the median."""
        return float(np.median(list(self.class_sizes.values())))


def measure_data(splits: Splits) -> DataFacts:
    """Return the facts; sizes and colours are those of 500 training images by chance."""
    some = splits.train.subset(sample_places(splits.train, _LOOKED_AT))
    found = check_data(Splits(train=some, validation=splits.validation.subset([])))
    sizes = np.bincount(splits.train.labels, minlength=len(splits.train.class_names)).tolist()
    assert found.sizes is not None
    assert found.mean is not None
    assert found.std is not None
    return DataFacts(
        class_sizes=dict(zip(splits.train.class_names, sizes, strict=True)),
        validation_images=len(splits.validation),
        shorter_side=min(found.sizes["width"][1], found.sizes["height"][1]),
        mean=found.mean,
        std=found.std,
    )


def advise_by_data(recipe: Recipe, facts: DataFacts) -> tuple[Advice, ...]:
    """Return what the images ask for; nothing if the recipe suits them."""
    rules = (_few_images, _uneven_classes, _image_size, _colours, _small_validation)
    return tuple(one for rule in rules for one in rule(recipe, facts))


def _few_images(recipe: Recipe, facts: DataFacts) -> Iterator[Advice]:
    if recipe.model.has_weights or facts.images_a_class >= FEW_A_CLASS:
        return
    yield Advice(
        topic="few images",
        fact=f"{facts.images_a_class:g} training images a class, and no weights to start from",
        advice="start from a network that learnt from many images: model.pretrained or "
        "model.weights (training/recipes/photos.toml shows how), then ask for advice again",
    )


def _uneven_classes(recipe: Recipe, facts: DataFacts) -> Iterator[Advice]:
    by_size = sorted(facts.class_sizes, key=lambda name: facts.class_sizes[name])
    least, most = facts.class_sizes[by_size[0]], facts.class_sizes[by_size[-1]]
    if recipe.train.imbalance != "none" or most < _UNEVEN * least:
        return
    yield Advice(
        topic="class imbalance",
        fact=f"{by_size[-1]!r} has {most} training images, {by_size[0]!r} {least}, "
        f"{most / least:.1f} times fewer",
        advice="shift the logits by how frequent the classes are in training, or draw all classes "
        "equally often, and look at the macro recall, not at top-1 alone",
        settings=('train.imbalance="logit_adjustment"',),
    )


def _image_size(recipe: Recipe, facts: DataFacts) -> Iterator[Advice]:
    preprocess = recipe.input.preprocess
    shown, own = preprocess.resize.size, facts.shorter_side
    ratio = own / shown
    if ratio > 1 / _SIZE_RATIO and ratio < _SIZE_RATIO:
        return
    if ratio <= 1 / _SIZE_RATIO and recipe.model.has_weights:
        return  # What it learnt, it learnt at that size.
    # The same cut of the picture, and no smaller than networks take.
    side = max(32, own if ratio < 1 else 2 * shown)
    crop = {
        name: round(getattr(preprocess.crop, name) * side / shown) for name in ("height", "width")
    }
    if side == shown:
        return
    fact = f"images have a shorter side of {own} px (median), the network is shown {shown} px"
    yield Advice(
        topic="image size",
        fact=fact,
        advice=f"an image of {side} px holds the same and costs {(shown / side) ** 2:.1f} times "
        "less; take a network for such images"
        if ratio < 1
        else f"try {side} px, which cost {(side / shown) ** 2:.0f} times as much, if details "
        "tell the classes apart",
        settings=(
            f"input.preprocess.resize.size={side}",
            f"input.preprocess.crop={{height={crop['height']}, width={crop['width']}}}",
        )
        if ratio < 1
        else (),
    )


def _colours(recipe: Recipe, facts: DataFacts) -> Iterator[Advice]:
    assumed = recipe.input.normalisation
    off = max(abs(one - other) for one, other in zip(assumed.mean, facts.mean, strict=True))
    ratios = [one / max(other, 1e-6) for one, other in zip(assumed.std, facts.std, strict=True)]
    is_near = off < _OFF_MEAN and all(1 / _OFF_STD < one < _OFF_STD for one in ratios)
    if is_near or recipe.model.has_weights:
        return
    mean, std = (f"[{', '.join(f'{one:.3f}' for one in of)}]" for of in (facts.mean, facts.std))
    yield Advice(
        topic="normalisation",
        fact=f"the channels have means {mean} and deviations {std}; the recipe takes off "
        f"{list(assumed.mean)} and divides by {list(assumed.std)}",
        advice="normalise by what the images have, so that the first layer sees means of 0 and "
        "deviations of 1",
        settings=(f"input.normalisation.mean={mean}", f"input.normalisation.std={std}"),
    )


def _small_validation(_: Recipe, facts: DataFacts) -> Iterator[Advice]:
    images = facts.validation_images
    low, high = wilson_interval(round(0.9 * images), images)
    if (high - low) / 2 < _WIDE_INTERVAL:
        return
    yield Advice(
        topic="small validation",
        fact=f"of {images} validation images, nine in ten right may mean {low:.1%} to {high:.1%}",
        advice="keep more images aside, or measure several splits (data.split_seed); runs that "
        "differ by less than that interval are not told apart",
    )
