"""The numbers of a recipe stay what they were: new keys change nothing while they are off.

Recorded before those keys came. Other processors round otherwise, hence the tolerance; another
order of random numbers is far beyond it.
"""

import pytest

from training.config import load_recipe
from training.curves import read_history
from training.train import train

RECIPES = "training/recipes"
CASES = {
    "lenet5": (
        ("train.epochs=2.5", "train.batch_size=256"),
        [2.07381329536438, 1.3591354131698608, 1.1616980632146199],
        [1.4824286566840277, 1.0276156107584635, 0.9708212110731337],
    ),
    "resnet": (
        (
            "train.epochs=1",
            "train.batch_size=256",
            "model.architecture=timm:test_resnet",
            "model.options.drop_rate=0.5",
            "optim.name=sgd",
            "optim.lr=0.05",
            "optim.clip_grad_norm=1",
            "augment.cutout_px=6",
            "augment.flip=random",
        ),
        [2.406988430023193],
        [2.3082015991210936],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_seed_gives_the_losses_that_it_always_gave(case, tmp_path, pytestconfig):
    overrides, training, validation = CASES[case]
    recipe = load_recipe(
        pytestconfig.rootpath / RECIPES / "digits-lenet5.toml",
        [*overrides, "train.cpu_threads=1", "train.precision=fp32"],
    )
    run_dir = train(recipe, run_dir=tmp_path / "run", is_progress_shown=False)
    history = read_history(run_dir / "history.jsonl")
    assert [one["train_loss"] for one in history] == pytest.approx(training, rel=1e-3)
    assert [one["validation_loss"] for one in history] == pytest.approx(validation, rel=1e-3)
