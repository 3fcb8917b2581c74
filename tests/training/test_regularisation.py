"""Regularisation and transfer, each by what it does to a real run."""

import json
from pathlib import Path

import pytest
import torch

from training.checkpoint import load_weights
from training.config import load_recipe
from training.curves import read_history
from training.errors import TrainingError
from training.train import train
from training.trained_run import load_run

DIGITS = Path(__file__).parents[2] / "training" / "recipes" / "digits-lenet5.toml"
SHORT = (
    "train.epochs=2",
    "train.batch_size=256",
    "train.cpu_threads=1",
    "train.precision=fp32",
    "average.kind=none",
)
RESNET = "model.architecture=timm:test_resnet"


def run(folder, *overrides, **options):
    recipe = load_recipe(DIGITS, [*SHORT, *overrides])
    return train(recipe, run_dir=folder, is_progress_shown=False, **options)


def final(run_dir):
    return load_weights(run_dir / "last.safetensors")


def magnitude(weights):
    return float(sum(one.abs().sum() for key, one in weights.items() if one.ndim > 1))


def test_l1_shrinks_the_sum_of_magnitudes(tmp_path):
    plain = magnitude(final(run(tmp_path / "plain")))
    assert magnitude(final(run(tmp_path / "l1", "optim.l1=0.01"))) < 0.8 * plain


def test_swa_ends_with_statistics_of_the_averaged_network(tmp_path):
    weights = [
        final(run(tmp_path / kind, RESNET, f"average.kind={kind}", "train.epochs=2"))
        for kind in ("none", "swa")
    ]
    assert not torch.equal(weights[0]["head.weight"], weights[1]["head.weight"])
    # Taken anew over one epoch of five batches.
    assert int(weights[1]["backbone.conv1.1.num_batches_tracked"]) == 5


def test_early_stopping_ends_the_run_with_the_best_weights(tmp_path):
    run_dir = run(
        tmp_path / "run",
        "train.epochs=30",
        "train.batch_size=480",
        "train.early_stop_epochs=2",
        "train.best_by=loss",
        "optim.schedule=constant",
        "optim.warmup_fraction=0",
        "optim.lr=0.03",
    )
    history = read_history(run_dir / "history.jsonl")
    losses = [record["validation_loss"] for record in history]
    assert len(losses) < 30
    assert losses.index(min(losses)) == len(losses) - 3
    result = json.loads((run_dir / "result.json").read_text())
    assert result["is_stopped_early"]
    assert result["loss"] == pytest.approx(min(losses), rel=1e-4)
    best, last = (load_weights(run_dir / f"{name}.safetensors") for name in ("best", "last"))
    assert all(torch.equal(best[key], last[key]) for key in best)


def test_the_probe_is_written_at_the_start_and_during_training(tmp_path):
    run_dir = run(tmp_path / "run", RESNET, "train.probe_every_epochs=1")
    records = read_history(run_dir / "probe.jsonl")
    assert [record["step"] for record in records] == [0, 5, 10]
    kinds = {layer["kind"] for layer in records[0]["layers"]}
    assert {"Conv2d", "ReLU"} <= kinds
    assert records[0]["layers"] != records[2]["layers"]


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """A network that knows the digits, for others to start from."""
    return run(tmp_path_factory.mktemp("pretrained") / "run", RESNET, "optim.lr=0.01")


def test_a_resting_backbone_keeps_weights_and_statistics(tmp_path, pretrained):
    run_dir = run(
        tmp_path / "run",
        RESNET,
        f"model.weights={pretrained}",
        'train.unfreeze_after_epochs={"backbone" = 9}',
    )
    before, after = load_weights(pretrained / "best.safetensors"), final(run_dir)
    moved = {key for key in after if not torch.equal(before[key], after[key])}
    assert moved == {"head.weight", "head.bias"}


def test_cached_features_train_the_same_head_as_a_resting_backbone(tmp_path, pretrained):
    common = (RESNET, f"model.weights={pretrained}", "augment.translate_px=0", "seed=3")
    resting = run(tmp_path / "resting", *common, 'train.unfreeze_after_epochs={"backbone" = 9}')
    plain = ("augment.translate_fill=reflect", "train.is_feature_cache_on=true")
    cached = run(tmp_path / "cached", *common, *plain)
    one, other = final(resting), final(cached)
    assert one.keys() == other.keys()
    assert max(float((one[key] - other[key]).abs().max()) for key in one) < 1e-4
    results = [json.loads((each / "result.json").read_text()) for each in (resting, cached)]
    assert results[0]["loss"] == pytest.approx(results[1]["loss"], rel=1e-3)
    assert load_run(cached).net(torch.zeros(1, 3, 32, 32)).shape == (1, 10)
    # A second run of the same folder takes the features from the disk.
    before = (cached / "features-train.safetensors").stat().st_mtime_ns
    (cached / "resume.pt").unlink()
    run(cached, *common, *plain, resume=True)
    assert (cached / "features-train.safetensors").stat().st_mtime_ns == before


class KilledError(Exception):
    pass


def test_staged_unfreezing_is_exact_on_resume(tmp_path, pretrained):
    options = (
        RESNET,
        f"model.weights={pretrained}",
        "model.dropout=0.3",
        "model.drop_path=0.2",
        'train.unfreeze_after_epochs={"backbone" = 2, "backbone.layer4" = 1}',
        "train.epochs=3",
        "train.batch_size=480",
        "train.probe_every_epochs=1",
        "average.kind=swa",
        "average.start_fraction=0.4",
        "augment.mixup_alpha=0.4",
        "augment.rotate_degrees=10",
        "train.accumulation_parts=2",
        "train.imbalance=logit_adjustment",
        "optim.layer_decay=0.8",
        "optim.schedule=one_cycle",
        "optim.low_momentum=0.85",
        "optim.l1=0.0001",
        "train.size_schedule=[[0, 24], [1, 0]]",
    )

    def kill(step):
        if step == 5:
            raise KilledError

    whole = run(tmp_path / "whole", *options)
    with pytest.raises(KilledError):
        run(tmp_path / "killed", *options, on_step=kill)
    resumed = run(tmp_path / "killed", *options, resume=True)
    one, other = final(whole), final(resumed)
    assert all(torch.equal(one[key], other[key]) for key in one)
    assert (whole / "probe.jsonl").read_text() == (resumed / "probe.jsonl").read_text()


@pytest.mark.parametrize(
    ("overrides", "complaint"),
    [
        (["train.is_feature_cache_on=true"], "goes without augmentation"),
        (["train.frozen_norm=train"], "needs train.unfreeze_after_epochs"),
        (["average.start_fraction=0.5"], "needs average.kind"),
        (
            [
                'data={source="parquet", train_shards=["a"], loading="stream", classes="c"}',
                "augment={}",
                "train.imbalance=balanced_sampling",
            ],
            "balanced_sampling. goes without data.train_shards",
        ),
        (["model.pretrained=true", "model.initialisation=dirac"], "takes one of pretrained"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(overrides, complaint):
    with pytest.raises(TrainingError, match=complaint):
        load_recipe(DIGITS, overrides)
