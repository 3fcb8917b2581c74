"""The names of the classes of a model, read from a file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from service.bundle.manifest import Group, Label
from training.errors import TrainingError


def read_labels(path: Path) -> tuple[Label, ...]:
    """Returns the labels in `path`, in index order.

    A `.json` file holds a list of names, or of objects with `name` and, if wanted, `id` (or `wnid`)
    and `index`. Any other file holds one name a line.

    Raises:
        TrainingError: The file cannot be read, or is not such a list.
    """
    try:
        # With the mark that editors of Windows put first; a name may hold any space but a new line.
        text = path.read_text(encoding="utf-8-sig")
        entries = json.loads(text) if path.suffix == ".json" else text.strip().split("\n")
    except OSError as error:
        raise TrainingError(f"{path}: {error.strerror}") from error
    except ValueError as error:
        raise TrainingError(f"{path}: {error}") from error
    if not isinstance(entries, list) or len(entries) < 2:
        raise TrainingError(f"{path}: needs a list of two labels or more")
    return tuple(_label(entry, index, path) for index, entry in enumerate(entries))


def read_hierarchy(
    path: Path, labels: tuple[Label, ...]
) -> tuple[tuple[Label, ...], tuple[Group, ...]]:
    """Returns the labels with their parents, and the groups that those are, parents first.

    The file is a JSON object from child to parent. A child is the name or the id of a class (so
    WordNet ids will do), or a group; every parent is a group. A class may have no parent.

    Raises:
        TrainingError: The file is not such an object, names no class, or a group is its own
            ancestor.
    """
    try:
        parents = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise TrainingError(f"{path}: {error.strerror}") from error
    except ValueError as error:
        raise TrainingError(f"{path}: {error}") from error
    if not isinstance(parents, dict) or not all(isinstance(one, str) for one in parents.values()):
        raise TrainingError(f"{path}: needs an object from child to parent")
    classes = {name for label in labels for name in (label.name, label.id) if name is not None}
    if unknown := sorted(parents.keys() - classes - set(parents.values())):
        raise TrainingError(f"{path}: {unknown[0]!r} is neither a class nor a parent")
    if doubtful := sorted(classes & set(parents.values())):
        raise TrainingError(f"{path}: {doubtful[0]!r} is a class and cannot be a parent")
    places: dict[str, int] = {}
    for name in parents.values():
        _place(name, parents, places, path)
    groups = tuple(Group(name=name, parent=places.get(parents.get(name, ""))) for name in places)
    return tuple(
        label.model_copy(update={"parent": places.get(_parent(label, parents))}) for label in labels
    ), groups


def _parent(label: Label, parents: Mapping[str, str]) -> str:
    by_name = parents.get(label.name, "")
    return by_name if label.id is None else parents.get(label.id, by_name)


def _place(name: str, parents: Mapping[str, str], places: dict[str, int], path: Path) -> None:
    """Gives a group its place, after those of its ancestors."""
    line = [name]
    while (parent := parents.get(line[-1])) is not None:
        if parent in line:
            raise TrainingError(f"{path}: {parent!r} is its own ancestor")
        line.append(parent)
    for one in reversed(line):
        places.setdefault(one, len(places))


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
