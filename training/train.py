"""Trains a recipe into a run folder. Read `train` from top to bottom.

    recipe = load_recipe(Path("training/recipes/digits-lenet5.toml"))
    run_dir = train(recipe, run_dir=default_run_dir(recipe))
    run = load_run(run_dir)

A run that was killed goes on with `resume=True` from its last checkpoint and, on the same machine,
ends with the very same weights: batches depend on (seed, epoch, batch) alone, and `resume.pt` holds
everything else.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Literal

from training.checkpoint import save_json, save_text
from training.config import Recipe, dump_recipe, load_recipe
from training.distributed import ALONE, Team, is_in_team
from training.errors import TrainingError
from training.hardware import choose_device, cpu_threads
from training.progress import TrainingProgress
from training.run_loggers import EpochLogger
from training.trainer_setup import build_trainer


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
    on_epoch: EpochLogger | None = None,
    team: Team = ALONE,
) -> Path:
    """Train and return the run folder.

    Args:
        recipe: what to train.
        run_dir: made here; its files are listed in `training.checkpoint`.
        resume: go on from the folder's last checkpoint; from the start if it has none.
        device: `auto` is the GPU where there is one.
        is_progress_shown: a bar and a line an epoch on stderr.
        on_step: called after each step with its number, counted from 1.
        on_epoch: called with each record of the history, by the process that writes.
        team: the processes that train this together; every one of them calls this.

    Raises:
        TrainingError: the data, the network or the folder do not fit the recipe; the loss diverged;
            or torchrun started this process, and it has joined no team.
    """
    if team is ALONE and is_in_team():
        # Each of them would train by itself, into the same folder.
        raise TrainingError("torchrun's processes train as a team: see join_team")
    with cpu_threads(recipe.train.cpu_threads):
        _open_run_dir(recipe, run_dir, is_resumed=resume)
        trainer = build_trainer(recipe, run_dir, choose_device(device), on_step, team)
        team.wait()
        if team.is_writer:
            # Only now: a recipe that was refused leaves no run behind.
            save_text(run_dir / "recipe.json", dump_recipe(recipe))
            save_json(run_dir / "run.json", trainer.facts)
        if resume:
            trainer.restore()
        with TrainingProgress(
            total_steps=trainer.total_steps,
            first_step=trainer.step,
            batch_size=recipe.train.batch_size,
            is_shown=is_progress_shown and team.is_writer,
        ) as progress:
            try:
                while trainer.step < trainer.total_steps and not trainer.is_stalled:
                    tally = trainer.train_epoch(progress)
                    trainer.finish_epoch(tally, progress)
                    if on_epoch is not None and team.is_writer:
                        on_epoch(trainer.history[-1])
            except KeyboardInterrupt:
                raise TrainingError(
                    f"{run_dir}: interrupted at step {trainer.step}; --resume goes on from the "
                    "last checkpoint"
                ) from None
            trainer.finish_run(progress)
    return run_dir


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
