import json

import pytest
from click.testing import CliRunner
from documents import ROOT, documented
from PIL import Image

from training.cli import find_lr as find_lr_command
from training.config import load_recipe
from training.errors import TrainingError
from training.lr_finder import find_lr

DIGITS = ROOT / "training/recipes/digits-lenet5.toml"
SHORT = ("train.batch_size=64", "train.cpu_threads=1", "train.precision=fp32")


@pytest.fixture(scope="module")
def sweep():
    return find_lr(load_recipe(DIGITS, [*SHORT, "optim.name=sgd"]), steps=80, highest=100)


def test_the_rate_rises_exponentially_until_the_loss_explodes(sweep):
    ratios = [later / earlier for earlier, later in zip(sweep.lrs, sweep.lrs[1:], strict=False)]
    assert ratios == pytest.approx([ratios[0]] * len(ratios))
    assert sweep.lrs[0] == pytest.approx(1e-6)
    assert sweep.lrs[-1] < 100
    assert sweep.losses[0] == pytest.approx(sweep.smoothed[0])
    assert min(sweep.smoothed) < 0.8 * sweep.smoothed[0]


def test_the_suggestions_lie_where_sgd_learns_these_digits(sweep):
    assert 1e-3 < sweep.steepest < 1.0
    assert 1e-3 < sweep.cautious < 1.0


def test_nothing_is_learned_below_and_the_suggestion_works(sweep, tmp_path):
    from training.curves import read_history
    from training.train import train

    losses = {}
    for name, lr in {"found": sweep.steepest, "tiny": sweep.steepest / 1000}.items():
        recipe = load_recipe(
            DIGITS,
            [*SHORT, "optim.name=sgd", f"optim.lr={lr}", "train.epochs=1", "average.kind=none"],
        )
        run_dir = train(recipe, run_dir=tmp_path / name, is_progress_shown=False)
        losses[name] = read_history(run_dir / "history.jsonl")[-1]["validation_loss"]
    assert losses["found"] < 0.6 * losses["tiny"]


def test_a_sweep_that_starts_too_high_says_so():
    with pytest.raises(TrainingError, match="never fell"):
        find_lr(load_recipe(DIGITS, [*SHORT, "optim.name=sgd"]), lowest=1e4, highest=1e6, steps=20)


def test_the_command_prints_and_draws(tmp_path, monkeypatch):
    plot = tmp_path / "lr.png"
    name, *arguments = documented("docs/train.md", "find-lr")
    assert (name, arguments.pop()) == ("find-lr", plot.name)
    arguments += [str(plot), "--steps", "40", "--json"]
    monkeypatch.chdir(ROOT)
    sets = [part for one in SHORT for part in ("--set", one)]
    done = CliRunner().invoke(find_lr_command, [*arguments, *sets])
    assert done.exit_code == 0, done.output
    assert set(json.loads(done.stdout)) == {"steepest", "cautious"}
    with Image.open(plot) as image:
        assert image.width > 400
