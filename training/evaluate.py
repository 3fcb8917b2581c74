"""Evaluation through the served path: encoded bytes -> views -> ONNX Runtime -> mean over views.

The steps and session options are those of the service, so the accuracy that is written into a
bundle is the accuracy that serving gives.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from service.bundle.decode import Limits
from service.bundle.manifest import Metrics, Preprocess, TtaPolicy
from service.bundle.postprocess import Average, average_views
from service.bundle.preprocess import Views, count_views, prepare
from service.bundle.repository import Bundle
from service.errors import RequestError
from training.data import Dataset
from training.errors import TrainingError
from training.scores import (
    ClassScore,
    MacroScore,
    ReliabilityBin,
    brier_score,
    class_scores,
    confusion_matrix,
    expected_calibration_error,
    macro_score,
    negative_log_likelihood,
    reliability,
    top_k_hits,
    wilson_interval,
)
from training.session import open_session, run_views

_BATCH_VIEWS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredImages:
    """What the graph answered: probabilities float32 [N, C]; embedding float32 [N, D] or None."""

    probabilities: NDArray[np.float32]
    embedding: NDArray[np.float32] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """How well a model answers labelled images; intervals are Wilson's at 95 %.

    `matrix` is int64 [C, C], row = label, column = prediction; `nll` is in nats.
    """

    dataset: str
    split: str
    tta: TtaPolicy
    images: int
    top1: float
    top1_interval: tuple[float, float]
    top5: float
    top5_interval: tuple[float, float]
    nll: float
    brier: float
    ece: float
    bins: tuple[ReliabilityBin, ...]
    macro: MacroScore
    classes: tuple[ClassScore, ...]
    matrix: NDArray[np.int64]

    def metrics(self, variant: str) -> Metrics:
        """Returns the record of this evaluation for the manifest."""
        return Metrics(
            variant=variant,
            dataset=self.dataset,
            split=self.split,
            images=self.images,
            tta=self.tta,
            top1=self.top1,
            top1_interval=self.top1_interval,
            top5=self.top5,
            top5_interval=self.top5_interval,
            nll=self.nll,
            ece=self.ece,
        )


def check_labelled(dataset: Dataset) -> None:
    """Makes sure that every image has a class.

    Raises:
        TrainingError: One has none.
    """
    if not is_labelled(dataset):
        raise TrainingError(f"{dataset.name}: its images have no labels")


def is_labelled(dataset: Dataset) -> bool:
    """Whether every image has a class; see `training.images` for those that have none."""
    return bool((dataset.labels >= 0).all())


def image_views(
    dataset: Dataset, index: int, preprocess: Preprocess, tta: TtaPolicy = "none"
) -> Views:
    """Returns the views of one image of a data set, uint8 [V, H, W, 3].

    Raises:
        TrainingError: The served decoder refuses the image.
    """
    try:
        data = dataset.image_bytes(index)
        return prepare(data, preprocess, tta=tta, limits=Limits()).views
    except RequestError as error:
        raise TrainingError(f"{dataset.name}: image {index}: {error}") from error
    except OSError as error:
        raise TrainingError(f"{dataset.name}: image {index}: {error.strerror}") from error


def score_images(
    session: ort.InferenceSession,
    dataset: Dataset,
    preprocess: Preprocess,
    *,
    tta: TtaPolicy = "none",
    average: Average = "arithmetic",
    on_progress: Callable[[int], None] | None = None,
) -> ScoredImages:
    """Returns what the served path answers for every image; labels are not looked at.

    `on_progress` is called with the number of images that have just been finished. The embedding is
    that of the first view.

    Raises:
        TrainingError: An image is refused, or an answer is not finite.
    """
    views_per_image = count_views(tta)
    chunk = max(1, _BATCH_VIEWS // views_per_image)

    def score_chunk(start: int) -> list[NDArray[np.float32]]:
        indices = range(start, min(start + chunk, len(dataset)))
        views = np.concatenate([image_views(dataset, i, preprocess, tta) for i in indices])
        outputs = run_views(session, views)
        per_image = outputs[0].reshape(len(indices), views_per_image, -1)
        try:
            means = np.stack([average_views(one, average) for one in per_image])
        except RequestError as error:
            raise TrainingError(f"{dataset.name}, from image {start}: {error}") from error
        if on_progress is not None:
            on_progress(len(indices))
        return [means, *(one[::views_per_image] for one in outputs[1:])]

    # One image at a time on every core, as the service does: the session has one thread of its own.
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        chunks = list(pool.map(score_chunk, range(0, len(dataset), chunk)))
    columns = [np.concatenate(column) for column in zip(*chunks, strict=True)]
    return ScoredImages(
        probabilities=columns[0], embedding=columns[1] if len(columns) > 1 else None
    )


def evaluate_scores(
    probabilities: NDArray[np.float32], dataset: Dataset, *, tta: TtaPolicy = "none"
) -> Evaluation:
    """Returns how well probabilities [N, C] answer the labels of `dataset`."""
    labels, images = dataset.labels, len(dataset)
    top1 = int(top_k_hits(probabilities, labels, 1).sum())
    top5 = int(top_k_hits(probabilities, labels, 5).sum())
    bins = reliability(probabilities, labels)
    predicted = probabilities.argmax(axis=1).astype(np.int64)
    matrix = confusion_matrix(predicted, labels, probabilities.shape[1])
    classes = class_scores(matrix, dataset.class_names)
    return Evaluation(
        dataset=dataset.name,
        split=dataset.split,
        tta=tta,
        images=images,
        top1=top1 / images,
        top1_interval=wilson_interval(top1, images),
        top5=top5 / images,
        top5_interval=wilson_interval(top5, images),
        nll=negative_log_likelihood(probabilities, labels),
        brier=brier_score(probabilities, labels),
        ece=expected_calibration_error(bins),
        bins=bins,
        macro=macro_score(classes),
        classes=classes,
        matrix=matrix,
    )


def open_bundle(bundle: Bundle, precision: str = "fp32") -> ort.InferenceSession:
    """Returns a session of one variant of a bundle.

    Raises:
        TrainingError: The bundle has no such variant.
    """
    variant = bundle.variant(precision)
    if variant is None:
        raise TrainingError(f"{bundle.reference} has no {precision} variant")
    return open_session(bundle.folder / variant.file)


def evaluate_bundle(
    bundle: Bundle,
    dataset: Dataset,
    *,
    precision: str = "fp32",
    tta: TtaPolicy = "none",
    average: Average = "arithmetic",
    on_progress: Callable[[int], None] | None = None,
) -> Evaluation:
    """Returns how well a bundle answers `dataset`, whose labels index the bundle's classes.

    Raises:
        TrainingError: The bundle has no such variant, images have no labels, or an image or answer
            is refused.
    """
    check_labelled(dataset)
    scored = score_images(
        open_bundle(bundle, precision),
        dataset,
        bundle.manifest.preprocess,
        tta=tta,
        average=average,
        on_progress=on_progress,
    )
    return evaluate_scores(scored.probabilities, dataset, tta=tta)
