"""One run in progress: everything that changes during it, and what changes it."""

import itertools
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from training.averaging import WeightAverage
from training.checkpoint import (
    load_state,
    load_weights,
    save_json,
    save_json_lines,
    save_state,
    save_weights,
)
from training.config import Recipe
from training.consistency import first_look, like_views, logits_of_looks, one_by_one
from training.curves import plot_curves, read_history
from training.distributed import Team, average_gradients, average_statistics
from training.errors import TrainingError
from training.freezing import freeze
from training.hardware import AUTOCAST, Precision
from training.loading import Batch, Loader, seed_of
from training.mixing import Mixing
from training.objective import Objective
from training.optim import lr_factor, momentum_at, set_lr, set_momentum
from training.probe import LayerProbe, probe_layers, probe_to_dict
from training.progress import TrainingProgress
from training.progressive_resizing import shrink, side_at
from training.tally import EpochTally
from training.validation import Evaluation, evaluate_views

# Enough for means and deviations of every channel.
_STATISTICS_BATCHES = 100
_PROBED_IMAGES = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Pipeline:
    """A network, what comes before it, and what it is measured on."""

    net: nn.Module
    normalise: nn.Module
    validation: Iterable[Batch]


@dataclass(slots=True, kw_only=True)
class Trainer:
    """Everything that changes during a run, and what changes it."""

    recipe: Recipe
    run_dir: Path
    target: torch.device
    precision: Precision
    facts: Mapping[str, Any]
    loader: Loader
    total_steps: int
    # The network that is saved; `net` is what of it is trained: itself, or its head alone.
    served: Pipeline
    validation: Iterable[Batch]
    net: nn.Module
    normalise: nn.Module
    optimizer: torch.optim.Optimizer
    average: WeightAverage
    mixing: Mixing
    objective: Objective
    scaler: torch.amp.GradScaler
    compute: Callable[[nn.Module, Tensor], tuple[Tensor, list[tuple[float, Tensor]]]]
    on_step: Callable[[int], None] | None
    team: Team
    step: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)
    probes: list[dict[str, Any]] = field(default_factory=list)

    @property
    def is_stalled(self) -> bool:
        """Whether the last epochs brought nothing, and the recipe says to stop then."""
        patience = self.recipe.train.early_stop_epochs
        if patience is None or not self.history:
            return False
        scores = [self.score(record) for record in self.history]
        return len(scores) - 1 - scores.index(max(scores)) >= patience

    def score(self, record: Mapping[str, Any]) -> float:
        """Return how good an epoch was, by the recipe's measure; more is better."""
        is_by_loss = self.recipe.train.best_by == "loss"
        value: float = -record["validation_loss"] if is_by_loss else record["validation_top1"]
        return value

    def train_epoch(self, progress: TrainingProgress) -> EpochTally:
        """Take every batch of the epoch, or those that are left of the last, fractional one."""
        epoch, tally = self.step // self.loader.batches_per_epoch, EpochTally()
        if self.step == 0:
            self.probe()
        batches = itertools.islice(self.loader.batches(epoch), self.total_steps - self.step)
        self.net.train()
        if not self.team.is_alone:
            # Each process drops out other features; from the epoch on, so that a resumed run does.
            torch.manual_seed(seed_of(self.recipe.seed, "process", self.team.rank, epoch))
        for views, labels in batches:
            loss, right = self.train_step(views.to(self.target), labels.to(self.target))
            tally.add(loss, right, len(labels) * self.team.size)
            progress.step(epoch=epoch + 1, loss=loss)
            if self.on_step is not None:
                self.on_step(self.step)
        return tally

    def train_step(self, views: Tensor, labels: Tensor) -> tuple[float, int]:
        """Return the mean loss of the batch and how many of its images were told right."""
        recipe = self.recipe
        epochs = self.step / self.loader.batches_per_epoch
        set_lr(self.optimizer, self.lr_factor_at(self.step))
        momentum = momentum_at(recipe.optim, self.step, self.total_steps)
        if momentum is not None:
            set_momentum(self.optimizer, momentum)
        freeze(self.net, recipe.train, epochs=epochs)

        side = side_at(recipe.train.size_schedule, epochs)
        images = like_views(shrink(self.normalise(one_by_one(views)), side), views)
        images, targets = self.mixing.mix(images, labels, self.step)
        self.optimizer.zero_grad(set_to_none=True)
        loss, right = 0.0, 0
        for part in torch.arange(len(labels)).tensor_split(recipe.train.accumulation_parts):
            share, some = len(part) / len(labels), slice(int(part[0]), int(part[-1]) + 1)
            part_loss, part_right = self.backward(images[some], targets[some], labels[some], share)
            loss, right = loss + share * part_loss, right + part_right
        average_gradients(self.net, self.team)
        self.scaler.unscale_(self.optimizer)
        if recipe.optim.clip_grad_norm is not None:
            nn.utils.clip_grad_norm_(self.net.parameters(), recipe.optim.clip_grad_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()

        self.step += 1
        self.average.update(self.net, self.step)
        if not self.team.is_alone:
            loss, told = self.team.sum(loss / self.team.size, right)
            right = int(told)
        if not math.isfinite(loss):
            raise DivergedError(f"the loss became {loss} at step {self.step}; try a lower lr")
        return loss, right

    def backward(
        self, images: Tensor, targets: Tensor, labels: Tensor, share: float
    ) -> tuple[float, int]:
        """Add the gradients of a part of a batch; return its mean loss and right answers."""
        with torch.autocast(
            self.target.type, AUTOCAST[self.precision], enabled=self.precision != "fp32"
        ):
            logits, auxiliary = logits_of_looks(self.compute, self.net, images)
        loss = self.objective(logits, targets)
        total = loss
        for weight, other in auxiliary:
            total = total + weight * self.objective(other, targets)
        if self.recipe.optim.l1:
            decayed = (one for one in self.net.parameters() if one.ndim > 1)
            total = total + self.recipe.optim.l1 * sum(one.abs().sum() for one in decayed)
        scaled: Any = self.scaler.scale(total * share)
        scaled.backward()
        return loss.item(), int((first_look(logits).argmax(dim=1) == labels).sum())

    def lr_factor_at(self, step: int) -> float:
        """Return the share of the peak learning rate at `step`, counted from 0."""
        return lr_factor(self.recipe.optim, step, self.total_steps)

    def finish_epoch(self, tally: EpochTally, progress: TrainingProgress) -> None:
        """Evaluate, record, and leave a checkpoint where one is due."""
        seconds = tally.seconds
        is_last = self.step == self.total_steps
        if is_last:
            self.average.finish(self.net)
            self.renew_statistics()
        average_statistics(self.net, self.team)
        weights = self.average.evaluated_state(self.net)
        measured = self.evaluate(weights)
        best = max(map(self.score, self.history), default=-math.inf)
        self.history.append(
            {
                "epoch": self.step / self.loader.batches_per_epoch,
                "step": self.step,
                "lr_factor": self.lr_factor_at(self.step - 1),
                "train_loss": tally.loss,
                "train_top1": tally.top1,
                "validation_loss": measured.loss,
                "validation_top1": measured.top1,
                "seconds": seconds,
                "images_per_second": tally.images / seconds,
                "loss_parts": tally.loss_parts,
                "dead_relus": measured.dead_relus,
            }
        )
        progress.line(_describe(self.history[-1]))
        if self.score(self.history[-1]) > best and self.team.is_writer:
            save_weights(self.run_dir / "best.safetensors", self.served_weights(weights))
        every = self.recipe.train.probe_every_epochs
        if every is not None and (is_last or len(self.history) % every == 0):
            self.probe()
        is_due = is_last or len(self.history) % self.recipe.train.checkpoint_every_epochs == 0
        if is_due and self.team.is_writer:
            save_weights(self.run_dir / "last.safetensors", self.served_weights(weights))
            self.checkpoint()

    def served_weights(self, weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Return the state dict of the whole network for one of what is trained of it."""
        if self.net is self.served.net:
            return weights
        head = {f"head.{key}": value for key, value in weights.items()}
        return {**self.served.net.state_dict(), **head}

    def renew_statistics(self) -> None:
        """After the weights were averaged: let batch normalisation measure what they yield."""
        if self.recipe.average.kind != "swa":
            return
        batches = itertools.islice(self.loader.batches(0), _STATISTICS_BATCHES)
        shown = (self.normalise(one_by_one(views).to(self.target)) for views, _ in batches)
        torch.optim.swa_utils.update_bn(shown, self.net)

    def probe(self) -> None:
        """Note what goes on inside the network, where the recipe asks for it."""
        if self.recipe.train.probe_every_epochs is None:
            return
        self.probes.append({"step": self.step, "layers": probe_to_dict(self.probed_layers())})

    def probed_layers(self) -> tuple[LayerProbe, ...]:
        """Return what the layers put out for the first validation images."""
        views, _ = next(iter(self.validation))
        return probe_layers(self.net, self.normalise(views[:_PROBED_IMAGES].to(self.target)))

    def finish_run(self, progress: TrainingProgress) -> None:
        """Measure the final weights as they will be served, in float32, and draw the curves."""
        net = self.served.net
        self.team.wait()
        if self.is_stalled:
            net.load_state_dict(load_weights(self.run_dir / "best.safetensors"))
            if self.team.is_writer:
                save_weights(self.run_dir / "last.safetensors", net.state_dict())
        batches, normalise = self.served.validation, self.served.normalise
        plain = self.gather(evaluate_views(net, normalise, batches))
        flipped = self.gather(evaluate_views(net, normalise, batches, is_flip_averaged=True))
        if not self.team.is_writer:
            return
        result = {
            "validation_images": plain.images,
            "top1": plain.top1,
            "top1_hflip": flipped.top1,
            "loss": plain.loss,
            "loss_hflip": flipped.loss,
            "epochs": self.history[-1]["epoch"],
            "is_stopped_early": self.step < self.total_steps,
            "train_seconds": sum(record["seconds"] for record in self.history),
        }
        save_json(self.run_dir / "result.json", result)
        title = f"{self.recipe.name}, seed {self.recipe.seed}"
        plot_curves(self.history, self.run_dir / "curves.png", title=title)
        progress.line(
            f"{self.run_dir}: top-1 {plain.top1:.2%}, with flips {flipped.top1:.2%} "
            f"of {plain.images} validation images"
        )

    def evaluate(self, weights: Mapping[str, Tensor]) -> Evaluation:
        """Measure `weights` on the validation images, in the precision of training."""
        with torch.autocast(
            self.target.type, AUTOCAST[self.precision], enabled=self.precision != "fp32"
        ):
            own = evaluate_views(self.net, self.normalise, self.validation, weights=weights)
        return self.gather(own)

    def gather(self, own: Evaluation) -> Evaluation:
        """Return what all processes measured together; each measures a part of the images."""
        if self.team.is_alone:
            return own
        images, loss, right = self.team.sum(
            own.images, own.images * own.loss, own.images * own.top1
        )
        return Evaluation(
            images=int(images),
            loss=loss / images,
            top1=right / images,
            # Looked at on one batch, so this process's does.
            dead_relus=own.dead_relus,
        )

    def checkpoint(self) -> None:
        """Write the history, then all that `restore` needs."""
        save_json_lines(self.run_dir / "history.jsonl", self.history)
        if self.probes:
            save_json_lines(self.run_dir / "probe.jsonl", self.probes)
        save_state(self.run_dir / "resume.pt", self.state())

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint holds."""
        return {
            "step": self.step,
            "net": self.net.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": self.average.slow,
            "scaler": self.scaler.state_dict(),
            "random": torch.get_rng_state(),
            "random_cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        }

    def restore(self) -> None:
        """Go back to the last checkpoint; without one, stay at the start."""
        path = self.run_dir / "resume.pt"
        if not path.exists():
            return
        state = load_state(path)
        missing = sorted(self.state().keys() - state.keys())
        if missing:
            raise TrainingError(f"{path}: written by another version: has no {', '.join(missing)}")
        try:
            self.net.load_state_dict(state["net"])
        except RuntimeError as error:
            reason = str(error).splitlines()[1].strip()
            raise TrainingError(f"{path}: of another architecture: {reason}") from error
        self.optimizer.load_state_dict(state["optimizer"])
        for key, value in self.average.slow.items():
            value.copy_(state["average"][key])
        self.scaler.load_state_dict(state["scaler"])
        torch.set_rng_state(state["random"])
        if state["random_cuda"] and torch.cuda.is_available():
            torch.cuda.set_rng_state_all(state["random_cuda"])
        self.step = state["step"]
        self.history, self.probes = (
            [one for one in read_history(self.run_dir / name) if one["step"] <= self.step]
            for name in ("history.jsonl", "probe.jsonl")
        )


class DivergedError(TrainingError):
    """The loss is infinite or no number."""


def _describe(record: Mapping[str, Any]) -> str:
    return (
        f"epoch {record['epoch']:g}: loss {record['train_loss']:.3f}, "
        f"top-1 {record['train_top1']:.2%} train, {record['validation_top1']:.2%} validation, "
        f"{record['images_per_second']:.0f} img/s, {record['seconds']:.0f} s"
    )
