"""The parity gate: an exported file must answer real images as the network it came from.

It runs at the graph optimisation level that serves, because some graphs are right without
optimisation and wrong with it (weight-standardised convolutions, `timm:resnetv2_50x1_bit`: 0.11).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from service.bundle.manifest import Parity, Preprocess
from service.bundle.preprocess import Views
from training.data import Dataset
from training.errors import TrainingError
from training.evaluate import image_views
from training.session import run_views

MIN_IMAGES = 64
_MAX_IMAGES = 256
# More than one image at a time, and no divisor of 64, so that the last batch is a short one.
_BATCH_VIEWS = 24


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """How far a variant's probabilities may lie from the network's in fp32.

    `golden_tolerance` is for later, on other processors and providers, which round otherwise.
    """

    max_abs: float
    top1_agreement: float
    golden_tolerance: float


GATES = {
    "fp32": Gate(max_abs=1e-4, top1_agreement=1.0, golden_tolerance=2e-3),
    # Half precision swaps near-ties; one image in a hundred may have one.
    "fp16": Gate(max_abs=2e-2, top1_agreement=0.99, golden_tolerance=3e-2),
    # Its own gate is its accuracy (training/quantize.py); this one finds a graph that is broken.
    "int8": Gate(max_abs=0.6, top1_agreement=0.95, golden_tolerance=0.15),
}


def parity_views(dataset: Dataset, preprocess: Preprocess) -> Views:
    """Returns 64 to 256 views, uint8 [N, H, W, 3], evenly spread over the images of a data set.

    Raises:
        TrainingError: There are fewer than 64 images.
    """
    if len(dataset) < MIN_IMAGES:
        raise TrainingError(
            f"parity needs {MIN_IMAGES} images or more, {dataset.name} has {len(dataset)}"
        )
    chosen = np.linspace(0, len(dataset) - 1, min(len(dataset), _MAX_IMAGES)).astype(int)
    return np.concatenate([image_views(dataset, int(i), preprocess) for i in chosen])


def finite_expectation(expected: NDArray[np.float32]) -> NDArray[np.float32]:
    """Returns `expected` [N, C] as it is.

    Raises:
        TrainingError: A value is not finite: the weights are damaged.
    """
    bad = int((~np.isfinite(expected)).any(axis=1).sum())
    if bad:
        raise TrainingError(
            f"the network's output is not a number on {bad} of {len(expected)} images"
        )
    return expected


def check_parity(
    session: ort.InferenceSession,
    views: Views,
    expected: NDArray[np.float32],
    precision: str = "fp32",
) -> Parity:
    """Returns how well a session agrees with `expected` [N, C], one view at a time and in batches.

    Raises:
        TrainingError: An answer is not finite or too far off, or too many top-1 classes differ.
    """
    gate = GATES[precision]
    batches = range(0, len(views), _BATCH_VIEWS)
    batched = [run_views(session, views[at : at + _BATCH_VIEWS])[0] for at in batches]
    single = [run_views(session, views[at : at + 1])[0] for at in range(MIN_IMAGES)]
    found = np.concatenate(batched + single)
    wanted = np.concatenate([expected, expected[:MIN_IMAGES]])
    difference = float(np.abs(found - wanted).max())
    agreement = float((found.argmax(axis=1) == wanted.argmax(axis=1)).mean())
    # Written so that NaN, which compares false to everything, does not pass.
    if not (difference <= gate.max_abs and agreement >= gate.top1_agreement):
        raise TrainingError(
            f"parity of {precision} failed on {len(views)} images: probabilities differ by "
            f"{difference:.2e} (at most {gate.max_abs:.0e}), top-1 agrees on "
            f"{agreement:.2%} (at least {gate.top1_agreement:.0%})"
        )
    return Parity(max_abs=difference, top1_agreement=agreement, images=len(views))
