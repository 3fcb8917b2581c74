"""The files of a run folder: written beside their final name, then renamed over it.

runs/<name>-<seed>/
  recipe.json         the resolved recipe
  run.json            class names, data fingerprints, hardware, library versions
  history.jsonl       one line an epoch
  resume.pt           network, optimiser, average and random state: one file, so never half new
  last.safetensors    weights after the last epoch so far; the average, where there is one
  best.safetensors    weights of the epoch with the best validation accuracy
  unreadable.json     images that were left out, where the recipe puts up with some
  probe.jsonl         variance and dead ReLUs of every layer, where the recipe asks for them
  features-*.safetensors  of a resting backbone, where the recipe caches them
  tensorboard/, mlflow-run.txt  where `--log-to` asks for them
  result.json         written once the run is complete
  curves.png
"""

import json
import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from training.errors import TrainingError


def save_state(path: Path, state: Mapping[str, Any]) -> None:
    """Write tensors, numbers, text and containers of them."""
    _replace(path, lambda partial: torch.save(dict(state), partial))


def load_state(path: Path) -> dict[str, Any]:
    """Read what `save_state` wrote; never runs code from the file.

    Raises:
        TrainingError: the file is missing or no checkpoint.
    """
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise TrainingError(f"{path}: no such checkpoint") from None
    except Exception as error:  # torch names no class for a damaged file
        raise TrainingError(f"{path}: no checkpoint: {str(error).splitlines()[0]}") from error
    return state


def save_weights(path: Path, weights: Mapping[str, Tensor]) -> None:
    """Write a state dict as safetensors."""
    plain = {key: value.detach().cpu().contiguous() for key, value in weights.items()}
    _replace(path, lambda partial: save_file(plain, partial))


def load_weights(path: Path) -> dict[str, Tensor]:
    """Read a state dict from safetensors.

    Raises:
        TrainingError: the file is missing or no safetensors file.
    """
    try:
        weights: dict[str, Tensor] = load_file(path)
    except FileNotFoundError:
        raise TrainingError(f"{path}: no such weights") from None
    except (OSError, SafetensorError) as error:
        raise TrainingError(f"{path}: no safetensors file: {error}") from error
    return weights


def save_text(path: Path, text: str) -> None:
    """Write a text file."""
    _replace(path, lambda partial: partial.write_text(text, encoding="utf-8"))


def save_json(path: Path, document: Mapping[str, Any]) -> None:
    """Write indented JSON."""
    save_text(path, json.dumps(document, indent=2) + "\n")


def save_json_lines(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Write JSON objects, one a line."""
    save_text(path, "".join(json.dumps(record) + "\n" for record in records))


def load_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        TrainingError: the file is missing or malformed.
    """
    try:
        document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise TrainingError(f"{path}: no such file; is this a run folder?") from None
    except ValueError as error:
        raise TrainingError(f"{path}: {error}") from error
    return document


def _replace(path: Path, write: Callable[[Path], object]) -> None:
    partial = path.with_name(path.name + ".partial")
    try:
        write(partial)
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    except (OSError, SafetensorError, RuntimeError) as error:
        # What was there before stays, and no half of a file beside it.
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        raise TrainingError(f"{path}: cannot be written: {error}") from error
