"""Imports a classifier that someone else exported to ONNX, gated and published like our own."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from service.bundle.preprocess import Views
from training.bundle_writer import BundleFacts, BundleWriter
from training.errors import TrainingError
from training.foreign import answer, find_what_it_emits, read_classifier, wrap
from training.hardware import describe_hardware
from training.images import load_images, sample_photographs
from training.labels import read_labels
from training.parity import parity_views
from training.pretrained import build_input, read_settings
from training.provenance import describe_provenance


@dataclass(frozen=True, slots=True, kw_only=True)
class OnnxRequest:
    """What to import.

    Attributes:
        file: The ONNX file.
        name: Of the model in the repository.
        labels: File of class names, in the order of the outputs; needed.
        preprocess: Values of `--preprocess`, see `pretrained.read_settings`: all of them.
        output: The output to take, where there are several.
        images: Folder or Parquet file for the gates; None takes scikit-learn's photographs.
        licence: Of the model.
    """

    file: Path
    name: str
    labels: Path | None
    preprocess: tuple[str, ...]
    output: str | None = None
    images: Path | None = None
    licence: str = "unknown"


def import_onnx(
    request: OnnxRequest, repository: Path, on_stage: Callable[[str], None] | None = None
) -> Path:
    """Publishes the classifier as a bundle and returns its folder.

    What the bundle answers is compared with what the file itself answers to the same images,
    normalised outside of it.

    Raises:
        TrainingError: The file is no such classifier, or a gate failed; nothing is published.
    """
    settings, tag = read_settings(request.preprocess)
    if tag is not None:
        raise TrainingError(f"an ONNX file has no published weights {tag!r}")
    recipe = build_input(request.file.name, settings)
    if request.labels is None:
        raise TrainingError("the names of the classes are needed: --labels FILE")
    labels = read_labels(request.labels)
    images = load_images(request.images, labels) if request.images else sample_photographs(labels)
    classifier = read_classifier(request.file, recipe.preprocess.crop, request.output)
    some = parity_views(images, recipe.preprocess)[:8]
    emits = find_what_it_emits(answer(classifier, recipe.normalisation, some))

    def expect(views: Views) -> NDArray[np.float32]:
        given = answer(classifier, recipe.normalisation, views)
        return given if emits == "probabilities" else _softmax(given)

    facts = BundleFacts(
        name=request.name,
        architecture=f"onnx:{request.file.stem}",
        licence=request.licence,
        preprocess=recipe.preprocess,
        normalisation=recipe.normalisation,
        labels=labels,
        provenance=describe_provenance(
            {
                "import": {
                    "onnx": {
                        "file": request.file.name,
                        "sha256": hashlib.sha256(request.file.read_bytes()).hexdigest(),
                        "emits": emits,
                    },
                    "preprocess": list(request.preprocess),
                }
            },
            dataset_fingerprint=f"validation:{images.fingerprint}",
            seed=None,
            hardware=describe_hardware(torch.device("cpu")),
        ),
        notes=(f"Imported from `{request.file.name}`; the probabilities are those of the file.",),
    )
    writer = BundleWriter(
        facts=facts,
        graphs={"fp32": wrap(classifier, recipe.normalisation, recipe.preprocess.crop, emits)},
        images=images,
        expected=expect,
        on_stage=on_stage,
    )
    return writer.publish(repository)


def _softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    raised = np.exp(logits - logits.max(axis=1, keepdims=True))
    shares: NDArray[np.float32] = raised / raised.sum(axis=1, keepdims=True)
    return shares
