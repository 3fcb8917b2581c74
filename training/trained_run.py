"""A run read back from its folder, for evaluation or export."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import nn

from training.checkpoint import load_json, load_weights
from training.config import Recipe, load_recipe
from training.errors import TrainingError
from training.network import build_network


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainedRun:
    """A run read back.

    Attributes:
        recipe: resolved.
        net: float32, in evaluation mode; normalised [N, 3, H, W] -> logits [N, C]. The means and
            deviations are `recipe.input.normalisation`; `models.normalise.Normalise` applies them.
        class_names: one an output.
        facts: what `run.json` holds: class_names, data, hardware, precision, libraries.
    """

    recipe: Recipe
    net: nn.Module
    class_names: tuple[str, ...]
    facts: Mapping[str, Any]


def load_run(run_dir: Path, *, checkpoint: Literal["last", "best"] = "last") -> TrainedRun:
    """Read a run back for evaluation or export, on the CPU.

    Raises:
        TrainingError: it is no run folder, or the run has not reached its first checkpoint.
    """
    facts = load_json(run_dir / "run.json")
    recipe = load_recipe(run_dir / "recipe.json")
    class_names = tuple(facts["class_names"])
    net = build_network(recipe.model, classes=len(class_names), is_trained=True)
    weights = load_weights(run_dir / f"{checkpoint}.safetensors")
    try:
        net.load_state_dict(weights)
    except RuntimeError as error:
        raise TrainingError(f"{run_dir}: {str(error).splitlines()[0]}") from error
    return TrainedRun(recipe=recipe, net=net.eval(), class_names=class_names, facts=facts)
