"""Techniques of `optim` and `train`, each by what it does to a real run."""

from pathlib import Path

import pytest
import torch
from torch import nn

import training.trainer_setup
from training.checkpoint import load_weights
from training.config import load_recipe
from training.curves import read_history
from training.errors import TrainingError
from training.progressive_resizing import shrink, side_at
from training.train import train

DIGITS = Path(__file__).parents[2] / "training" / "recipes" / "digits-lenet5.toml"
SHORT = ("train.epochs=0.4", "train.batch_size=128", "train.cpu_threads=1", "train.precision=fp32")


def digits_recipe(*overrides):
    return load_recipe(DIGITS, [*SHORT, *overrides])


def final_weights(folder, *overrides):
    run_dir = train(digits_recipe(*overrides), run_dir=folder, is_progress_shown=False)
    return load_weights(run_dir / "last.safetensors")


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return final_weights(tmp_path_factory.mktemp("plain") / "run")


def difference(one, other):
    return max(float((one[key] - other[key]).abs().max()) for key in one)


@pytest.fixture
def seen_batches(monkeypatch):
    """The shapes that the network was shown while training."""
    shapes = []

    def record(net, images):
        shapes.append(tuple(images.shape))
        return logits_for_training(net, images)

    logits_for_training = training.trainer_setup.logits_for_training
    monkeypatch.setattr(training.trainer_setup, "logits_for_training", record)
    return shapes


def test_accumulated_parts_give_the_weights_of_the_whole_batch(tmp_path, plain, seen_batches):
    parts = final_weights(tmp_path / "run", "train.accumulation_parts=3")
    assert {shape[0] for shape in seen_batches} == {42, 43}
    assert difference(parts, plain) < 1e-5


@pytest.fixture
def clipped(tmp_path):
    """A trainer whose gradients are all too long, and how far a step of it goes."""
    plain_sgd = ("optim.name=sgd", "optim.momentum=0", "optim.is_nesterov=false", "optim.lr=0.5")
    steady = ("optim.schedule=constant", "optim.warmup_fraction=0", "optim.weight_decay=0")
    recipe = digits_recipe(*plain_sgd, *steady, "optim.clip_grad_norm=0.01")
    trainer = training.trainer_setup.build_trainer(recipe, tmp_path, torch.device("cpu"))
    views, labels = next(trainer.loader.batches(0))

    def step():
        before = [one.detach().clone() for one in trainer.net.parameters()]
        trainer.train_step(views, labels)
        with torch.no_grad():
            moved = [one - old for one, old in zip(trainer.net.parameters(), before, strict=True)]
        return float(nn.utils.get_total_norm(moved))

    return trainer, step


def test_a_clipped_gradient_moves_the_weights_so_far_and_no_farther(clipped):
    """By rate times norm a step, whatever the gradient."""
    _, step = clipped
    assert step() == pytest.approx(0.5 * 0.01, rel=1e-3)


def test_gradients_of_half_precision_are_clipped_at_their_own_scale(clipped):
    """What a GPU does with fp16, on the CPU."""
    trainer, step = clipped
    trainer.precision = "fp16"
    trainer.scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
    assert step() == pytest.approx(0.5 * 0.01, rel=1e-2)
    # Gradients that overflow are passed over, and the next ones scaled by less.
    trainer.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**60)
    assert step() == 0
    assert trainer.scaler.get_scale() == 2.0**59


def test_bf16_learns_nearly_the_same_and_keeps_its_weights_in_fp32(tmp_path, plain):
    weights = final_weights(tmp_path / "run", "train.precision=bf16")
    assert 1e-6 < difference(weights, plain) < 0.05
    assert {one.dtype for one in weights.values()} == {torch.float32}


def test_images_grow_by_the_schedule(tmp_path, plain, seen_batches):
    schedule = "train.size_schedule=[[0, 24], [0.2, 28], [0.3, 0]]"
    shown = final_weights(
        tmp_path / "run", schedule, "model.architecture=timm:test_resnet", "train.batch_size=64"
    )
    sides = [shape[2] for shape in seen_batches]
    assert sides == [24] * 5 + [28] * 2 + [32] * 2
    assert all(shape[2] == shape[3] for shape in seen_batches)
    assert shown


def test_shrinking_keeps_the_shape_and_the_mean():
    images = torch.rand(2, 3, 40, 60)
    small = shrink(images, 20)
    assert small.shape == (2, 3, 20, 30)
    assert small.mean() == pytest.approx(float(images.mean()), abs=1e-3)
    assert shrink(images, 0) is images
    assert [side_at(((0, 16), (2, 24), (3, 0)), epoch) for epoch in (0, 1.9, 2, 3.5)] == [
        *(16, 16, 24, 0)
    ]
    assert side_at((), 1) == 0


@pytest.mark.parametrize(
    "override",
    [
        "optim.name=rmsprop",
        "optim.layer_decay=0.5",
        "optim.schedule=step",
        "optim.schedule=one_cycle",
        "train.imbalance=balanced_sampling",
        "train.imbalance=class_weights",
        "train.imbalance=logit_adjustment",
        "augment.mixup_alpha=0.4",
        "augment.rotate_degrees=10",
        "optim.weight_decay=0.5",
        "train.label_smoothing=0.3",
    ],
)
def test_every_technique_reaches_the_weights(tmp_path, plain, override):
    weights = final_weights(tmp_path / "run", override)
    assert difference(weights, plain) > 1e-6
    assert all(torch.isfinite(one).all() for one in weights.values())


def test_memory_format_changes_nothing_but_speed(tmp_path, plain):
    weights = final_weights(tmp_path / "run", "train.is_channels_last=false")
    assert difference(weights, plain) < 1e-5


def test_fp16_without_a_gpu_is_refused(tmp_path):
    with pytest.raises(TrainingError, match="fp16 needs a GPU"):
        train(digits_recipe("train.precision=fp16"), run_dir=tmp_path / "r", device="cpu")


@pytest.mark.e2e
def test_a_compiled_network_learns_the_same(tmp_path, plain):
    weights = final_weights(tmp_path / "run", "train.is_compiled=true")
    assert difference(weights, plain) < 1e-4


def test_imbalanced_data_are_recalled_better(tmp_path):
    """Nine of ten images of the digits 0 to 4 are left out; their recall rises."""
    recalls = {}
    for imbalance in ("none", "logit_adjustment", "class_weights", "balanced_sampling"):
        recalls[imbalance] = rare_recall(tmp_path / imbalance, imbalance)
    assert recalls["logit_adjustment"] > recalls["none"]
    assert recalls["class_weights"] > recalls["none"]
    assert recalls["balanced_sampling"] > recalls["none"]


def rare_recall(folder, imbalance):
    images = folder / "images"
    digits = training.trainer_setup.load_splits(digits_recipe().data)
    counts = dict.fromkeys(range(10), 0)
    for index, label in enumerate(digits.train.labels.tolist()):
        counts[label] += 1
        if label >= 5 or counts[label] % 12 == 0:
            path = images / "train" / str(label) / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(digits.train.image_bytes(index))
    for index, label in enumerate(digits.validation.labels.tolist()):
        if label < 5:
            path = images / "validation" / str(label) / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(digits.validation.image_bytes(index))
    for label in range(5, 10):
        (images / "validation" / str(label)).mkdir()
    recipe = digits_recipe(
        "data.source=folder",
        f"data.train={images / 'train'}",
        f"data.validation={images / 'validation'}",
        f"train.imbalance={imbalance}",
        "train.epochs=3",
        "train.batch_size=64",
        "average.kind=none",
    )
    run_dir = train(recipe, run_dir=folder / "run", is_progress_shown=False)
    return read_history(run_dir / "history.jsonl")[-1]["validation_top1"]
