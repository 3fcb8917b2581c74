"""What to change in a recipe, each piece with the measured fact that it rests on."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from training.config import OptimRecipe, Recipe
from training.diagnose import Finding, diagnose
from training.learning_curves import Curves
from training.models.catalogue import ARCHITECTURES

# A rate that is wrong is wrong by more than the next try should miss.
_RATE_STEP = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Advice:
    """One thing to change.

    Attributes:
        topic: in a few words.
        fact: what was measured, in numbers.
        advice: what to do about it.
        settings: the same as `key=value` of the recipe; none where a person has to look.
    """

    topic: str
    fact: str
    advice: str
    settings: tuple[str, ...] = ()


def advise_by_curves(recipe: Recipe, curves: Curves) -> tuple[Advice, ...]:
    """Return what the curves of a run of `recipe` ask for; nothing if they look as they should."""
    return tuple(
        Advice(
            topic=finding.name,
            fact=finding.evidence,
            advice=finding.advice,
            settings=_settings_against(finding, recipe, curves),
        )
        for finding in diagnose(curves)
    )


def _settings_against(finding: Finding, recipe: Recipe, curves: Curves) -> tuple[str, ...]:
    ways: dict[str, Callable[[], Iterable[str]]] = {
        "learning rate too high": lambda: [f"optim.lr={recipe.optim.lr / _RATE_STEP:.3g}"],
        "learning rate too low": lambda: [f"optim.lr={recipe.optim.lr * _RATE_STEP:.3g}"],
        "dead ReLUs": lambda: _revive(recipe),
        "needs longer": lambda: [f"train.epochs={2 * recipe.train.epochs:g}"],
        "overfitting": lambda: _regularise(recipe, curves),
        "underfitting": lambda: _enlarge(recipe),
    }
    return tuple(ways[finding.name]()) if finding.name in ways else ()


def _revive(recipe: Recipe) -> Iterable[str]:
    yield f"optim.lr={recipe.optim.lr / _RATE_STEP:.3g}"
    if not recipe.model.has_weights:
        yield 'model.initialisation="he_normal"'


def _regularise(recipe: Recipe, curves: Curves) -> Iterable[str]:
    """What a recipe does not do yet; flips are left to who knows whether they mean the same."""
    crop = min(recipe.input.preprocess.crop.height, recipe.input.preprocess.crop.width)
    if recipe.data.loading == "memory" and recipe.augment.translate_px == 0:
        yield f"augment.translate_px={max(1, crop // 16)}"
    if recipe.augment.rotate_degrees == 0:
        yield "augment.rotate_degrees=10"
    if recipe.optim.weight_decay == 0:
        yield f"optim.weight_decay={_usual_decay(recipe.optim)}"
    if recipe.train.label_smoothing == 0:
        yield "train.label_smoothing=0.1"
    if recipe.train.early_stop_epochs is None:
        yield 'train.best_by="loss"'
        yield f"train.early_stop_epochs={max(3, curves.epochs // 5)}"


def _usual_decay(optim: OptimRecipe) -> float:
    # AdamW's decay is not multiplied with the gradient's scale, so it is larger.
    return 0.05 if optim.name == "adamw" else 0.0005


def _enlarge(recipe: Recipe) -> Iterable[str]:
    if recipe.train.label_smoothing:
        yield "train.label_smoothing=0.0"
    if recipe.model.dropout:
        yield "model.dropout=0.0"
    if recipe.augment.mixup_alpha or recipe.augment.cutmix_alpha:
        yield "augment.mixup_alpha=0.0"
        yield "augment.cutmix_alpha=0.0"
    larger = next_larger(recipe.model.architecture)
    if larger is not None and not recipe.model.options and not recipe.model.weights:
        yield f'model.architecture="{larger}"'


def next_larger(architecture: str) -> str | None:
    """Return the network of the same family that takes the least more work; None for the largest.

    Also None for one that is not in the catalogue.
    """
    own = next((one for one in ARCHITECTURES if one.name == architecture), None)
    if own is None:
        return None
    more = [
        one
        for one in ARCHITECTURES
        if one.family == own.family
        and one.size == own.size
        and not one.options
        and one.parameters > own.parameters
        and one.multiply_adds > own.multiply_adds
    ]
    return min(more, key=lambda one: one.multiply_adds).name if more else None
