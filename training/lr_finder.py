"""The learning rate finder: the loss while the rate rises (Smith, arXiv 1506.01186)."""

from __future__ import annotations

import itertools
import math
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from training.config import Recipe
from training.errors import TrainingError
from training.hardware import choose_device, cpu_threads
from training.loading import Batch, Loader
from training.trainer import DivergedError, Trainer
from training.trainer_setup import build_trainer

# Losses are noisy: of the running mean, this share is what was.
_SMOOTHING = 0.9
# Beyond this multiple of the best loss the rate is too high, and the sweep is over.
_DIVERGED = 4.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LrSweep:
    """What the finder saw.

    Attributes:
        lrs: peak learning rates of the steps.
        losses: training losses in nats, one a step; not smoothed.
        smoothed: their running mean, without the bias towards its start.
        steepest: the rate at which the smoothed loss fell fastest: a good peak for one_cycle.
        cautious: a tenth of the rate with the least smoothed loss: good without warm-up.
    """

    lrs: tuple[float, ...]
    losses: tuple[float, ...]
    smoothed: tuple[float, ...]
    steepest: float
    cautious: float


def find_lr(
    recipe: Recipe,
    *,
    lowest: float = 1e-6,
    highest: float = 10.0,
    steps: int = 100,
    device: Literal["auto", "cpu", "cuda"] = "auto",
) -> LrSweep:
    """Train on `steps` batches while the rate rises exponentially; nothing is kept.

    Raises:
        TrainingError: the data or the network do not fit the recipe, or the loss never fell.
    """
    with cpu_threads(recipe.train.cpu_threads), tempfile.TemporaryDirectory() as folder:
        trainer = _Sweep.of(build_trainer(recipe, Path(folder), choose_device(device)))
        growth = (highest / lowest) ** (1 / max(1, steps - 1))
        trainer.net.train()
        lrs: list[float] = []
        losses: list[float] = []
        smoothed: list[float] = []
        mean = 0.0
        for step, (views, labels) in enumerate(itertools.islice(_endless(trainer.loader), steps)):
            trainer.factor = lowest * growth**step / recipe.optim.lr
            try:
                loss, _ = trainer.train_step(views.to(trainer.target), labels.to(trainer.target))
            except DivergedError:
                break
            mean = _SMOOTHING * mean + (1 - _SMOOTHING) * loss
            lrs.append(lowest * growth**step)
            losses.append(loss)
            smoothed.append(mean / (1 - _SMOOTHING ** (step + 1)))
            if smoothed[-1] > _DIVERGED * min(smoothed):
                break
    return _judged(lrs, losses, smoothed)


def plot_sweep(sweep: LrSweep, path: Path, *, title: str) -> None:
    """Draw loss over learning rate, with both suggestions, as a PNG."""
    from matplotlib.figure import Figure  # here: only those who draw pay for the import

    figure = Figure(figsize=(6.4, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot(sweep.lrs, sweep.losses, color="0.75", linewidth=0.8, label="each batch")
    axes.plot(sweep.lrs, sweep.smoothed, label="smoothed")
    axes.axvline(sweep.steepest, color="C1", linestyle="--", label=f"steepest {sweep.steepest:.2g}")
    axes.axvline(sweep.cautious, color="C2", linestyle=":", label=f"cautious {sweep.cautious:.2g}")
    axes.set_xscale("log")
    axes.set_ylim(min(sweep.smoothed) * 0.9, max(sweep.smoothed[0], min(sweep.smoothed)) * 1.5)
    axes.set_xlabel("learning rate")
    axes.set_ylabel("training loss, nats")
    axes.set_title(title, fontsize=10)
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=110, format="png")


class _Sweep(Trainer):
    """A trainer whose learning rate is set from outside."""

    factor: float = 0.0

    @classmethod
    def of(cls, trainer: Trainer) -> _Sweep:
        """Return the trainer with nothing else changed."""
        return cls(**{name: getattr(trainer, name) for name in Trainer.__dataclass_fields__})

    def lr_factor_at(self, step: int) -> float:  # noqa: ARG002
        """Return what was set, whatever the step."""
        return self.factor


def _endless(loader: Loader) -> Iterator[Batch]:
    for epoch in itertools.count():
        yield from loader.batches(epoch)


def _judged(lrs: list[float], losses: list[float], smoothed: list[float]) -> LrSweep:
    best = min(range(len(smoothed)), key=smoothed.__getitem__, default=0)
    if best < 2:
        raise TrainingError("the loss never fell: start lower, or look at the data")
    slopes = [
        (smoothed[at + 1] - smoothed[at - 1]) / math.log(lrs[at + 1] / lrs[at - 1])
        for at in range(1, best)
    ]
    steepest = lrs[1 + min(range(len(slopes)), key=slopes.__getitem__)]
    return LrSweep(
        lrs=tuple(lrs),
        losses=tuple(losses),
        smoothed=tuple(smoothed),
        steepest=steepest,
        cautious=lrs[best] / 10,
    )
