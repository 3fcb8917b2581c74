"""How fast images are loaded and trained on, beside timm's loader and training step.

    .venv/bin/python -m benchmarks.training --photographs ../shared/data/imagenet-sample

Both sides get the same photographs, network, batch, precision and threads, and take turns in short
rounds of one process, so that neighbours disturb them alike; what is told is the median of the
rounds' ratios. timm's side is what its training script does by default: `create_loader` with the
script's augmentation, `create_optimizer_v2`, autocast, a step. `--compile` adds the same with
torch.compile. No other thing may run beside it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from timm.data import create_dataset, create_loader
from timm.optim import create_optimizer_v2
from torch import nn

from training.config import Recipe, recipe_from_dict
from training.hardware import AUTOCAST, choose_precision
from training.models.registry import build_model
from training.trainer import Trainer
from training.trainer_setup import build_trainer

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# Network, pixels a side: those that the goals name.
CASES = {"resnet18": ("torchvision:resnet18", 224), "cifar-resnet20": ("seed:cifar_resnet20", 32)}
CLASSES = 10

Step = Callable[[], int]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photographs", type=Path, default=Path("../shared/data/imagenet-sample"))
    parser.add_argument("--only", choices=CASES, nargs="*", default=list(CASES))
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=4.0, help="A side's turn.")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--precision", choices=["auto", "fp32", "bf16"], default="auto")
    parser.add_argument(
        "--cpu-time",
        action="store_true",
        help="Seconds of this process's CPU time, which neighbours disturb less; --workers 0.",
    )
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--quick", action="store_true", help="Two short rounds of small batches.")
    given = parser.parse_args()
    if given.quick:
        given.rounds, given.seconds, given.batch, given.workers = 2, 0.2, 4, 0
    with tempfile.TemporaryDirectory() as folder:
        classes = into_classes(given.photographs, Path(folder) / "images")
        for name in given.only:
            print(json.dumps({"case": name, **measure(name, classes, given)}), flush=True)


def into_classes(photographs: Path, root: Path) -> Path:
    """Links the photographs into folders of ten classes."""
    files = sorted(one for one in photographs.rglob("*") if one.suffix.lower() in {".jpg", ".jpeg"})
    for number, file in enumerate(files):
        folder = root / f"class{number % CLASSES}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / file.name).symlink_to(file.resolve())
    return root


def measure(name: str, images: Path, given: argparse.Namespace) -> dict[str, Any]:
    architecture, side = CASES[name]
    recipe = make_recipe(architecture, side, images, given)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with tempfile.TemporaryDirectory() as folder:
        trainer = build_trainer(recipe, Path(folder), device)
    sides: dict[str, tuple[Step, Step]] = {
        "loading": (our_loading(trainer), timm_loading(images, side, device, given)),
        "training": (
            our_training(trainer),
            timm_training(architecture, side, images, device, given),
        ),
    }
    if given.compile:
        compiled = build_compiled(recipe, device)
        sides["training_compiled"] = (our_training(compiled), our_training(trainer))
    found: dict[str, Any] = {"batch": given.batch, "precision": trainer.precision}
    for what, (ours, other) in sides.items():
        rates = alternate(ours, other, given)
        ratios = [one / two for one, two in rates]
        peer = "uncompiled" if what == "training_compiled" else "timm"
        found[what] = {
            "images_per_second": round(statistics.median(one for one, _ in rates), 1),
            f"{peer}_images_per_second": round(statistics.median(two for _, two in rates), 1),
            "ratio": round(statistics.median(ratios), 3),
            "ratio_range": [round(min(ratios), 3), round(max(ratios), 3)],
        }
    return found


def alternate(ours: Step, other: Step, given: argparse.Namespace) -> list[tuple[float, float]]:
    """Images a second of both sides in each round; who begins alternates."""
    for step in (ours, other):
        # Compilation, caches and the start of worker processes.
        step()
        step()
    rounds = []
    for number in range(given.rounds):
        order = (ours, other) if number % 2 == 0 else (other, ours)
        clock = time.process_time if given.cpu_time else time.perf_counter
        rate = {step: images_per_second(step, given.seconds, clock) for step in order}
        rounds.append((rate[ours], rate[other]))
    return rounds


def images_per_second(step: Step, seconds: float, clock: Callable[[], float]) -> float:
    images, started = 0, clock()
    while (elapsed := clock() - started) < seconds or not images:
        images += step()
    return images / elapsed


def make_recipe(
    architecture: str, side: int, images: Path, given: argparse.Namespace, **train: Any
) -> Recipe:
    return recipe_from_dict(
        {
            "name": "speed",
            "data": {
                "source": "folder",
                "train": str(images),
                "loading": "stream",
                "decode_workers": given.workers,
                # All are trained on, as on the other side; nothing is validated.
                "validation": str(images),
            },
            "input": {
                "preprocess": {
                    "resize": {"policy": "shorter_side", "size": side, "interpolation": "bilinear"},
                    "crop": {"height": side, "width": side},
                    "background": [0, 0, 0],
                },
                "normalisation": {"mean": list(MEAN), "std": list(STD)},
            },
            "model": {"architecture": architecture},
            "augment": {"flip": "random", "crop_min_area": 0.08},
            "optim": {"name": "sgd", "lr": 0.05, "weight_decay": 0.00002},
            "train": {
                "epochs": 1_000_000,
                "batch_size": given.batch,
                "precision": given.precision,
                **train,
            },
        }
    )


def build_compiled(recipe: Recipe, device: torch.device) -> Trainer:
    compiled = replace(recipe, train=replace(recipe.train, is_compiled=True))
    with tempfile.TemporaryDirectory() as folder:
        return build_trainer(compiled, Path(folder), device)


def endless(trainer: Trainer) -> Iterator[Any]:
    epoch = 0
    while True:
        yield from trainer.loader.batches(epoch)
        epoch += 1


def our_loading(trainer: Trainer) -> Step:
    batches = endless(trainer)
    return lambda: len(next(batches)[1])


def our_training(trainer: Trainer) -> Step:
    batches = endless(trainer)

    def step() -> int:
        views, labels = next(batches)
        trainer.net.train()
        trainer.train_step(views.to(trainer.target), labels.to(trainer.target))
        return len(labels)

    return step


def timm_batches(
    images: Path, side: int, device: torch.device, given: argparse.Namespace
) -> Iterator[Any]:
    """What `train.py` of timm shows by default: random cut, mirror, colour jitter of 0.4."""
    loader = create_loader(
        create_dataset("", root=str(images), is_training=True),
        input_size=(3, side, side),
        batch_size=given.batch,
        is_training=True,
        scale=(0.08, 1.0),
        hflip=0.5,
        # Ours is measured without.
        color_jitter=0.0,
        interpolation="bilinear",
        mean=MEAN,
        std=STD,
        num_workers=given.workers,
        persistent_workers=False,
        use_prefetcher=True,
        device=device,
    )
    while True:
        yield from loader


def timm_loading(images: Path, side: int, device: torch.device, given: argparse.Namespace) -> Step:
    batches = timm_batches(images, side, device, given)
    return lambda: len(next(batches)[1])


def timm_training(
    architecture: str, side: int, images: Path, device: torch.device, given: argparse.Namespace
) -> Step:
    batches = timm_batches(images, side, device, given)
    net = build_model(architecture, classes=CLASSES).to(device)
    net = net.to(memory_format=torch.channels_last).train()
    optimizer = create_optimizer_v2(net, opt="sgd", lr=0.05, momentum=0.9, weight_decay=0.00002)
    criterion = nn.CrossEntropyLoss()
    precision = choose_precision(given.precision, device)
    is_autocast = precision != "fp32"

    def step() -> int:
        pictures, labels = next(batches)
        pictures = pictures.contiguous(memory_format=torch.channels_last)
        context = torch.autocast(device.type, AUTOCAST[precision]) if is_autocast else nullcontext()
        with context:
            loss = criterion(net(pictures), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        # The script reads it for its log, though not at every step.
        float(loss.detach())
        return len(labels)

    return step


if __name__ == "__main__":
    main()
