"""The recipe: everything that decides what a training run yields, read from one TOML file.

    recipe = load_recipe(Path("training/recipes/digits-lenet5.toml"), ["train.epochs=2"])

Unknown keys and values of the wrong type are refused. `dump_recipe` writes the resolved recipe,
every default spelled out, as the JSON that lies beside the checkpoint and travels in the bundle.
"""

import json
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from training.errors import TrainingError
from training.recipe import DataRecipe, InputRecipe, ModelRecipe, Recipe
from training.recipe_checks import check_settings_have_effect
from training.recipe_training import AugmentRecipe, AverageRecipe, OptimRecipe, TrainRecipe

__all__ = [
    "AugmentRecipe",
    "AverageRecipe",
    "DataRecipe",
    "InputRecipe",
    "ModelRecipe",
    "OptimRecipe",
    "Recipe",
    "TrainRecipe",
    "apply_override",
    "dump_recipe",
    "load_recipe",
    "recipe_from_dict",
    "recipe_to_dict",
]

_RECIPE: TypeAdapter[Recipe] = TypeAdapter(Recipe)


def load_recipe(path: Path, overrides: Iterable[str] = ()) -> Recipe:
    """Read a recipe from TOML (or from the JSON of a run), then apply `key.path=value` overrides.

    A value is read as TOML (`0.1`, `true`, `[1, 2]`, `"text"`); what is no TOML counts as text.

    Raises:
        TrainingError: the file is missing or unreadable, a key is unknown, a value does not fit.
    """
    try:
        text = path.read_text(encoding="utf-8")
        document = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except FileNotFoundError:
        raise TrainingError(f"{path}: no such recipe") from None
    except (OSError, ValueError) as error:
        raise TrainingError(f"{path}: {error}") from error
    for override in overrides:
        apply_override(document, override)
    return recipe_from_dict(document, origin=str(path))


def recipe_from_dict(document: Mapping[str, Any], *, origin: str = "recipe") -> Recipe:
    """Check a parsed document and return it as a recipe; `origin` opens the error message."""
    try:
        # Through JSON: only there do strict checks allow a list for a tuple, and text for a path.
        recipe = _RECIPE.validate_json(json.dumps(document))
    except TypeError as error:
        raise TrainingError(f"{origin}: {error}") from error
    except ValidationError as error:
        raise TrainingError(f"{origin}: {_first_problem(error)}") from error
    check_settings_have_effect(recipe, origin)
    return recipe


def recipe_to_dict(recipe: Recipe) -> dict[str, Any]:
    """Return the resolved recipe, every default spelled out, as plain JSON values."""
    plain: dict[str, Any] = _RECIPE.dump_python(recipe, mode="json")
    return plain


def dump_recipe(recipe: Recipe) -> str:
    """Return the resolved recipe as indented JSON, which `load_recipe` reads back unchanged."""
    return json.dumps(recipe_to_dict(recipe), indent=2) + "\n"


def apply_override(document: dict[str, Any], override: str) -> None:
    """Set `key.path=value` in a parsed document."""
    key, separator, text = override.partition("=")
    parts = key.strip().split(".")
    if not separator or not all(parts):
        raise TrainingError(f"--set {override}: expected key.path=value")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    table = document
    for part in parts[:-1]:
        table = table.setdefault(part, {})
        if not isinstance(table, dict):
            raise TrainingError(f"--set {override}: {part} is no table")
    table[parts[-1]] = value


def _first_problem(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    where = ".".join(str(part) for part in first["loc"])
    if first["type"] in {"unexpected_keyword_argument", "extra_forbidden"}:
        return f"{where}: unknown key"
    if first["type"] in {"missing", "missing_argument", "missing_keyword_only_argument"}:
        return f"{where}: missing"
    return f"{where}: {first['msg']} (got {first['input']!r})"
