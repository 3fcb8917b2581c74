"""The recipe: everything that decides what a training run yields, read from one TOML file.

    recipe = load_recipe(Path("training/recipes/digits-lenet5.toml"), ["train.epochs=2"])

Unknown keys and values of the wrong type are refused. `dump_recipe` writes the resolved recipe,
every default spelled out, as the JSON that lies beside the checkpoint and travels in the bundle.
"""

import json
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from service.bundle.manifest import Normalisation, Preprocess
from training.errors import TrainingError

PositiveInt = Annotated[int, Field(gt=0)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, le=1)]

_STRICT = ConfigDict(extra="forbid", strict=True)


@dataclass(frozen=True, slots=True, kw_only=True, config=_STRICT)
class DataRecipe:
    """Where the images and labels come from. Relative paths count from the working directory."""

    # parquet: columns `image {bytes}` and `label`; folder: a sub-folder a class; digits: built in.
    source: Literal["parquet", "folder", "digits"]
    train: Path | None = None
    # Without it, `validation_fraction` of the training images is kept aside, stratified by class.
    validation: Path | None = None
    # JSON list of names, or of objects with a `name`; needed for parquet, whose labels are numbers.
    classes: Path | None = None
    validation_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.2
    # Not the training seed: every seed of a recipe is to be measured on the same images.
    split_seed: int = 0
    # memory: decoded once to uint8 [N, H, W, 3], for small images. stream: decoded each time they
    # are shown, cut at random out of the full picture.
    loading: Literal["memory", "stream"] = "memory"
    # Decode worker processes when streaming; 0 decodes between the steps.
    decode_workers: Annotated[int, Field(ge=0)] = 2
    # By whose leave the images are used; copied into the model card.
    licence: str = "unknown"


@dataclass(frozen=True, slots=True, kw_only=True, config=_STRICT)
class InputRecipe:
    """What the network is shown: the served preprocessing, copied into the bundle as it stands."""

    preprocess: Preprocess
    # Of pixels scaled to [0, 1]; the exported graph does the same sum.
    normalisation: Normalisation


@dataclass(frozen=True, slots=True, kw_only=True, config=_STRICT)
class ModelRecipe:
    """Which network, as `seed:<name>`, `torchvision:<name>` or `timm:<name>`."""

    architecture: str
    # Start from the hub's weights; the classifier is made anew for our classes.
    pretrained: bool = False
    # Keyword arguments of the network's constructor.
    options: Mapping[str, int | float | str | bool] = Field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True, config=_STRICT)
class AugmentRecipe:
    """How a training image is changed before the network sees it."""

    # alternating: the first epoch flips a random half, each later one flips what the last did not.
    flip: Literal["none", "random", "alternating"] = "none"
    # Largest shift in each direction, in pixels. Only with data.loading = "memory".
    translate_px: Annotated[int, Field(ge=0)] = 0
    translate_fill: Literal["reflect", "zero"] = "reflect"
    # Side of a square, somewhere inside each image, that is painted in the mean colour (arXiv
    # 1708.04552); 0 is off. Only with data.loading = "memory".
    cutout_px: Annotated[int, Field(ge=0)] = 0
    # The three below only with data.loading = "stream". Least share of the area that a random cut
    # keeps: 0.35 when fine-tuning (0.08 is for hundreds of epochs).
    crop_min_area: Annotated[float, Field(gt=0, le=1)] = 0.35
    is_trivial_augment_on: bool = False
    erase_probability: Fraction = 0.0


@dataclass(frozen=True, slots=True, kw_only=True, config=_STRICT)
class OptimRecipe:
    """The optimiser and its learning rate over time (for a loss averaged over the batch)."""

    name: Literal["sgd", "adamw"] = "sgd"
    lr: Positive
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    is_nesterov: bool = True
    weight_decay: NonNegative = 0.0
    # Biases and normalisation weights are usually left out of the decay.
    is_decay_on_biases: bool = False
    # Multiplies the learning rate of batch normalisation's biases and divides their weight decay.
    norm_bias_lr_scale: Positive = 1.0
    schedule: Literal["constant", "linear", "cosine"] = "cosine"
    # Share of all steps spent rising linearly from start_factor x lr to lr ...
    warmup_fraction: Fraction = 0.05
    start_factor: Fraction = 0.0
    # ... and the share of lr that the fall ends at.
    end_factor: Fraction = 0.0
    clip_grad_norm: Positive | None = None


@dataclass(frozen=True, slots=True, kw_only=True, config=_STRICT)
class AverageRecipe:
    """Averaging of the weights along the way."""

    # ema: a shadow copy is evaluated and exported. lookahead: the net is pulled back to it.
    kind: Literal["none", "ema", "lookahead"] = "none"
    # ema: per step, warmed up. lookahead: per pull, reached with the cube of the progress.
    decay: Annotated[float, Field(ge=0, lt=1)] = 0.999
    every_steps: PositiveInt = 1


@dataclass(frozen=True, slots=True, kw_only=True, config=_STRICT)
class TrainRecipe:
    """The length of the run and how a step is computed."""

    epochs: Positive
    batch_size: PositiveInt
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    # auto: bf16 where the processor has instructions for it, else fp32.
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    # Parameter name -> epochs it is trained for; afterwards it stays as it is.
    freeze_after_epochs: Mapping[str, NonNegative] = Field(default_factory=dict)
    checkpoint_every_epochs: PositiveInt = 1
    # Without it PyTorch takes every core. A small net is faster with 1, as more threads mostly wait
    # for each other. Another number rounds sums in another order.
    cpu_threads: PositiveInt | None = None


@dataclass(frozen=True, slots=True, kw_only=True, config=_STRICT)
class Recipe:
    """One reproducible training run."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    data: DataRecipe
    input: InputRecipe
    model: ModelRecipe
    augment: AugmentRecipe = Field(default_factory=AugmentRecipe)
    optim: OptimRecipe
    average: AverageRecipe = Field(default_factory=AverageRecipe)
    train: TrainRecipe


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
        _apply_override(document, override)
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
    _check_settings_have_effect(recipe, origin)
    return recipe


def recipe_to_dict(recipe: Recipe) -> dict[str, Any]:
    """Return the resolved recipe, every default spelled out, as plain JSON values."""
    plain: dict[str, Any] = _RECIPE.dump_python(recipe, mode="json")
    return plain


def dump_recipe(recipe: Recipe) -> str:
    """Return the resolved recipe as indented JSON, which `load_recipe` reads back unchanged."""
    return json.dumps(recipe_to_dict(recipe), indent=2) + "\n"


def _apply_override(document: dict[str, Any], override: str) -> None:
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


def _check_settings_have_effect(recipe: Recipe, origin: str) -> None:
    """Refuse what the run would pass over in silence."""
    data, augment, plain = recipe.data, recipe.augment, AugmentRecipe()
    other = {
        "memory": ("crop_min_area", "is_trivial_augment_on", "erase_probability"),
        "stream": ("translate_px", "translate_fill", "cutout_px"),
    }
    for key in other[data.loading]:
        if getattr(augment, key) != getattr(plain, key):
            raise TrainingError(
                f'{origin}: augment.{key} does nothing with data.loading = "{data.loading}"'
            )
    if data.loading == "stream" and augment.flip == "alternating":
        raise TrainingError(f'{origin}: augment.flip = "alternating" needs data.loading = "memory"')
    needed = {"parquet": ("train", "classes"), "folder": ("train",), "digits": ()}
    useless = {"parquet": (), "folder": ("classes",), "digits": ("train", "validation", "classes")}
    for key in needed[data.source]:
        if getattr(data, key) is None:
            raise TrainingError(f'{origin}: data.source = "{data.source}" needs data.{key}')
    for key in useless[data.source]:
        if getattr(data, key) is not None:
            raise TrainingError(
                f'{origin}: data.{key} does nothing with data.source = "{data.source}"'
            )


def _first_problem(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    where = ".".join(str(part) for part in first["loc"])
    if first["type"] in {"unexpected_keyword_argument", "extra_forbidden"}:
        return f"{where}: unknown key"
    if first["type"] in {"missing", "missing_argument", "missing_keyword_only_argument"}:
        return f"{where}: missing"
    return f"{where}: {first['msg']} (got {first['input']!r})"
