"""The names of the classes of a model, read from a file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from service.bundle.manifest import Label
from training.errors import TrainingError


def read_labels(path: Path) -> tuple[Label, ...]:
    """Returns the labels in `path`, in index order.

    A `.json` file holds a list of names, or of objects with `name` and, if wanted, `id` (or `wnid`)
    and `index`. Any other file holds one name a line.

    Raises:
        TrainingError: The file cannot be read, or is not such a list.
    """
    try:
        text = path.read_text(encoding="utf-8")
        entries = json.loads(text) if path.suffix == ".json" else text.strip().splitlines()
    except OSError as error:
        raise TrainingError(f"{path}: {error.strerror}") from error
    except ValueError as error:
        raise TrainingError(f"{path}: {error}") from error
    if not isinstance(entries, list) or len(entries) < 2:
        raise TrainingError(f"{path}: needs a list of two labels or more")
    return tuple(_label(entry, index, path) for index, entry in enumerate(entries))


def generate_labels(classes: int) -> tuple[Label, ...]:
    """Returns `class 0`, `class 1`, ... for models that know no names."""
    return tuple(Label(name=f"class {index}") for index in range(classes))


def _label(entry: Any, index: int, path: Path) -> Label:
    where = f"{path}: label {index}"
    try:
        if not isinstance(entry, Mapping):
            return Label(name=entry.strip() if isinstance(entry, str) else entry)
        if entry.get("index", index) != index:
            raise TrainingError(f"{where} says that it is number {entry['index']}")
        return Label(name=entry["name"], id=entry.get("id", entry.get("wnid")))
    except KeyError:
        raise TrainingError(f"{where} has no name") from None
    except ValidationError as error:
        raise TrainingError(f"{where}: {error.errors()[0]['msg']}") from error
