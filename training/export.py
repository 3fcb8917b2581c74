"""Exports a network, or a training run, as a bundle: calibrate, build the graphs, gate, publish."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from service.bundle.manifest import Group, Label, Preprocess, TtaPolicy
from service.bundle.preprocess import Views
from training.bundle_writer import BundleFacts, BundleWriter
from training.calibrate import calibrate
from training.config import recipe_to_dict
from training.data import Dataset, load_splits
from training.errors import TrainingError
from training.evaluate import check_labelled, image_views
from training.graph import ServedGraph, export_onnx, half_network
from training.half_weights import round_to_half, stored_in_half
from training.labels import read_hierarchy
from training.parity import finite_expectation
from training.provenance import describe_provenance
from training.quantize import quantize
from training.trained_run import load_run

_BATCH_IMAGES = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportOptions:
    """What a bundle holds besides its fp32 graph, and how it is measured.

    Attributes:
        is_calibrated: Fit a temperature on the labelled images; else it is 1.
        has_fp16: Add a variant whose network computes in half precision, for GPUs.
        has_int8: Add a variant in 8 bits, for CPUs, if it loses at most half a point of top-1.
        has_half_weights: Keep large weights in 16 bits in the file (`half_weights`).
        tta_policies: Accuracy is measured for these too, besides "none"; for a run that none is
            given for, "hflip" when its recipe flips images.
        target_accuracy: Of the answers above the abstention threshold; None halves the error.
        has_class_thresholds: Choose thresholds for single classes too.
    """

    is_calibrated: bool = True
    has_fp16: bool = False
    has_int8: bool = False
    has_half_weights: bool = False
    tta_policies: tuple[TtaPolicy, ...] = ()
    target_accuracy: float | None = None
    has_class_thresholds: bool = False


def export_network(
    network: nn.Module,
    facts: BundleFacts,
    images: Dataset,
    repository: Path,
    options: ExportOptions | None = None,
    on_stage: Callable[[str], None] | None = None,
    training_images: Dataset | None = None,
) -> Path:
    """Publishes `network` as a bundle and returns its folder.

    Args:
        network: Float32, maps normalised images [N, 3, H, W] to logits [N, C].
        facts: What the manifest says that is not measured; its calibration is filled in here.
        images: 64 real images or more that the network was not trained on.
        repository: The folder of bundles.
        options: What else it holds.
        on_stage: Told what happens next, in a few words.
        training_images: Set the ranges of int8; without them every fourth of `images` does, and the
            others judge it.

    Raises:
        TrainingError: The network cannot be exported, or a gate failed; nothing is published.
    """
    options = options or ExportOptions()
    tell = on_stage or _stay_silent
    network = network.float().cpu().eval()
    notes = facts.notes
    if options.has_half_weights:
        network = round_to_half(network)
        notes = (*notes, "Large weights are stored in 16 bits, and used in 32.")
    calibration = None
    if options.is_calibrated:
        check_labelled(images)
        tell(f"temperature on {len(images)} images")
        plain = ServedGraph(network, facts.normalisation)
        logits = finite_expectation(network_logits(plain, images, facts.preprocess))
        calibration = calibrate(logits, images.labels)
    temperature = 1.0 if calibration is None else calibration.temperature
    graph = ServedGraph(network, facts.normalisation, temperature=temperature)
    tell("graph of fp32")
    stored = stored_in_half(graph) if options.has_half_weights else graph
    graphs = {"fp32": export_onnx(stored, facts.preprocess.crop)}
    if options.has_fp16:
        tell("graph of fp16")
        half = ServedGraph(
            half_network(network), facts.normalisation, temperature=temperature, is_half=True
        )
        graphs["fp16"] = export_onnx(half, facts.preprocess.crop)
    if options.has_int8:
        check_labelled(images)
        ranged, judged = _split_for_int8(images, training_images)
        quantised = quantize(graphs["fp32"], ranged, judged, facts.preprocess, tell)
        tell(quantised.verdict)
        notes = (*notes, quantised.verdict)
        if quantised.model is not None:
            graphs["int8"] = quantised.model
    writer = BundleWriter(
        facts=replace(facts, calibration=calibration, notes=notes),
        graphs=graphs,
        images=images,
        expected=lambda views: network_probabilities(graph, views),
        tta_policies=options.tta_policies,
        target_accuracy=options.target_accuracy,
        has_class_thresholds=options.has_class_thresholds,
        on_stage=on_stage,
    )
    return writer.publish(repository)


def export_run(
    run_dir: Path,
    *,
    name: str,
    repository: Path,
    licence: str | None = None,
    hierarchy: Path | None = None,
    options: ExportOptions | None = None,
    on_stage: Callable[[str], None] | None = None,
) -> Path:
    """Publishes a training run as a bundle and returns its folder.

    It is calibrated and measured on the validation images of its recipe. `licence` is that of the
    data unless given; `hierarchy` is a file for `training.labels.read_hierarchy`.

    Raises:
        TrainingError: It is no finished run, its data is not what it was, or a gate failed.
    """
    run = load_run(run_dir)
    recipe = run.recipe
    options = options or ExportOptions()
    if not options.tta_policies and recipe.augment.flip != "none":
        options = replace(options, tta_policies=("hflip",))
    splits = load_splits(recipe.data)
    fingerprints = {
        "train": splits.train.fingerprint,
        "validation": splits.validation.fingerprint,
    }
    for split, found in fingerprints.items():
        if (recorded := run.facts["data"][split]["fingerprint"]) != found:
            raise TrainingError(
                f"{run_dir}: its {split} images are not those it was trained with: "
                f"{found[:12]} is not {recorded[:12]}"
            )
    curves = run_dir / "curves.png"
    labels = tuple(Label(name=one) for one in run.class_names)
    groups: tuple[Group, ...] = ()
    if hierarchy is not None:
        labels, groups = read_hierarchy(hierarchy, labels)
    facts = BundleFacts(
        name=name,
        architecture=recipe.model.architecture,
        licence=licence or recipe.data.licence,
        preprocess=recipe.input.preprocess,
        normalisation=recipe.input.normalisation,
        labels=labels,
        groups=groups,
        provenance=describe_provenance(
            recipe_to_dict(recipe),
            dataset_fingerprint=" ".join(f"{k}:{v}" for k, v in fingerprints.items()),
            seed=recipe.seed,
            hardware=run.facts["hardware"],
            libraries=run.facts["libraries"],
        ),
        curves=curves if curves.is_file() else None,
    )
    return export_network(
        run.net, facts, splits.validation, repository, options, on_stage, splits.train
    )


def network_logits(
    graph: ServedGraph, images: Dataset, preprocess: Preprocess
) -> NDArray[np.float32]:
    """Returns PyTorch's logits float32 [N, C] of the served views, before the temperature."""
    batches = []
    for start in range(0, len(images), _BATCH_IMAGES):
        indices = range(start, min(start + _BATCH_IMAGES, len(images)))
        views = np.concatenate([image_views(images, index, preprocess) for index in indices])
        with torch.inference_mode():
            batches.append(graph.logits_and_embedding(torch.from_numpy(views))[0].numpy())
    return np.concatenate(batches)


def network_probabilities(graph: ServedGraph, views: Views) -> NDArray[np.float32]:
    """Returns PyTorch's probabilities float32 [N, C] of views uint8 [N, H, W, 3]."""
    with torch.inference_mode():
        batches = torch.split(torch.from_numpy(views), _BATCH_IMAGES)
        return torch.cat([graph(batch)[0] for batch in batches]).numpy()


def _split_for_int8(images: Dataset, training_images: Dataset | None) -> tuple[Dataset, Dataset]:
    """Returns the images that set the ranges, and others that judge what comes of them."""
    if training_images is not None:
        return training_images, images
    everything = range(len(images))
    return images.subset(everything[::4]), images.subset([i for i in everything if i % 4])


def _stay_silent(stage: str) -> None:
    pass
