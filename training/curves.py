"""The learning curves of a run, drawn from its history."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from training.errors import TrainingError

History = Sequence[Mapping[str, Any]]


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
    figure = Figure(figsize=(11, 3.6), layout="constrained")
    loss, error, rate = figure.subplots(1, 3)
    for axes, heading in ((loss, "cross-entropy"), (error, "top-1 error, %"), (rate, "lr / peak")):
        axes.set_title(heading, fontsize=10)
        axes.set_xlabel("epoch")
        axes.grid(alpha=0.3)
    for split, style in (("train", "--"), ("validation", "-")):
        loss.plot(epochs, [record[f"{split}_loss"] for record in history], style, label=split)
        errors = [100 * (1 - record[f"{split}_top1"]) for record in history]
        error.plot(epochs, errors, style, label=split)
    error.set_ylim(bottom=0)
    rate.plot(epochs, [record["lr_factor"] for record in history])
    loss.legend()
    figure.suptitle(title, fontsize=11)
    # As a label of the figure, which the layout keeps clear of the axes.
    figure.supxlabel("train: augmented images, smoothed labels", fontsize=7, x=0.005, ha="left")
    partial = path.with_name(path.name + ".partial")
    figure.savefig(partial, dpi=110, format="png")
    partial.replace(path)
