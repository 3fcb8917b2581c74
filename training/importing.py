"""Imports weights that others trained: found, described, gated and published like our own."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from service.bundle.manifest import Label
from training.batch_norms import batch_norms
from training.bundle_writer import BundleFacts
from training.checkpoint import load_weights
from training.config import InputRecipe
from training.data import Dataset
from training.errors import TrainingError
from training.evaluate import image_views
from training.export import ExportOptions, export_network
from training.graph import ServedGraph
from training.hardware import describe_hardware
from training.images import load_images, sample_photographs
from training.labels import generate_labels, read_labels
from training.models.registry import build_model
from training.pretrained import (
    FREE_LICENCES,
    PublishedWeights,
    build_input,
    find_weights,
    read_settings,
    sure_settings,
)
from training.provenance import describe_provenance

_RANDOM_CLASSES = 1000
# What trained classifiers' logits are spread by: enough for clear answers, far from saturation.
_RANDOM_LOGIT_STD = 3.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportRequest:
    """What to import.

    Attributes:
        architecture: `timm:<name>`, `torchvision:<name>` or `seed:<name>`.
        name: Of the model in the repository.
        weights: A safetensors file in the provider's names; None downloads the published ones.
        random_seed: Make weights from this seed instead: for benchmarks and tests.
        preprocess: Values of `--preprocess`, see `pretrained.read_settings`.
        labels: File of class names; only random weights can do without.
        images: Folder or Parquet file for the gates; None takes scikit-learn's photographs.
        licence: Of the weights; None takes what the provider states.
        is_licence_accepted: Import although the licence is not a free one.
    """

    architecture: str
    name: str
    weights: Path | None = None
    random_seed: int | None = None
    preprocess: tuple[str, ...] = ()
    labels: Path | None = None
    images: Path | None = None
    licence: str | None = None
    is_licence_accepted: bool = False


def import_bundle(
    request: ImportRequest,
    repository: Path,
    options: ExportOptions | None = None,
    on_stage: Callable[[str], None] | None = None,
) -> Path:
    """Publishes the requested weights as a bundle and returns its folder.

    The probabilities are those of the weights: no temperature is fitted, whatever `options` say.

    Raises:
        TrainingError: The request contradicts itself, the weights cannot be had, are not free or do
            not fit, or a gate failed; nothing is published.
    """
    labels = _labels(request)
    given, tag = read_settings(request.preprocess)
    published = find_weights(request.architecture, tag)
    _check_request(request, published, tag, len(labels))
    known = _known_settings(request, published, given)
    input_recipe = build_input(request.architecture, {**known, **given})
    images = load_images(request.images, labels) if request.images else sample_photographs(labels)
    if on_stage is not None:
        on_stage(f"weights of {request.architecture}")
    network = _build(request, len(labels), input_recipe, images)
    facts = BundleFacts(
        name=request.name,
        architecture=request.architecture,
        licence=_licence(request, published),
        preprocess=input_recipe.preprocess,
        normalisation=input_recipe.normalisation,
        labels=labels,
        provenance=describe_provenance(
            _describe_import(request, published),
            dataset_fingerprint=f"validation:{images.fingerprint}",
            seed=request.random_seed,
            hardware=describe_hardware(torch.device("cpu")),
        ),
        notes=_notes(request),
    )
    options = replace(options or ExportOptions(), is_calibrated=False)
    return export_network(network, facts, images, repository, options, on_stage)


def randomise(network: nn.Module, input_recipe: InputRecipe, images: Dataset) -> None:
    """Gives an untrained network the numbers of a trained one: their size, not their sense.

    Batch normalisation takes its statistics from the images, and the classifier is scaled until
    logits spread as usual. Left as they are, deep networks fade out: all answers tie, nothing could
    be compared, and tiny values may be slower than real ones.
    """
    views = [image_views(images, index, input_recipe.preprocess) for index in range(len(images))]
    graph = ServedGraph(network.eval(), input_recipe.normalisation)
    batch = torch.from_numpy(np.concatenate(views))
    norms = batch_norms(network)
    with torch.no_grad():
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # the plain mean over what is seen
            norm.train()
        graph.logits_and_embedding(batch)
        network.eval()
        spread = float(graph.logits_and_embedding(batch)[0].std())
        classifier = [one for one in network.modules() if isinstance(one, nn.Linear | nn.Conv2d)][
            -1
        ]
        scale = _RANDOM_LOGIT_STD / max(spread, 1e-12)
        for parameter in classifier.parameters():
            parameter.mul_(scale)


def _labels(request: ImportRequest) -> tuple[Label, ...]:
    if request.labels is not None:
        return read_labels(request.labels)
    if request.random_seed is None:
        raise TrainingError("the names of the classes are needed: --labels FILE")
    return generate_labels(_RANDOM_CLASSES)


def _check_request(
    request: ImportRequest, published: list[PublishedWeights], tag: str | None, classes: int
) -> None:
    if request.random_seed is not None:
        if request.weights is not None:
            raise TrainingError("give a weights file or ask for random weights, not both")
        return
    if not published:
        return
    default = published[0]
    is_download = request.weights is None
    if is_download and tag and request.architecture.startswith("torchvision:"):
        newest = find_weights(request.architecture)[0]
        if tag != newest.tag:
            raise TrainingError(
                f"{request.architecture}: only {newest.tag} is downloaded; give a file of {tag}"
            )
    if is_download and default.classes != classes:
        raise TrainingError(
            f"{request.architecture} {default.tag} tells {default.classes} classes apart, "
            f"{request.labels} names {classes}"
        )
    if request.is_licence_accepted or request.licence:
        return
    licence = default.licence
    if not is_download and any(one.licence != licence for one in published):
        raise TrainingError(
            f"{request.architecture}: licences differ between its published weights; say whose the "
            f"file is: --preprocess TAG, one of {', '.join(one.tag for one in published)}; or its "
            "own: --licence"
        )
    if licence not in FREE_LICENCES:
        raise TrainingError(
            f"{request.architecture} {default.tag} has the licence {licence!r}, which may forbid "
            "commercial use; --accept-licence imports it all the same"
        )


def _known_settings(
    request: ImportRequest, published: list[PublishedWeights], given: Mapping[str, Any]
) -> dict[str, object]:
    if request.weights is not None:
        return dict(sure_settings(request.architecture, published, given))
    return dict(published[0].settings) if published else {}


def _build(
    request: ImportRequest, classes: int, input_recipe: InputRecipe, images: Dataset
) -> nn.Module:
    if request.random_seed is not None:
        torch.manual_seed(request.random_seed)
        network = build_model(request.architecture, classes=classes)
        randomise(network, input_recipe, images)
        return network
    if request.weights is not None:
        weights = load_weights(request.weights)
        return build_model(request.architecture, classes=classes, weights=weights)
    try:
        return build_model(request.architecture, classes=classes, is_pretrained=True)
    except TrainingError as error:
        reason = str(error).rstrip(".")
        raise TrainingError(f"{reason}; --weights FILE needs no network") from error


def _licence(request: ImportRequest, published: list[PublishedWeights]) -> str:
    if request.licence is not None:
        return request.licence
    if request.random_seed is not None:
        return "cc0-1.0"
    # A file may be of any tag; what is downloaded is of the first.
    candidates = published[:1] if request.weights is None else published
    licences = {one.licence for one in candidates}
    return licences.pop() if len(licences) == 1 else "unknown"


def _describe_import(
    request: ImportRequest, published: list[PublishedWeights]
) -> dict[str, object]:
    recipe: dict[str, object] = {"architecture": request.architecture}
    if request.random_seed is not None:
        recipe["weights"] = "random"
    elif request.weights is not None:
        digest = hashlib.sha256(request.weights.read_bytes()).hexdigest()
        recipe["weights"] = {"file": request.weights.name, "sha256": digest}
    else:
        recipe["weights"] = {"tag": published[0].tag if published else None}
    recipe["preprocess"] = list(request.preprocess)
    return {"import": recipe}


def _notes(request: ImportRequest) -> tuple[str, ...]:
    if request.random_seed is not None:
        return (
            f"**Random weights** (seed {request.random_seed}): for measuring speed. "
            "Its answers mean nothing.",
        )
    source = "published weights" if request.weights is None else f"`{request.weights.name}`"
    return (f"Imported from {source}; the probabilities are those of the weights.",)
