import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from training.checkpoint import load_weights
from training.config import load_recipe
from training.consistency import LOOKS, disagreement
from training.contact_sheet import sheet_pixels
from training.data import load_splits
from training.errors import TrainingError
from training.loaders import build_loader
from training.objective import Objective
from training.train import train

DIGITS = Path(__file__).parents[2] / "training" / "recipes" / "digits-lenet5.toml"
SHORT = ("train.epochs=0.04", "train.batch_size=24", "train.cpu_threads=1", "train.precision=fp32")
AUGMIX = ("augment.augmix_severity=3", "augment.augmix_consistency=12")


def digits(*overrides):
    return load_recipe(DIGITS, [*SHORT, *overrides])


def test_disagreement_is_that_of_the_paper():
    """Against the definition: entropy of the mean less the mean entropy."""
    logits = torch.randn(5, LOOKS, 7, dtype=torch.float64)
    shares = logits.softmax(dim=2)
    mean = shares.mean(dim=1)
    entropy = -(mean * mean.log()).sum(dim=1) + (shares * shares.log()).sum(dim=2).mean(dim=1)
    assert float(disagreement(logits)) == pytest.approx(float(entropy.mean()), rel=1e-5)
    assert float(disagreement(logits[:, :1].expand(-1, LOOKS, -1))) == pytest.approx(0, abs=1e-6)
    sure = 100.0 * torch.eye(LOOKS)[None]
    assert float(disagreement(sure)) == pytest.approx(math.log(LOOKS), rel=1e-3)


def test_the_loss_is_that_of_the_image_as_it_is_and_the_weighted_disagreement():
    recipe, labels = digits(), torch.tensor([0, 2])
    known = labels.numpy()
    logits = torch.randn(2, LOOKS, 3)
    plain = Objective(recipe.train, known, 3)(logits[:, 0], labels)
    whole = Objective(recipe.train, known, 3, consistency=12.0)(logits, labels)
    assert float(whole) == pytest.approx(float(plain + 12 * disagreement(logits)), rel=1e-5)


@pytest.mark.parametrize("loading", ["memory", "stream"])
def test_a_batch_holds_three_looks_of_which_the_first_is_not_augmented(loading):
    overrides = [f"data.loading={loading}", "data.decode_workers=0"]
    if loading == "stream":
        overrides.append("augment.translate_px=0")
        overrides.append("augment.translate_fill=reflect")
    recipe = digits(*AUGMIX, *overrides)
    train_images = load_splits(recipe.data).train.subset(range(24))
    views, labels = next(iter(build_loader(recipe, train_images).batches(0)))
    assert views.shape == (24, LOOKS, 32, 32, 3)
    assert views.dtype == torch.uint8
    again, _ = next(iter(build_loader(recipe, train_images).batches(0)))
    assert torch.equal(views, again)
    bare = replace(recipe.augment, augmix_severity=None, augmix_consistency=0.0)
    plain, own = next(iter(build_loader(replace(recipe, augment=bare), train_images).batches(0)))
    assert torch.equal(labels, own)
    assert torch.equal(views[:, 0], plain)
    differ = [(views[:, one] != views[:, other]).any() for one, other in ((0, 1), (0, 2), (1, 2))]
    assert all(differ)


def weights_of(folder, *overrides):
    run_dir = train(digits(*overrides), run_dir=folder, is_progress_shown=False)
    return load_weights(run_dir / "last.safetensors")


def difference(one, other):
    return max(float((one[key] - other[key]).abs().max()) for key in one)


def test_training_with_it_reaches_the_weights_and_may_be_done_in_parts(tmp_path):
    consistent = weights_of(tmp_path / "a", *AUGMIX, "train.size_schedule=[[0, 24]]")
    without = weights_of(tmp_path / "b", AUGMIX[0], "train.size_schedule=[[0, 24]]")
    assert difference(consistent, without) > 1e-4
    parts = ("train.size_schedule=[[0, 24]]", "train.accumulation_parts=3")
    assert difference(consistent, weights_of(tmp_path / "c", *AUGMIX, *parts)) < 1e-5


def test_auxiliary_classifiers_are_to_agree_too(tmp_path):
    net = ("model.architecture=seed:googlenet_2014", "train.epochs=0.001", "train.batch_size=2")
    small = ("augment.translate_px=0", "train.size_schedule=[[0, 31]]", "average.kind=none")
    weights = weights_of(tmp_path / "run", *AUGMIX, *net, *small)
    assert all(torch.isfinite(one).all() for one in weights.values())


def test_the_contact_sheet_shows_single_looks():
    _, shown, _ = sheet_pixels(digits(*AUGMIX), images=4, looks=2)
    assert shown.shape == (4, 2, 32, 32, 3)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (AUGMIX[1:], "augment.augmix_consistency needs augmix_severity"),
        ([*AUGMIX, "augment.mixup_alpha=0.2"], "goes without mixup_alpha and cutmix_alpha"),
    ],
)
def test_what_it_cannot_go_with_is_refused(overrides, message):
    with pytest.raises(TrainingError, match=message):
        digits(*overrides)
