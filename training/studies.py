"""How a model's accuracy depends on one thing: the views it gets, the images' size, place, quality.

Every point is measured as the service would answer the changed images; see
`training.perturbations`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal, get_args

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from service.bundle.manifest import Preprocess, TtaPolicy
from service.bundle.preprocess import TTA_POLICIES, count_views
from training.data import Dataset
from training.evaluate import check_labelled, score_images
from training.perturbations import (
    CORRUPTIONS,
    SEVERITIES,
    Axes,
    Perturb,
    corrupt,
    mirror,
    perturbed,
    rotate,
    shift,
    shrink,
)
from training.scores import wilson_interval

StudyName = Literal["tta", "size", "rotation", "shift", "flip", "corruption"]
STUDIES: tuple[StudyName, ...] = get_args(StudyName)

_TITLES: dict[StudyName, tuple[str, str]] = {
    "tta": ("Test-time augmentation", "policy, views"),
    "size": ("Image size", "shorter side of the image, px"),
    "rotation": ("Rotation, in a circle", "degrees"),
    "shift": ("Shift, in a circle", "px"),
    "flip": ("Reflection, in a circle", ""),
    "corruption": ("Common corruptions", "severity"),
}
_ROTATION_STEP_DEG = 15
_SHIFT_SHARES = (0, 1 / 32, 1 / 16, 1 / 8, 3 / 16, 1 / 4)
_SIZE_SHARES = (0.75, 0.5, 0.375, 0.25, 0.125)


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """Accuracy under one condition.

    Attributes:
        label: The condition, as a reader would name it.
        value: Its place on the axis.
        top1: Share of right answers; the interval is Wilson's at 95 %.
        same: Share of images that are answered as at the first point of the line.
    """

    label: str
    value: float
    top1: float
    top1_interval: tuple[float, float]
    same: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """Points along an axis; the first is what the others are compared with."""

    name: str
    points: tuple[Point, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Study:
    """One or more lines over the same axis."""

    name: StudyName
    title: str
    axis: str
    images: int
    lines: tuple[Line, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Condition:
    label: str
    value: float
    tta: TtaPolicy = "none"
    perturb: Perturb | None = None


def count_passes(name: StudyName, preprocess: Preprocess) -> int:
    """Returns how often a study goes through the images."""
    return len({one for line in _conditions(name, preprocess).values() for one in line})


def run_study(
    name: StudyName,
    session: ort.InferenceSession,
    dataset: Dataset,
    preprocess: Preprocess,
    on_progress: Callable[[int], None] | None = None,
) -> Study:
    """Returns one study of a model on labelled images.

    Raises:
        TrainingError: Images have no labels, or one of them, or an answer, is refused.
    """
    check_labelled(dataset)

    @cache  # the lines of a study begin with the same images
    def predicted(condition: _Condition) -> NDArray[np.int64]:
        images = dataset
        if condition.perturb is not None:
            images = perturbed(dataset, preprocess, condition.perturb)
        scored = score_images(
            session, images, preprocess, tta=condition.tta, on_progress=on_progress
        )
        best: NDArray[np.int64] = scored.probabilities.argmax(axis=1)
        return best

    lines = [
        Line(
            name=line,
            points=tuple(
                _point(one, predicted(one), predicted(conditions[0]), dataset.labels)
                for one in conditions
            ),
        )
        for line, conditions in _conditions(name, preprocess).items()
    ]
    title, axis = _TITLES[name]
    return Study(name=name, title=title, axis=axis, images=len(dataset), lines=tuple(lines))


def _point(
    condition: _Condition,
    predicted: NDArray[np.int64],
    reference: NDArray[np.int64],
    labels: NDArray[np.int64],
) -> Point:
    hits = int((predicted == labels).sum())
    return Point(
        label=condition.label,
        value=condition.value,
        top1=hits / len(labels),
        top1_interval=wilson_interval(hits, len(labels)),
        same=float((predicted == reference).mean()),
    )


def _conditions(name: StudyName, preprocess: Preprocess) -> dict[str, Sequence[_Condition]]:
    """Returns the conditions of each line of a study."""
    pixels = min(preprocess.crop.height, preprocess.crop.width)
    if name == "tta":
        return {
            "": [
                _Condition(label=f"{tta}, {count_views(tta)}", value=place, tta=tta)
                for place, tta in enumerate(TTA_POLICIES)
            ]
        }
    if name == "size":
        side = preprocess.resize.size
        smaller = [
            _Condition(label=f"{side * share:.0f}", value=side * share, perturb=shrink(share))
            for share in _SIZE_SHARES
        ]
        return {"": [_Condition(label=f"{side}", value=side), *smaller]}
    if name == "rotation":
        return {
            "": [
                _Condition(label=f"{angle}", value=angle, perturb=rotate(angle, pixels))
                for angle in range(0, 360, _ROTATION_STEP_DEG)
            ]
        }
    if name == "shift":
        steps = sorted({round(share * pixels) for share in _SHIFT_SHARES})
        return {"": [_Condition(label=f"{n}", value=n, perturb=shift(n, pixels)) for n in steps]}
    if name == "flip":
        return {
            "": [
                _Condition(label=axes, value=place, perturb=mirror(axes, pixels))
                for place, axes in enumerate(get_args(Axes))
            ]
        }
    unchanged = _Condition(label="0", value=0)
    return {
        kind: [
            unchanged,
            *(
                _Condition(label=f"{n}", value=n, perturb=corrupt(kind, n, pixels))
                for n in range(1, SEVERITIES + 1)
            ),
        ]
        for kind in CORRUPTIONS
    }
