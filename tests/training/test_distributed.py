"""What a process of several does by itself; tests/e2e/test_training_processes.py starts them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from training.config import load_recipe
from training.distributed import Team
from training.errors import TrainingError
from training.progress import TrainingProgress
from training.train import train
from training.trainer_setup import build_trainer

DIGITS = Path(__file__).parents[2] / "training" / "recipes" / "digits-lenet5.toml"
SHORT = ("train.epochs=2", "train.batch_size=256", "train.cpu_threads=1", "train.precision=fp32")


def seeds_of_second_epoch(folder, rank, *, is_first_trained):
    """What chance is drawn from in each step; the first epoch was trained, or a checkpoint read."""
    recipe, team = load_recipe(DIGITS, SHORT), Team(rank=rank, size=2)
    trainer = build_trainer(recipe, folder, torch.device("cpu"), team=team)
    progress = TrainingProgress(total_steps=10, first_step=0, batch_size=256, is_shown=False)
    if is_first_trained:
        trainer.train_epoch(progress)
    first = torch.initial_seed()
    trainer.step = trainer.loader.batches_per_epoch
    seeds = []
    trainer.on_step = lambda _: seeds.append(torch.initial_seed())
    trainer.train_epoch(progress)
    # Else what the first epoch drew would decide what the second one draws.
    assert first not in seeds
    return seeds


def test_a_resumed_process_of_a_team_drops_out_the_same_features(tmp_path, group):
    whole = seeds_of_second_epoch(tmp_path, 0, is_first_trained=True)
    resumed = seeds_of_second_epoch(tmp_path, 0, is_first_trained=False)
    other = seeds_of_second_epoch(tmp_path, 1, is_first_trained=True)
    assert len(whole) == 5
    assert whole == resumed
    assert whole != other


def test_a_process_of_torchrun_does_not_train_by_itself(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "one of several")
    with pytest.raises(TrainingError, match="train as a team"):
        train(load_recipe(DIGITS, SHORT), run_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()
