"""Golden samples: a few real images with the answers that a bundle must reproduce to serve."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from PIL import Image

from service.bundle.decode import Limits, decode, sniff
from service.bundle.manifest import Golden, GoldenSample, Preprocess, Variant
from service.bundle.postprocess import top_k
from service.bundle.preprocess import prepare
from service.bundle.repository import GOLDEN_FILE
from training.data import Dataset
from training.errors import TrainingError
from training.session import open_session, run_views

SAMPLES = 8
# Larger files are made again at the size that the model needs.
_MAX_BYTES = 32_768
_JPEG_QUALITY = 90


def write_golden(
    folder: Path,
    session: ort.InferenceSession,
    dataset: Dataset,
    preprocess: Preprocess,
    probabilities: NDArray[np.float32],
) -> Golden:
    """Writes `golden/` below `folder` and returns what it records.

    `session` is that of the fp32 variant; `probabilities` [N, C] are its answers to `dataset`.

    Raises:
        TrainingError: A sample's answer is not finite.
    """
    (folder / GOLDEN_FILE).parent.mkdir()
    samples = []
    for number, index in enumerate(choose_samples(probabilities)):
        data = shrink(dataset.image_bytes(index), preprocess)
        file = f"golden/{number}.{sniff(data) or 'image'}"
        (folder / file).write_bytes(data)
        answer = run_views(session, prepare(data, preprocess, limits=Limits()).views)[0][0]
        if not np.isfinite(answer).all():
            raise TrainingError(f"golden sample {number}: the answer is not a number")
        best = tuple(top_k(answer, 5))
        # Six digits are ten thousand times finer than any tolerance, and half the size of float64's
        # shortest form. Softmax may round to a hair above 1.
        unit = tuple(min(1.0, float(f"{one:.6g}")) for one in answer)
        samples.append(GoldenSample(file=file, top=best, probabilities=unit))
    golden = Golden(samples=tuple(samples))
    (folder / GOLDEN_FILE).write_text(golden.model_dump_json() + "\n", encoding="utf-8")
    return golden


def check_golden(folder: Path, golden: Golden, preprocess: Preprocess, variant: Variant) -> None:
    """Makes sure that a variant answers the golden samples as it must to be served.

    Raises:
        TrainingError: It does not: a service would refuse the bundle.
    """
    session = open_session(folder / variant.file)
    for sample in golden.samples:
        data = (folder / sample.file).read_bytes()
        answer = run_views(session, prepare(data, preprocess, limits=Limits()).views)[0][0]
        difference = float(np.abs(answer - np.asarray(sample.probabilities)).max())
        if not difference <= variant.golden_tolerance or answer.argmax() != sample.top[0]:
            raise TrainingError(
                f"{variant.precision} answers {sample.file} otherwise: off by {difference:.2g}, "
                f"allowed {variant.golden_tolerance:.2g}"
            )


def choose_samples(probabilities: NDArray[np.float32]) -> list[int]:
    """Returns the indices of up to 8 images, of different classes where possible.

    They come from the half with the clearer answers: a near-tie would fail on a processor that
    rounds otherwise, although nothing is wrong. Within it they are spread evenly from the least
    clear to the clearest, because a saturated answer of 1.0 notices little.

    They are listed by class.
    """
    best_two = np.sort(probabilities, axis=1)[:, -2:]
    clearer = np.argsort(best_two[:, 1] - best_two[:, 0], kind="stable")[len(probabilities) // 2 :]
    predicted = probabilities.argmax(axis=1)
    _, first = np.unique(predicted[clearer], return_index=True)
    distinct = clearer[np.sort(first)]
    pool = distinct if len(distinct) >= SAMPLES else clearer
    at = np.linspace(0, len(pool) - 1, min(SAMPLES, len(pool))).astype(int)
    return sorted((int(one) for one in pool[at]), key=lambda one: int(predicted[one]))


def shrink(data: bytes, preprocess: Preprocess) -> bytes:
    """Returns the encoded image, made anew at about the model's size when it is a large file."""
    if len(data) <= _MAX_BYTES:
        return data
    rgb = decode(data, Limits(), background=preprocess.background).rgb
    side = preprocess.resize.size
    scale = max(side / min(rgb.size), 1e-6)
    if scale < 1:
        size = max(1, round(rgb.width * scale)), max(1, round(rgb.height * scale))
        rgb = rgb.resize(size, Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    rgb.save(buffer, "JPEG", quality=_JPEG_QUALITY)
    return buffer.getvalue()
