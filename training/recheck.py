"""A published bundle, proved again: its files, graphs, golden samples and stated accuracy."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import onnx

from service.bundle.manifest import Metrics, Variant
from service.bundle.repository import Bundle, read_golden, verify_files
from training.data import Dataset
from training.errors import TrainingError
from training.evaluate import evaluate_bundle
from training.golden import check_golden

# Another processor rounds otherwise and turns the odd image that was on the edge.
_TOP1_TOLERANCE = 0.002


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One thing that a bundle states, and whether it still holds.

    Attributes:
        name: Of the check.
        found: What was found, in words.
        is_good: Whether it holds.
    """

    name: str
    found: str
    is_good: bool


def recheck(
    bundle: Bundle, validation: Dataset | None, on_progress: Callable[[int], None] | None = None
) -> Iterator[Check]:
    """Yields each check of a bundle as it is done.

    Agreement with the network that it was exported from cannot be proved again, because a bundle
    does not hold that network; what the graph answered then is in the golden samples.

    Args:
        bundle: As it was read.
        validation: The images that its accuracy was measured on; None leaves accuracy out.
        on_progress: Told of images that were answered.

    Raises:
        BundleError: A file is missing, unknown, or another one than was published.
        TrainingError: Images have no labels, or an image or answer is refused.
    """
    verify_files(bundle)
    yield Check(name="files", found="all as published", is_good=True)
    for variant in bundle.manifest.variants:
        yield _check_graph(bundle, variant)
        yield _check_golden(bundle, variant)
    for stated in bundle.manifest.metrics if validation is not None else ():
        assert validation is not None
        yield _check_accuracy(bundle, stated, validation, on_progress)


def _check_graph(bundle: Bundle, variant: Variant) -> Check:
    name = f"graph of {variant.precision}"
    try:
        onnx.checker.check_model(str(bundle.folder / variant.file), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        return Check(name=name, found=str(error).strip().splitlines()[0], is_good=False)
    return Check(name=name, found=f"valid, opset {variant.opset}", is_good=True)


def _check_golden(bundle: Bundle, variant: Variant) -> Check:
    name = f"golden samples of {variant.precision}"
    golden = read_golden(bundle)
    try:
        check_golden(bundle.folder, golden, bundle.manifest.preprocess, variant)
    except TrainingError as error:
        return Check(name=name, found=str(error), is_good=False)
    return Check(name=name, found=f"{len(golden.samples)} reproduced", is_good=True)


def _check_accuracy(
    bundle: Bundle,
    stated: Metrics,
    validation: Dataset,
    on_progress: Callable[[int], None] | None,
) -> Check:
    measured = evaluate_bundle(
        bundle, validation, precision=stated.variant, tta=stated.tta, on_progress=on_progress
    ).metrics(stated.variant)
    is_same_size = measured.images == stated.images
    return Check(
        name=f"top-1 of {stated.variant}, {stated.tta}",
        found=f"{measured.top1:.2%} of {measured.images} images, "
        f"stated {stated.top1:.2%} of {stated.images}",
        is_good=is_same_size and abs(measured.top1 - stated.top1) <= _TOP1_TOLERANCE,
    )
