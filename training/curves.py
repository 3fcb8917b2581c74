"""The learning curves of a run, read and drawn from its history."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.config import AugmentRecipe, load_recipe
from training.errors import TrainingError
from training.learning_curves import Curves

History = Sequence[Mapping[str, Any]]

_COLUMNS = ("train_loss", "train_top1", "validation_loss", "validation_top1")


def read_history(path: Path) -> list[dict[str, Any]]:
    """Read `history.jsonl`: one record an epoch.

    Raises:
        TrainingError: a line is no JSON object.
    """
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    try:
        return [json.loads(line) for line in lines]
    except ValueError as error:
        raise TrainingError(f"{path}: {error}") from error


def plot_curves(history: History, path: Path, *, title: str) -> None:
    """Draw loss, top-1 error and learning rate over epochs as a PNG."""
    from matplotlib.figure import Figure  # here: only those who draw pay for the import

    epochs = [record["epoch"] for record in history]
    dot = "o" if len(epochs) == 1 else ""  # no line goes through a single point
    figure = Figure(figsize=(11, 3.6), layout="constrained")
    loss, error, rate = figure.subplots(1, 3)
    for axes, heading in ((loss, "cross-entropy"), (error, "top-1 error, %"), (rate, "lr / peak")):
        axes.set_title(heading, fontsize=10)
        axes.set_xlabel("epoch")
        axes.grid(alpha=0.3)
    for split, style in (("train", "--"), ("validation", "-")):
        loss.plot(epochs, [record[f"{split}_loss"] for record in history], dot + style, label=split)
        errors = [100 * (1 - record[f"{split}_top1"]) for record in history]
        error.plot(epochs, errors, dot + style, label=split)
    error.set_ylim(bottom=0)
    rate.plot(epochs, [record["lr_factor"] for record in history], dot + "-")
    loss.legend()
    figure.suptitle(title, fontsize=11)
    # As a label of the figure, which the layout keeps clear of the axes.
    figure.supxlabel("train: augmented images, smoothed labels", fontsize=7, x=0.005, ha="left")
    partial = path.with_name(path.name + ".partial")
    figure.savefig(partial, dpi=110, format="png")
    partial.replace(path)


def read_curves(
    source: Path, *, classes: int | None = None, validation_images: int | None = None
) -> Curves:
    """Read a run folder or a `history.jsonl` for a diagnosis.

    Args:
        source: the folder or the file; a folder knows the rest itself.
        classes: how many there are.
        validation_images: how many there are.

    Raises:
        TrainingError: there is no history, it lacks a column, or the classes are unknown.
    """
    facts: dict[str, Any] = {}
    is_plain = None
    path = source / "history.jsonl" if source.is_dir() else source
    history = read_history(path)
    if not history:
        raise TrainingError(f"{path}: no epoch is recorded there")
    columns = {name: _column(history, name, path) for name in _COLUMNS}
    if source.is_dir() and (source / "run.json").exists():
        facts = json.loads((source / "run.json").read_text(encoding="utf-8"))
        classes = len(facts["class_names"])
        validation_images = facts["data"]["validation"]["images"]
    if source.is_dir() and (source / "recipe.json").exists():
        recipe = load_recipe(source / "recipe.json")
        is_plain = recipe.augment == AugmentRecipe() and recipe.train.label_smoothing == 0
    if classes is None:
        raise TrainingError(f"{source}: say how many --classes there are")
    validation_images = validation_images or history[-1].get("validation_images")
    has_parts = len({len(record.get("loss_parts", ())) for record in history}) == 1
    return Curves(
        **columns,
        classes=classes,
        loss_parts=np.array([record["loss_parts"] for record in history])
        if has_parts and "loss_parts" in history[0]
        else None,
        dead_relus=_column(history, "dead_relus", path)
        if all(record.get("dead_relus") is not None for record in history)
        else None,
        validation_images=validation_images,
        is_training_plain=is_plain,
    )


def _column(history: History, name: str, path: Path) -> NDArray[np.float64]:
    try:
        return np.array([float(record[name]) for record in history])
    except (KeyError, TypeError, ValueError):
        raise TrainingError(f"{path}: not every line has a number {name}") from None
