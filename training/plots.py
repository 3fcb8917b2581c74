"""The plots of an evaluation, as PNG files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from training.evaluate import Evaluation
from training.studies import Study

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Beyond, names and numbers in the squares cannot be read ...
_MAX_NAMED_CLASSES = 30
# ... and beyond this, not even the squares.
MAX_PLOTTED_CLASSES = 200


def plot_reliability(evaluation: Evaluation, path: Path) -> None:
    """Draws accuracy over confidence in bins, and how many images each holds, as a PNG."""
    figure, (share, counts) = _figure((4.2, 4.6), rows=(3, 1))
    filled = [one for one in evaluation.bins if one.images]
    middles = [(one.lower + one.upper) / 2 for one in filled]
    width = 1 / len(evaluation.bins)
    share.bar(middles, [one.accuracy for one in filled], width * 0.95, label="accuracy")
    share.plot([0, 1], [0, 1], "k--", linewidth=0.8, label="perfect")
    share.set_title(f"ECE {evaluation.ece:.4f}, {evaluation.images} images", fontsize=9)
    share.set_ylabel("accuracy")
    share.set_ylim(0, 1)
    share.legend(fontsize=8, loc="upper left")
    counts.bar(middles, [one.images for one in filled], width * 0.95, color="grey")
    counts.set_yscale("log")
    counts.set_ylim(bottom=0.8)
    counts.set_xlabel("confidence")
    counts.set_ylabel("images")
    for axes in (share, counts):
        axes.set_xlim(0, 1)
    _save(figure, path)


def plot_confusion(evaluation: Evaluation, path: Path) -> None:
    """Draws the share of each class's images that went to each class, as a PNG."""
    matrix = evaluation.matrix
    classes = len(matrix)
    is_named = classes <= _MAX_NAMED_CLASSES
    side = min(9.0, 2.0 + 0.42 * classes) if is_named else 5.5
    figure, (axes,) = _figure((side, side))
    shares = matrix / matrix.sum(axis=1, keepdims=True).clip(1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    axes.set_xlabel("predicted")
    axes.set_ylabel("label")
    if is_named:
        names = [one.name for one in evaluation.classes]
        axes.set_xticks(range(classes), names, rotation=90, fontsize=7)
        axes.set_yticks(range(classes), names, fontsize=7)
        for row in range(classes):
            for column in range(classes):
                if matrix[row, column]:
                    colour = "white" if shares[row, column] > 0.5 else "black"
                    text = str(matrix[row, column])
                    axes.text(column, row, text, ha="center", va="center", fontsize=6, color=colour)
    _save(figure, path)


def plot_study(study: Study, path: Path) -> None:
    """Draws accuracy over what the study varies, its 95 % interval shaded, as a PNG."""
    figure, (axes,) = _figure((5.6, 3.4))
    places = [[point.value for point in line.points] for line in study.lines]
    for line, place in zip(study.lines, places, strict=True):
        shares = [point.top1 for point in line.points]
        (drawn,) = axes.plot(place, shares, "o-", markersize=3, label=line.name or "accuracy")
        lower, upper = zip(*(point.top1_interval for point in line.points), strict=True)
        axes.fill_between(place, lower, upper, color=drawn.get_color(), alpha=0.15, linewidth=0)
    if len(study.lines) == 1 and study.name != "tta":
        same = [point.same for point in study.lines[0].points]
        axes.plot(places[0], same, "--", linewidth=1, label="answered as the first")
    if study.name in ("tta", "flip"):
        labels = [point.label for point in study.lines[0].points]
        axes.set_xticks(places[0], labels, fontsize=8)
    if study.name != "tta":
        axes.set_ylim(0, 1)
    axes.set_title(f"{study.title}, {study.images} images", fontsize=9)
    axes.set_xlabel(study.axis)
    axes.set_ylabel("top-1")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    _save(figure, path)


def _figure(
    size: tuple[float, float], rows: tuple[int, ...] = (1,)
) -> tuple[Figure, tuple[Axes, ...]]:
    from matplotlib.figure import Figure  # here: only those who draw pay for the import

    figure = Figure(figsize=size, layout="constrained")
    found = figure.subplots(len(rows), 1, squeeze=False, height_ratios=rows)[:, 0]
    return figure, tuple(found)


def _save(figure: Figure, path: Path) -> None:
    # Without the version of matplotlib in it, the same numbers give the same file.
    figure.savefig(path, dpi=100, format="png", metadata={"Software": None})
