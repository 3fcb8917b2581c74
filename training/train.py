"""Trains a recipe into a run folder. Read `train` from top to bottom.

    recipe = load_recipe(Path("training/recipes/digits-lenet5.toml"))
    run_dir = train(recipe, run_dir=default_run_dir(recipe))
    run = load_run(run_dir)

A run that was killed goes on with `resume=True` from its last checkpoint and, on the same machine,
ends with the very same weights: batches depend on (seed, epoch, batch) alone, and `resume.pt` holds
everything else.
"""

import contextlib
import itertools
import json
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from training.augment import build_augmentation, principal_colours
from training.averaging import WeightAverage
from training.checkpoint import (
    load_json,
    load_state,
    load_weights,
    save_json,
    save_state,
    save_text,
    save_weights,
)
from training.config import Recipe, dump_recipe, load_recipe
from training.curves import plot_curves, read_history
from training.data import Dataset, Splits, decode_views, load_splits, without_unreadable
from training.dead_relus import ReluWatch
from training.distributed import (
    SharedLoader,
    Team,
    average_gradients,
    average_statistics,
    join_team,
)
from training.errors import TrainingError
from training.feature_cache import FeatureLoader, cached_features, head_of
from training.freezing import freeze
from training.gradient_checkpointing import checkpoint_gradients
from training.hardware import (
    AUTOCAST,
    Precision,
    choose_device,
    choose_precision,
    cpu_threads,
    describe_hardware,
    library_versions,
)
from training.imbalance import sampling_weights
from training.loading import Batch, Loader, MemoryLoader, seed_of, split_views
from training.mixing import Mixing
from training.models.airbench import Airbench
from training.models.auxiliary import logits_for_training
from training.models.normalise import Normalise
from training.network import build_network
from training.objective import Objective
from training.optim import build_optimizer, lr_factor, momentum_at, set_lr, set_momentum
from training.probe import LayerProbe, probe_layers, probe_to_dict
from training.progress import TrainingProgress
from training.streaming import StreamedViews, StreamLoader

# Enough 2x2 patches for their covariance (arXiv 2404.00498, section 3.1).
_WHITENING_IMAGES = 5000
# Enough for means and deviations of every channel.
_STATISTICS_BATCHES = 100
_PROBED_IMAGES = 64
_ALONE = Team()
_LOSS_PARTS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainedRun:
    """A run read back.

    Attributes:
        recipe: resolved.
        net: float32, in evaluation mode; normalised [N, 3, H, W] -> logits [N, C]. The means and
            deviations are `recipe.input.normalisation`; `models.normalise.Normalise` applies them.
        class_names: one an output.
        facts: what `run.json` holds: class_names, data, hardware, precision, libraries.
    """

    recipe: Recipe
    net: nn.Module
    class_names: tuple[str, ...]
    facts: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """Mean cross-entropy (nats), share of right answers, and of ReLUs that never fire."""

    images: int
    loss: float
    top1: float
    dead_relus: float | None


def default_run_dir(recipe: Recipe, root: Path = Path("runs")) -> Path:
    """Return `<root>/<name>-<seed>`."""
    return root / f"{recipe.name}-{recipe.seed}"


def train(
    recipe: Recipe,
    *,
    run_dir: Path,
    resume: bool = False,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    is_progress_shown: bool = True,
    on_step: Callable[[int], None] | None = None,
) -> Path:
    """Train and return the run folder.

    Args:
        recipe: what to train.
        run_dir: made here; its files are listed in `training.checkpoint`.
        resume: go on from the folder's last checkpoint; from the start if it has none.
        device: `auto` is the GPU where there is one.
        is_progress_shown: a bar and a line an epoch on stderr.
        on_step: called after each step with its number, counted from 1.

    Raises:
        TrainingError: the data, the network or the folder do not fit the recipe; the loss diverged.
    """
    with join_team(device) as team, cpu_threads(recipe.train.cpu_threads):
        _open_run_dir(recipe, run_dir, is_resumed=resume)
        session = open_session(recipe, run_dir, choose_device(device), on_step, team)
        team.wait()
        if team.is_writer:
            # Only now: a recipe that was refused leaves no run behind.
            save_text(run_dir / "recipe.json", dump_recipe(recipe))
            save_json(run_dir / "run.json", session.facts)
        if resume:
            session.restore()
        with TrainingProgress(
            total_steps=session.total_steps,
            first_step=session.step,
            batch_size=recipe.train.batch_size,
            is_shown=is_progress_shown and team.is_writer,
        ) as progress:
            try:
                while session.step < session.total_steps and not session.is_stalled:
                    tally = session.train_epoch(progress)
                    session.finish_epoch(tally, progress)
            except KeyboardInterrupt:
                raise TrainingError(
                    f"{run_dir}: interrupted at step {session.step}; --resume goes on from the "
                    "last checkpoint"
                ) from None
            session.finish_run(progress)
    return run_dir


def open_session(
    recipe: Recipe,
    run_dir: Path,
    target: torch.device,
    on_step: Callable[[int], None] | None = None,
    team: Team = _ALONE,
) -> "Session":
    """Read the data and make everything as it is before the first step; nothing is written."""
    precision = choose_precision(recipe.train.precision, target)
    if recipe.train.batch_size % team.size:
        raise TrainingError(
            f"train.batch_size {recipe.train.batch_size} is not shared by {team.size} processes"
        )
    splits = _readable(recipe, load_splits(recipe.data), run_dir, team)
    classes = len(splits.train.class_names)
    torch.manual_seed(recipe.seed)
    net = _build_net(recipe, splits.train).to(target)
    if recipe.train.is_channels_last:
        net = net.to(memory_format=torch.channels_last)
    if recipe.train.is_gradient_checkpointing_on:
        checkpoint_gradients(net)
    normalise = Normalise(recipe.input.normalisation).to(target)
    own = splits.validation.subset(range(team.rank, len(splits.validation), team.size))
    validation = _validation_batches(recipe, splits.validation if team.is_alone else own)
    served = _Served(net=net, normalise=normalise, validation=validation)
    if recipe.train.is_feature_cache_on:
        if not team.is_alone:
            raise TrainingError("train.is_feature_cache_on needs no more than one process")
        loader, shown = _cache_features(recipe, splits, served, run_dir)
    else:
        loader, shown = build_loader(recipe, splits.train, team), served
    total_steps = max(1, math.ceil(loader.batches_per_epoch * recipe.train.epochs))
    if not team.is_alone:
        # Each process drops out other features.
        torch.manual_seed(seed_of(recipe.seed, "process", team.rank))
    compute = logits_for_training
    return Session(
        recipe=recipe,
        run_dir=run_dir,
        target=target,
        precision=precision,
        facts=_facts(splits, target, precision),
        loader=loader,
        total_steps=total_steps,
        served=served,
        validation=shown.validation,
        net=shown.net,
        normalise=shown.normalise,
        optimizer=build_optimizer(recipe.optim, shown.net),
        average=WeightAverage(recipe.average, shown.net, total_steps),
        mixing=Mixing(recipe.augment, classes=classes, seed=recipe.seed),
        objective=Objective(recipe.train, splits.train.labels, classes, target),
        scaler=torch.amp.GradScaler(target.type, enabled=precision == "fp16"),
        compute=torch.compile(compute) if recipe.train.is_compiled else compute,
        on_step=on_step,
        team=team,
    )


def _readable(recipe: Recipe, splits: Splits, run_dir: Path, team: Team) -> Splits:
    """Return the splits without images that cannot be read, if the recipe puts up with some."""
    share = recipe.data.max_unreadable_fraction
    if share == 0:
        return splits
    train, missing = without_unreadable(splits.train, recipe.input.preprocess, share)
    validation, others = without_unreadable(splits.validation, recipe.input.preprocess, share)
    if team.is_writer:
        save_json(run_dir / "unreadable.json", {"images": [*missing, *others]})
    return Splits(train=train, validation=validation)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Served:
    """A network, what comes before it, and what it is measured on."""

    net: nn.Module
    normalise: nn.Module
    validation: Iterable[Batch]


def _cache_features(
    recipe: Recipe, splits: Splits, served: _Served, run_dir: Path
) -> tuple[Loader, _Served]:
    """Return the features of the images in place of the images, and the head in that of the net."""
    found = {}
    for dataset in (splits.train, splits.validation):
        batches = _validation_batches(recipe, dataset)
        path = run_dir / f"features-{dataset.split}.safetensors"
        assert isinstance(served.normalise, Normalise)
        found[dataset.split] = cached_features(
            served.net, served.normalise, batches, path, dataset.fingerprint
        )
    is_balanced = recipe.train.imbalance == "balanced_sampling"
    loader = FeatureLoader(
        *found["train"],
        batch_size=_checked_batch_size(recipe, splits.train),
        seed=recipe.seed,
        weights=sampling_weights(splits.train) if is_balanced else None,
    )
    head = head_of(served.net)
    return loader, _Served(net=head, normalise=nn.Identity(), validation=[found["validation"]])


@dataclass(slots=True, kw_only=True)
class Session:
    """Everything that changes during a run, and what changes it."""

    recipe: Recipe
    run_dir: Path
    target: torch.device
    precision: Precision
    facts: Mapping[str, Any]
    loader: Loader
    total_steps: int
    # The network that is saved; `net` is what of it is trained: itself, or its head alone.
    served: _Served
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

    def train_epoch(self, progress: TrainingProgress) -> "_Tally":
        """Take every batch of the epoch, or those that are left of the last, fractional one."""
        epoch, tally = self.step // self.loader.batches_per_epoch, _Tally()
        if self.step == 0:
            self.probe()
        batches = itertools.islice(self.loader.batches(epoch), self.total_steps - self.step)
        self.net.train()
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

        images = shrink(self.normalise(views), side_at(recipe.train.size_schedule, epochs))
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
            logits, auxiliary = self.compute(self.net, images)
        loss = self.objective(logits, targets)
        total = loss
        for weight, other in auxiliary:
            total = total + weight * self.objective(other, targets)
        if self.recipe.optim.l1:
            decayed = (one for one in self.net.parameters() if one.ndim > 1)
            total = total + self.recipe.optim.l1 * sum(one.abs().sum() for one in decayed)
        scaled: Any = self.scaler.scale(total * share)
        scaled.backward()
        return loss.item(), int((logits.argmax(dim=1) == labels).sum())

    def lr_factor_at(self, step: int) -> float:
        """Return the share of the peak learning rate at `step`, counted from 0."""
        return lr_factor(self.recipe.optim, step, self.total_steps)

    def finish_epoch(self, tally: "_Tally", progress: TrainingProgress) -> None:
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
        shown = (self.normalise(views.to(self.target)) for views, _ in batches)
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
        lines = "".join(json.dumps(record) + "\n" for record in self.history)
        save_text(self.run_dir / "history.jsonl", lines)
        if self.probes:
            lines = "".join(json.dumps(record) + "\n" for record in self.probes)
            save_text(self.run_dir / "probe.jsonl", lines)
        state = {
            "step": self.step,
            "net": self.net.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": self.average.slow,
            "scaler": self.scaler.state_dict(),
            "random": torch.get_rng_state(),
            "random_cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        }
        save_state(self.run_dir / "resume.pt", state)

    def restore(self) -> None:
        """Go back to the last checkpoint; without one, stay at the start."""
        path = self.run_dir / "resume.pt"
        if not path.exists():
            return
        state = load_state(path)
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
        if not self.team.is_alone:
            torch.manual_seed(seed_of(self.recipe.seed, "process", self.team.rank, state["step"]))
        if state["random_cuda"] and torch.cuda.is_available():
            torch.cuda.set_rng_state_all(state["random_cuda"])
        self.step = state["step"]
        self.history, self.probes = (
            [one for one in read_history(self.run_dir / name) if one["step"] <= self.step]
            for name in ("history.jsonl", "probe.jsonl")
        )


class DivergedError(TrainingError):
    """The loss is infinite or no number."""


class _Tally:
    """Running means over an epoch, and its duration."""

    def __init__(self) -> None:
        self._started = time.perf_counter()
        self._losses: list[float] = []
        self._loss = 0.0
        self._right = 0
        self.images = 0

    def add(self, loss: float, right: int, images: int) -> None:
        self._losses.append(loss)
        self._loss += loss * images
        self._right += right
        self.images += images

    @property
    def loss(self) -> float:
        return self._loss / self.images

    @property
    def loss_parts(self) -> list[float]:
        """Mean losses of up to 16 equal parts of the epoch, in order."""
        parts = np.array_split(self._losses, min(_LOSS_PARTS, len(self._losses)))
        return [float(part.mean()) for part in parts]

    @property
    def top1(self) -> float:
        return self._right / self.images

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self._started


@torch.no_grad()
def evaluate_views(
    net: nn.Module,
    normalise: nn.Module,
    batches: Iterable[Batch],
    *,
    weights: Mapping[str, Tensor] | None = None,
    is_flip_averaged: bool = False,
) -> Evaluation:
    """Measure a network in evaluation mode; the mode it was in comes back.

    A quick look inside the training process: what a bundle states is measured by `evaluate.py`.

    Args:
        net: normalised [N, 3, H, W] -> logits [N, C].
        normalise: on the network's device.
        batches: uint8 [N, H, W, 3] and int64 [N].
        weights: a state dict to use in place of the network's own.
        is_flip_averaged: average the probabilities of each view and its mirror image.
    """
    state = net.state_dict() if weights is None else dict(weights)
    was_training = net.training
    net.eval()
    device = next(net.parameters()).device
    images, loss, right = 0, 0.0, 0
    watch = ReluWatch()
    for views, labels in batches:
        shown = [normalise(views.to(device))]
        if is_flip_averaged:
            shown.append(shown[0].flip(3))
        with contextlib.nullcontext() if images else watch:
            scores = [functional_call(net, state, (view,)).float().softmax(dim=1) for view in shown]
        probabilities = torch.stack(scores).mean(dim=0).cpu()
        images += len(labels)
        loss += float(functional.nll_loss(probabilities.log(), labels, reduction="sum"))
        right += int((probabilities.argmax(dim=1) == labels).sum())
    net.train(was_training)
    return Evaluation(
        images=images, loss=loss / images, top1=right / images, dead_relus=watch.dead_share
    )


def load_run(run_dir: Path, *, checkpoint: Literal["last", "best"] = "last") -> TrainedRun:
    """Read a run back for evaluation or export, on the CPU.

    Raises:
        TrainingError: it is no run folder, or the run has not reached its first checkpoint.
    """
    facts = load_json(run_dir / "run.json")
    recipe = load_recipe(run_dir / "recipe.json")
    class_names = tuple(facts["class_names"])
    net = build_network(recipe.model, classes=len(class_names), is_trained=True)
    weights = load_weights(run_dir / f"{checkpoint}.safetensors")
    try:
        net.load_state_dict(weights)
    except RuntimeError as error:
        raise TrainingError(f"{run_dir}: {str(error).splitlines()[0]}") from error
    return TrainedRun(recipe=recipe, net=net.eval(), class_names=class_names, facts=facts)


def side_at(schedule: Sequence[tuple[float, int]], epochs: float) -> int:
    """Return the shorter side, in pixels, that images are shrunk to after `epochs`; 0 is none."""
    return next((side for epoch, side in reversed(schedule) if epochs >= epoch), 0)


def shrink(images: Tensor, side: int) -> Tensor:
    """Return float [B, 3, H, W] with the shorter of both sides `side` long; 0 leaves it."""
    if side == 0:
        return images
    shorter = min(images.shape[2:])
    size = [round(length * side / shorter) for length in images.shape[2:]]
    return functional.interpolate(images, size, mode="bilinear", antialias=True)


def _open_run_dir(recipe: Recipe, run_dir: Path, *, is_resumed: bool) -> None:
    """Make the folder, or make sure that what lies there is the same run."""
    path = run_dir / "recipe.json"
    if path.exists() and not is_resumed:
        raise TrainingError(f"{run_dir}: holds a run already; resume it or remove it")
    if path.exists() and load_recipe(path) != recipe:
        raise TrainingError(f"{run_dir}: was started with another recipe; see recipe.json there")
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TrainingError(f"{run_dir}: cannot be made: {error.strerror}") from error


def _facts(splits: Splits, target: torch.device, precision: Precision) -> dict[str, Any]:
    return {
        "class_names": list(splits.train.class_names),
        "data": {
            split.split: {
                "name": split.name,
                "images": len(split),
                "fingerprint": split.fingerprint,
            }
            for split in (splits.train, splits.validation)
        },
        "hardware": describe_hardware(target),
        "precision": precision,
        "libraries": library_versions(),
    }


def build_loader(recipe: Recipe, dataset: Dataset, team: Team = _ALONE) -> Loader:
    """Return the batches of training images as the recipe augments them, or a process's part."""
    _checked_batch_size(recipe, dataset)
    if recipe.data.loading == "stream":
        return StreamLoader(dataset, recipe, part=(team.rank, team.size))
    views = torch.from_numpy(decode_views(dataset, recipe.input.preprocess))
    colours = principal_colours(views) if recipe.augment.fancy_pca_std else None
    is_balanced = recipe.train.imbalance == "balanced_sampling"
    loader = MemoryLoader(
        views,
        torch.from_numpy(dataset.labels),
        recipe.augment,
        batch_size=recipe.train.batch_size,
        seed=recipe.seed,
        mean=recipe.input.normalisation.mean,
        transform=build_augmentation(recipe.augment, recipe.input.normalisation, colours),
        weights=sampling_weights(dataset) if is_balanced else None,
    )
    return loader if team.is_alone else SharedLoader(loader, team)


def _checked_batch_size(recipe: Recipe, dataset: Dataset) -> int:
    size = recipe.train.batch_size
    if len(dataset) < size:
        raise TrainingError(f"train.batch_size {size} is more than the {len(dataset)} images")
    return size


def _validation_batches(recipe: Recipe, dataset: Dataset) -> Iterable[Batch]:
    if recipe.data.loading == "stream":
        return StreamedViews(dataset, recipe.input.preprocess, workers=recipe.data.decode_workers)
    return split_views(decode_views(dataset, recipe.input.preprocess), dataset.labels)


def _build_net(recipe: Recipe, dataset: Dataset) -> nn.Module:
    net = build_network(recipe.model, classes=len(dataset.class_names))
    if isinstance(net, Airbench) and recipe.model.weights is None:
        some = dataset.subset(range(min(_WHITENING_IMAGES, len(dataset))))
        views = torch.from_numpy(decode_views(some, recipe.input.preprocess))
        net.whiten_like(Normalise(recipe.input.normalisation)(views))
    return net


def _describe(record: Mapping[str, Any]) -> str:
    return (
        f"epoch {record['epoch']:g}: loss {record['train_loss']:.3f}, "
        f"top-1 {record['train_top1']:.2%} train, {record['validation_top1']:.2%} validation, "
        f"{record['images_per_second']:.0f} img/s, {record['seconds']:.0f} s"
    )
