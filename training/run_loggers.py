"""TensorBoard and MLflow, told of a run as it goes on; both are optional extras.

A logger is called with each epoch's record of the history (`training.checkpoint`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, Protocol

from training.checkpoint import save_text
from training.config import Recipe, dump_recipe, recipe_to_dict
from training.errors import TrainingError

LoggerName = Literal["tensorboard", "mlflow"]
EpochLogger = Callable[[Mapping[str, Any]], None]

logger = logging.getLogger(__name__)

# MLflow takes no longer values.
_MLFLOW_VALUE_CHARACTERS = 500


class RunLogger(Protocol):
    """Is told of a run; nothing is written before its first epoch is done."""

    def log(self, record: Mapping[str, Any]) -> None:
        """Take in a record of the history."""

    def close(self, *, is_complete: bool) -> None:
        """Write what is left."""


@contextmanager
def open_loggers(
    names: Sequence[LoggerName], recipe: Recipe, run_dir: Path
) -> Iterator[EpochLogger | None]:
    """Open the loggers by name for as long as the block lasts; None if none is named.

    Raises:
        TrainingError: the package of one is not installed.
    """
    loggers = [_LOGGERS[name](recipe, run_dir) for name in names]

    def log(record: Mapping[str, Any]) -> None:
        for logger in loggers:
            logger.log(record)

    is_complete = False
    try:
        yield log if loggers else None
        is_complete = True
    finally:
        for logger in loggers:
            logger.close(is_complete=is_complete)


class TensorBoardLogger:
    """Writes event files into `RUN_DIR/tensorboard`; a resumed run goes on there."""

    def __init__(self, recipe: Recipe, run_dir: Path) -> None:
        _require("tensorboard")
        self._recipe = recipe
        self._folder = run_dir / "tensorboard"
        self._writer: Any = None

    def log(self, record: Mapping[str, Any]) -> None:
        """Add a point to each curve."""
        step = record["step"]
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            # What a killed run wrote behind its last checkpoint is struck out.
            self._writer = SummaryWriter(str(self._folder), purge_step=step)
            text = f"```json\n{dump_recipe(self._recipe)}```"
            self._writer.add_text("recipe", text, step)
        for name, value in _numbers(record):
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self, *, is_complete: bool) -> None:  # noqa: ARG002
        """Close the file."""
        if self._writer is not None:
            self._writer.close()


class MlflowLogger:
    """Tells the store that MLFLOW_TRACKING_URI names.

    The recipe becomes parameters, the history metrics; a resumed run goes on in the run of MLflow
    that it began. A store that fails is given up with a warning: training goes on.
    """

    def __init__(self, recipe: Recipe, run_dir: Path) -> None:
        _require("mlflow")
        import mlflow

        # MLflow's own default is a database that the small package cannot open.
        if not mlflow.tracking.is_tracking_uri_set():
            raise TrainingError("mlflow needs MLFLOW_TRACKING_URI, the address of its store")
        self._recipe = recipe
        self._run_dir = run_dir
        self._client: Any = None
        self._run_id = ""
        self._is_given_up = False

    def log(self, record: Mapping[str, Any]) -> None:
        """Add a value to each metric."""
        if self._is_given_up:
            return
        with self._giving_up():
            if self._client is None:
                self._begin()
            for name, value in _numbers(record):
                self._client.log_metric(self._run_id, name, value, step=record["step"])

    def close(self, *, is_complete: bool) -> None:
        """Say how the run ended."""
        status = "FINISHED" if is_complete else "FAILED"
        if self._client is None or self._is_given_up:
            return
        with self._giving_up():
            self._client.set_terminated(self._run_id, status=status)

    @contextmanager
    def _giving_up(self) -> Iterator[None]:
        """Warn of a store that fails."""
        from mlflow.exceptions import MlflowException

        try:
            yield
        except MlflowException as error:
            logger.warning("mlflow is told no more: %s", str(error).splitlines()[0])
            self._is_given_up = True

    def _begin(self) -> None:
        import mlflow

        self._client = mlflow.MlflowClient()
        noted = self._run_dir / "mlflow-run.txt"
        if noted.exists():
            self._run_id = noted.read_text(encoding="utf-8").strip()
            self._client.update_run(self._run_id, status="RUNNING")
            return
        name = self._recipe.name
        found = self._client.get_experiment_by_name(name)
        experiment = self._client.create_experiment(name) if found is None else found.experiment_id
        run = self._client.create_run(experiment, run_name=self._run_dir.name)
        self._run_id = run.info.run_id
        for key, value in _flat(recipe_to_dict(self._recipe)):
            self._client.log_param(self._run_id, key, str(value)[:_MLFLOW_VALUE_CHARACTERS])
        save_text(noted, self._run_id + "\n")


_LOGGERS: Mapping[LoggerName, Callable[[Recipe, Path], RunLogger]] = {
    "tensorboard": TensorBoardLogger,
    "mlflow": MlflowLogger,
}


def _require(package: LoggerName) -> None:
    if find_spec(package) is None:
        raise TrainingError(f"{package} is not installed; the extra `{package}` has it")


def _numbers(record: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    for name, value in record.items():
        if isinstance(value, int | float) and name != "step":
            yield name, float(value)


def _flat(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in table.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value
