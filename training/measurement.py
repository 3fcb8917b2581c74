"""Everything that is measured of a bundle in one go, and the folder that it is written to."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from service.bundle.manifest import TtaPolicy
from service.bundle.postprocess import Average
from service.bundle.repository import Bundle
from training.data import Dataset
from training.errors import TrainingError
from training.evaluate import (
    Evaluation,
    check_labelled,
    evaluate_scores,
    open_bundle,
    score_images,
)
from training.images import sample_places
from training.plots import MAX_PLOTTED_CLASSES, plot_confusion, plot_reliability, plot_study
from training.report import describe_evaluation
from training.studies import Study, StudyName, count_passes, run_study
from training.worst_images import Mistake, draw_mistakes, find_mistakes

MEASUREMENT_FILE = "evaluation.json"
_SHOWN_MISTAKES = 24


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What is to be measured, on so many images by chance; None is all of them."""

    images: int | None = None
    precision: str = "fp32"
    tta: TtaPolicy = "none"
    average: Average = "arithmetic"
    studies: Sequence[StudyName] = ()
    study_images: int = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """What was measured of one variant of a bundle."""

    bundle: str
    variant: str
    evaluation: Evaluation
    mistakes: tuple[Mistake, ...]
    studies: tuple[Study, ...]

    def to_dict(self) -> dict[str, Any]:
        """Returns every number of it as JSON values."""
        return {
            "bundle": self.bundle,
            "variant": self.variant,
            **describe_evaluation(self.evaluation),
            "worst": [dataclasses.asdict(one) for one in self.mistakes],
            "studies": [dataclasses.asdict(one) for one in self.studies],
        }


def count_images(bundle: Bundle, dataset: Dataset, request: Request) -> int:
    """Returns how many images will have been answered in the end."""
    passes = sum(count_passes(name, bundle.manifest.preprocess) for name in request.studies)
    images = len(sample_places(dataset, request.images))
    return images + passes * min(images, request.study_images)


def measure(
    bundle: Bundle,
    dataset: Dataset,
    request: Request,
    on_progress: Callable[[int], None] | None = None,
) -> Measurement:
    """Returns what is asked for, measured through the served path.

    Raises:
        TrainingError: The bundle has no such variant, images have no labels, or an image or answer
            is refused.
    """
    check_labelled(dataset)
    preprocess = bundle.manifest.preprocess
    session = open_bundle(bundle, request.precision)
    places = sample_places(dataset, request.images)
    asked = dataset.subset(places)
    scored = score_images(
        session,
        asked,
        preprocess,
        tta=request.tta,
        average=request.average,
        on_progress=on_progress,
    )
    mistakes = find_mistakes(scored.probabilities, asked.labels, asked.class_names, _SHOWN_MISTAKES)
    some = asked.subset(sample_places(asked, request.study_images))
    return Measurement(
        bundle=bundle.reference,
        variant=request.precision,
        evaluation=evaluate_scores(scored.probabilities, asked, tta=request.tta),
        mistakes=tuple(dataclasses.replace(one, image=places[one.image]) for one in mistakes),
        studies=tuple(
            run_study(name, session, some, preprocess, on_progress) for name in request.studies
        ),
    )


def write_measurement(
    measurement: Measurement, bundle: Bundle, dataset: Dataset, folder: Path
) -> None:
    """Writes `evaluation.json` and the plots into a folder, which is made when absent.

    Raises:
        TrainingError: It cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        plot_reliability(measurement.evaluation, folder / "reliability.png")
        if len(measurement.evaluation.classes) <= MAX_PLOTTED_CLASSES:
            plot_confusion(measurement.evaluation, folder / "confusion.png")
        if measurement.mistakes:
            worst = folder / "worst.png"
            draw_mistakes(measurement.mistakes, dataset, bundle.manifest.preprocess, worst)
        for study in measurement.studies:
            plot_study(study, folder / f"{study.name}.png")
        text = json.dumps(measurement.to_dict(), indent=1)
        (folder / MEASUREMENT_FILE).write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise TrainingError(f"{folder} cannot be written: {error.strerror}") from error
