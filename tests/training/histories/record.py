"""Trains a tiny network on digits in each of the ways that `fivecrop diagnose` has a name for.

    python tests/training/histories/record.py [CASE ...]

writes what was recorded to CASE.jsonl here, a few seconds each on one core. A case is a recipe, or
a mistake put into the trainer where a person would make it.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from training import loaders, loading, train, trainer_setup
from training.config import Recipe, load_recipe
from training.data import Dataset, Splits, load_digits_images, split_stratified

FOLDER = Path(__file__).parent
RECIPE = FOLDER.parents[2] / "training/recipes/digits-lenet5.toml"
# Nothing that hides what a case is about: no averaging, no shifts, no smoothing.
PLAIN = (
    *("optim.name=sgd", "optim.schedule=constant", "optim.warmup_fraction=0.0"),
    *("optim.weight_decay=0.0", "average.kind=none", "augment.translate_px=0"),
    *("train.label_smoothing=0.0", "train.precision=fp32"),
)


class TinyNet(nn.Module):
    """A multi-layer perceptron on 8 x 8 means. [N, 3, 32, 32] -> logits [N, C]."""

    def __init__(self, classes: int, width: int, depth: int, bias: float = 0.0) -> None:
        super().__init__()
        sizes = [64, *[width] * depth]
        layers: list[nn.Module] = []
        for before, after in pairwise(sizes):
            linear = nn.Linear(before, after)
            nn.init.kaiming_normal_(linear.weight)
            nn.init.constant_(linear.bias, bias)
            layers += [linear, nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.Linear(sizes[-1], classes))

    def forward(self, images: Tensor) -> Tensor:
        cells = nn.functional.avg_pool2d(images.mean(dim=1), 4)
        logits: Tensor = self.layers(cells.flatten(1))
        return logits


def record(
    case: str,
    *changes: str,
    width: int = 64,
    depth: int = 2,
    bias: float = 0.0,
    mistakes: dict[str, object] | None = None,
) -> tuple[list[dict[str, object]], int]:
    """Returns the history of a run and the number of its validation images."""
    recipe = load_recipe(RECIPE, (f"name={case}", *PLAIN, *changes))

    def build(recipe: Recipe, dataset: Dataset) -> nn.Module:
        return TinyNet(len(dataset.class_names), width, depth, bias)

    with ExitStack() as stack, tempfile.TemporaryDirectory() as folder:
        stack.enter_context(patch.object(trainer_setup, "_build_net", build))
        for name, mistake in (mistakes or {}).items():
            place = trainer_setup if hasattr(trainer_setup, name) else loaders
            stack.enter_context(patch.object(place, name, mistake))
        run = train.train(recipe, run_dir=Path(folder) / "run", is_progress_shown=False)
        lines = (run / "history.jsonl").read_text().splitlines()
        facts = json.loads((run / "run.json").read_text())
    return [json.loads(line) for line in lines], facts["data"]["validation"]["images"]


# --- mistakes -------------------------------------------------------------------------------------


def climb(recipe: object, net: nn.Module) -> torch.optim.Optimizer:
    """The sign of the step is wrong."""
    return torch.optim.SGD(
        [{"params": net.parameters(), "peak_lr": 0.05}], lr=0.05, momentum=0.9, maximize=True
    )


def step_another(recipe: object, net: nn.Module) -> torch.optim.Optimizer:
    """The optimiser has parameters of another network: what is trained is not what is shown."""
    other = TinyNet(10, 64, 2)
    return torch.optim.SGD([{"params": other.parameters(), "peak_lr": 0.05}], lr=0.05)


class SortedLoader(loading.MemoryLoader):
    """Shows the images in the order they lie in, class after class."""

    def __init__(self, views: Tensor, labels: Tensor, *rest: object, **options: object) -> None:
        order = labels.argsort(stable=True)
        super().__init__(views[order], labels[order], *rest, **options)  # type: ignore[arg-type]

    def batches(self, epoch: int) -> Iterator[loading.Batch]:
        with _unshuffled():
            yield from super().batches(epoch)


@contextmanager
def _unshuffled() -> Iterator[None]:
    def in_order(images: int, batch_size: int, **_: object) -> Tensor:
        full = images // batch_size
        return torch.arange(full * batch_size).view(full, batch_size)

    with patch.object(loading, "shuffled_batches", in_order):
        yield


def few_images(count: int) -> Callable[[object], Splits]:
    """Training has so few images that they can be learnt by heart."""

    def load(recipe: object) -> Splits:
        splits = split_stratified(load_digits_images(), 0.3, seed=0)
        return replace(splits, train=splits.train.subset(range(count)))

    return load


def noisy_labels(recipe: object) -> Splits:
    """Three labels in ten are wrong; there is always something left to learn by heart."""
    splits = split_stratified(load_digits_images(), 0.3, seed=0)
    labels = splits.train.labels.copy()
    chance = np.random.default_rng(0)
    wrong = chance.random(len(labels)) < 0.3
    labels[wrong] = chance.integers(0, 10, int(wrong.sum()))
    return replace(splits, train=replace(splits.train, labels=labels))


def turned_validation(recipe: object) -> Splits:
    """The validation images were taken with another camera: turned by 40 degrees."""
    splits = split_stratified(load_digits_images(), 0.3, seed=0)
    return replace(splits, validation=_changed(splits.validation, lambda one: one.rotate(40)))


def noisy_training(recipe: object) -> Splits:
    """Only the training images are spoiled, so that validation is the easier of the two."""
    splits = split_stratified(load_digits_images(), 0.3, seed=0)
    chance = np.random.default_rng(0)

    def spoil(image: Image.Image) -> Image.Image:
        values = np.asarray(image.resize((8, 8)), np.float64) + chance.normal(
            scale=110, size=(8, 8, 1)
        )
        return Image.fromarray(values.clip(0, 255).astype(np.uint8)).resize((32, 32))

    return replace(splits, train=_changed(splits.train, spoil))


def _changed(dataset: Dataset, change: Callable[[Image.Image], Image.Image]) -> Dataset:
    import io

    images = []
    for index in range(len(dataset)):
        with Image.open(io.BytesIO(dataset.image_bytes(index))) as image:
            file = io.BytesIO()
            change(image.convert("RGB")).save(file, "PNG")
        images.append(file.getvalue())
    return replace(dataset, images=images)


CASES: dict[str, Callable[[], tuple[list[dict[str, object]], int]]] = {
    "healthy": lambda: record(
        "healthy",
        "optim.lr=0.05",
        "optim.schedule=cosine",
        "train.epochs=25",
        "optim.weight_decay=0.001",
    ),
    "overfitting": lambda: record(
        "overfitting",
        "optim.lr=0.05",
        "train.epochs=40",
        width=256,
        mistakes={"load_splits": noisy_labels},
    ),
    "underfitting": lambda: record(
        "underfitting", "optim.lr=0.02", "train.epochs=40", width=2, depth=1
    ),
    "needs-longer": lambda: record(
        "needs-longer", "optim.lr=0.01", "optim.schedule=cosine", "train.epochs=4"
    ),
    "lr-too-high": lambda: record("lr-too-high", "optim.lr=0.5", "train.epochs=15"),
    "lr-noisy": lambda: record("lr-noisy", "optim.lr=0.25", "train.epochs=12"),
    "lr-diverges": lambda: record("lr-diverges", "optim.lr=2.0", "train.epochs=8"),
    "lr-too-low": lambda: record("lr-too-low", "optim.lr=0.0001", "train.epochs=15"),
    "not-learning": lambda: record(
        "not-learning",
        "optim.lr=0.05",
        "train.epochs=8",
        mistakes={"build_optimizer": step_another},
    ),
    "wrong-sign": lambda: record(
        "wrong-sign",
        "optim.lr=0.05",
        "train.epochs=6",
        "optim.clip_grad_norm=1.0",
        mistakes={"build_optimizer": climb},
    ),
    "unshuffled": lambda: record(
        "unshuffled", "optim.lr=0.05", "train.epochs=10", mistakes={"MemoryLoader": SortedLoader}
    ),
    "unrepresentative": lambda: record(
        "unrepresentative",
        "optim.lr=0.05",
        "train.epochs=15",
        mistakes={"load_splits": turned_validation},
    ),
    "easy-validation": lambda: record(
        "easy-validation",
        "optim.lr=0.02",
        "train.epochs=15",
        width=16,
        mistakes={"load_splits": noisy_training},
    ),
    "small-validation": lambda: record(
        "small-validation", "optim.lr=0.05", "train.epochs=15", "data.validation_fraction=0.012"
    ),
    "dead-relus": lambda: record(
        "dead-relus", "optim.lr=0.05", "train.epochs=15", bias=-4.0, depth=3
    ),
}


def main() -> None:
    """Records the cases that are named, or all."""
    for case in sys.argv[1:] or CASES:
        history, images = CASES[case]()
        for one in history:
            one["validation_images"] = images
            for key in ("seconds", "images_per_second"):
                del one[key]
        text = "".join(json.dumps(_rounded(one)) + "\n" for one in history)
        (FOLDER / f"{case}.jsonl").write_text(text)
        last = history[-1]
        sys.stdout.write(f"{case}: {last}\n")


def _rounded(record: dict[str, object]) -> dict[str, object]:
    def short(value: object) -> object:
        if isinstance(value, list):
            return [short(one) for one in value]
        return float(f"{value:.5g}") if isinstance(value, float) else value

    return {key: short(value) for key, value in record.items()}


if __name__ == "__main__":
    main()
