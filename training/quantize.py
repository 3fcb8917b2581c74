"""The int8 variant: convolutions and matrix products in 8 bits, as many as accuracy allows.

Static quantisation in QDQ form by ONNX Runtime's own tools, with unsigned activations (signed ones
are slower than fp32 on x86) and weights scaled per output channel. The ranges of the activations
are the extremes over real images. Only the products are quantised: with the element-wise layers
between them as well the served graph is slower (docs/decisions.md).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
from numpy.typing import NDArray
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process

from service.bundle.manifest import Preprocess
from service.bundle.preprocess import Views
from training.data import Dataset
from training.errors import TrainingError
from training.evaluate import image_views, score_images
from training.graph import strip_metadata
from training.scores import top_k_hits
from training.session import INPUT, open_session, run_views

# What an int8 variant may cost and must bring; it is left out otherwise.
MAX_TOP1_LOSS = 0.005
MIN_IMAGES = 1000
MIN_SPEEDUP = 1.1

_CALIBRATION_IMAGES = 256
_GATE_IMAGES = 5000
_RANKING_IMAGES = 128
_BATCH_VIEWS = 16
_TIMED_RUNS = 20
_PRODUCTS = ("Conv", "Gemm", "MatMul")


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantised:
    """What came of the attempt; `model` is None when no variant is good enough.

    Attributes:
        model: The quantised graph, with the inputs and outputs of the fp32 one.
        verdict: One sentence with the numbers, for the model card.
    """

    model: onnx.ModelProto | None
    verdict: str


def quantize(
    model: onnx.ModelProto,
    calibration: Dataset,
    images: Dataset,
    preprocess: Preprocess,
    on_stage: Callable[[str], None],
) -> Quantised:
    """Returns the int8 form of `model` that keeps its accuracy, if there is one.

    All products are quantised at first; while that costs more than half a point of top-1, the most
    sensitive ones go back to float: 1, 2, 4, ... up to half of them.

    Args:
        model: The fp32 graph of a bundle.
        calibration: Images whose activations set the ranges; not those it is judged on.
        images: 1,000 labelled images or more, to judge it on.
        preprocess: The bundle's.
        on_stage: Told what happens next, in a few words.

    Raises:
        TrainingError: There are fewer than 1,000 images, or ONNX Runtime cannot quantise the graph.
    """
    if len(images) < MIN_IMAGES:
        raise TrainingError(
            f"int8 is judged on {MIN_IMAGES:,} labelled images or more, "
            f"{images.name} has {len(images)}"
        )
    judged = _spread(images, _GATE_IMAGES)
    with TemporaryDirectory() as folder, _quiet_quantizer():
        workshop = _Workshop(Path(folder), model, _views(calibration, preprocess))
        wanted = _top1(workshop.float_path, judged, preprocess)
        kept: list[str] = []
        while True:
            on_stage(f"int8 with {len(kept)} of {len(workshop.products)} layers in float")
            path = workshop.quantize(exclude=kept)
            loss = wanted - (found := _top1(path, judged, preprocess))
            if loss <= MAX_TOP1_LOSS:
                break
            count = 2 * len(kept) or 1
            if count > len(workshop.products) / 2:
                return Quantised(
                    model=None,
                    verdict=f"No int8 variant: with {len(kept)} of {len(workshop.products)} layers "
                    f"in float top-1 is still {loss:.2%} lower on {len(judged)} images.",
                )
            kept = workshop.rank()[:count]
        speedup = workshop.measure_speedup(path)
        if speedup < MIN_SPEEDUP:
            return Quantised(
                model=None,
                verdict=f"No int8 variant: on this machine it is {speedup:.2f} times as fast as "
                f"fp32, not {MIN_SPEEDUP:g} times.",
            )
        quantised = onnx.load(path)
        strip_metadata(quantised)
        in_float = f", {len(kept)} of {len(workshop.products)} layers in float" if kept else ""
        return Quantised(
            model=quantised,
            verdict=f"int8: top-1 {found:.2%} against {wanted:.2%} in fp32 on {len(judged)} "
            f"images{in_float}; {speedup:.1f} times as fast on one core of this machine.",
        )


class _Workshop:
    """Quantises one model in a folder, having calibrated it once."""

    def __init__(self, folder: Path, model: onnx.ModelProto, views: Views) -> None:
        self._folder = folder
        self._views = views
        self.float_path = folder / "float.onnx"
        self._prepared = folder / "prepared.onnx"
        onnx.save(model, self.float_path)
        try:
            # Folds batch normalisation into the convolutions, whose weights are then quantised.
            quant_pre_process(str(self.float_path), str(self._prepared), skip_symbolic_shape=True)
        except Exception as error:  # its exceptions have no common base
            raise TrainingError(f"the graph cannot be prepared for int8: {error}") from error
        nodes = onnx.load(self._prepared).graph.node
        self.products = [node.name for node in nodes if node.op_type in _PRODUCTS]
        if not self.products:
            raise TrainingError("int8 has nothing to do: the graph has no products")

    def quantize(self, *, exclude: list[str] | None = None, only: str | None = None) -> Path:
        """Returns the file of the graph with its products in 8 bits, except some, or only one."""
        path = self._folder / "int8.onnx"
        try:
            quantize_static(
                str(self._prepared),
                str(path),
                _Batches(self._views),
                quant_format=QuantFormat.QDQ,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                per_channel=True,
                op_types_to_quantize=list(_PRODUCTS),
                nodes_to_quantize=[only] if only else self.products,
                nodes_to_exclude=exclude or [],
                calibration_cache_path=self._folder / "ranges.json",
            )
        except Exception as error:
            raise TrainingError(f"ONNX Runtime cannot quantise the graph: {error}") from error
        return path

    def rank(self) -> list[str]:
        """Returns the products, first those that change the answers most when quantised alone."""
        views = self._views[:_RANKING_IMAGES]
        exact = _answers(self.float_path, views)
        harm = {
            name: _divergence(exact, _answers(self.quantize(only=name), views))
            for name in self.products
        }
        return sorted(self.products, key=lambda name: -harm[name])

    def measure_speedup(self, path: Path) -> float:
        """Returns how many times as fast as the float graph a file is, one view on one core."""
        sessions = [open_session(self.float_path), open_session(path)]
        view = self._views[:1]
        seconds: list[list[float]] = [[], []]
        for _ in range(_TIMED_RUNS):
            for session, taken in zip(sessions, seconds, strict=True):
                start = time.thread_time()
                run_views(session, view)
                taken.append(time.thread_time() - start)
        plain, quantised = (float(np.median(taken)) for taken in seconds)
        return plain / quantised


class _Batches(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, views: Views) -> None:
        starts = range(0, len(views), _BATCH_VIEWS)
        self._batches = iter([views[start : start + _BATCH_VIEWS] for start in starts])

    def get_next(self) -> dict[str, Views] | None:
        batch = next(self._batches, None)
        return None if batch is None else {INPUT: batch}


def _spread(dataset: Dataset, count: int) -> Dataset:
    """Returns at most `count` images, evenly spread over a data set."""
    chosen = np.linspace(0, len(dataset) - 1, min(len(dataset), count)).astype(int)
    return dataset.subset(chosen.tolist())


def _views(dataset: Dataset, preprocess: Preprocess) -> Views:
    some = _spread(dataset, _CALIBRATION_IMAGES)
    return np.concatenate([image_views(some, index, preprocess) for index in range(len(some))])


def _top1(path: Path, images: Dataset, preprocess: Preprocess) -> float:
    probabilities = score_images(open_session(path), images, preprocess).probabilities
    return float(top_k_hits(probabilities, images.labels, 1).mean())


def _answers(path: Path, views: Views) -> NDArray[np.float32]:
    session = open_session(path)
    starts = range(0, len(views), _BATCH_VIEWS)
    return np.concatenate([run_views(session, views[at : at + _BATCH_VIEWS])[0] for at in starts])


def _divergence(exact: NDArray[np.float32], found: NDArray[np.float32]) -> float:
    """Returns the mean Kullback-Leibler divergence of the answers, in nats."""
    tiny = np.finfo(np.float32).tiny
    ratio = np.log(np.maximum(exact, tiny)) - np.log(np.maximum(found, tiny))
    return float((exact * ratio).sum(axis=1).mean())


@contextmanager
def _quiet_quantizer() -> Iterator[None]:
    """Keeps the tool's advice to its callers, which is for us, off the user's screen."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(disabled)
