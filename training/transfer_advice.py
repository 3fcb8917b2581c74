"""Which scheme of transfer learning suits the data: the four quadrants of amount and similarity.

similar to what the weights know      unlike it
few images    a classifier on frozen features       train the later layers only
many images   fine-tune all of it, gently           fine-tune all of it, as hard as from scratch
"""

from __future__ import annotations

import json
from collections.abc import Iterator

from torch import nn

from training.advice import Advice
from training.config import Recipe
from training.data_advice import FEW_A_CLASS, DataFacts
from training.transfer import CLASSIFIERS, LAST, TransferProbe

_GENTLE_DECAY = 0.75


def advise_by_transfer(
    recipe: Recipe, facts: DataFacts, probe: TransferProbe, net: nn.Module
) -> Advice:
    """Return the scheme that the number of images and the probes of `net` ask for."""
    few = facts.images_a_class < FEW_A_CLASS
    amount = f"{facts.images_a_class:g} training images a class"
    depths = ", ".join(f"{one.layer} {one.top1:.1%}" for one in probe.depths)
    fact = (
        f"{amount}; linear probes of the frozen features: {depths}; untrained "
        f"{probe.untrained.top1:.1%} ({probe.images} images, {probe.validation_images} to measure)"
    )
    if not probe.is_useful:
        return Advice(
            topic="transfer: no use",
            fact=fact,
            advice="at no depth do these weights tell the classes apart better than random ones: "
            "look for others that learnt from images like yours, or train from scratch",
        )
    if probe.is_similar and few:
        return Advice(
            topic="transfer: frozen features",
            fact=fact,
            advice="train a classifier alone on the features, which are computed once; the few "
            "images would be learnt by heart by more",
            settings=tuple(_freeze_all(recipe, net)),
        )
    if probe.is_similar:
        return Advice(
            topic="transfer: fine-tune",
            fact=fact,
            advice="let the new classifier learn alone for an epoch, then fine-tune everything, "
            "the earlier the layer the more gently",
            settings=(_resting(_bodies(net), 1), f"optim.layer_decay={_GENTLE_DECAY}"),
        )
    if few:
        resting = _up_to(net, probe.best.layer)
        return Advice(
            topic="transfer: later layers",
            fact=fact,
            advice=f"what {probe.best.layer} sees serves these images best: keep the layers up to "
            "it as they are and train those behind it",
            settings=(_resting(resting, recipe.train.epochs),),
        )
    return Advice(
        topic="transfer: everything",
        fact=fact,
        advice="take the weights as a start only: train all layers alike, as long as from scratch",
        settings=("train.unfreeze_after_epochs={}", "optim.layer_decay=1.0"),
    )


def _freeze_all(recipe: Recipe, net: nn.Module) -> Iterator[str]:
    if not isinstance(getattr(net, "head", None), nn.Linear):
        # Its features cannot be kept apart from its classifier.
        yield _resting(_bodies(net), recipe.train.epochs)
        return
    yield "augment={}"
    yield "train.unfreeze_after_epochs={}"
    yield "train.is_feature_cache_on=true"


def _resting(modules: list[str], epochs: float) -> str:
    pairs = ", ".join(f"{json.dumps(name)} = {epochs:g}" for name in modules)
    return f"train.unfreeze_after_epochs={{{pairs}}}"


def _bodies(net: nn.Module) -> list[str]:
    """Return the outermost modules with weights that are not the classifier."""
    return [
        name
        for name, module in net.named_children()
        if name not in CLASSIFIERS and any(True for _ in module.parameters())
    ]


def _up_to(net: nn.Module, layer: str) -> list[str]:
    """Return the outermost modules that are computed before `layer` ends, itself included."""
    if layer == LAST:
        return _bodies(net)
    found, parent = [], net
    parts = layer.split(".")
    for depth, part in enumerate(parts):
        for name, child in parent.named_children():
            if name == part:
                break
            if any(True for _ in child.parameters()):
                found.append(".".join([*parts[:depth], name]))
        parent = parent.get_submodule(part)
    if any(True for _ in parent.parameters()):
        found.append(layer)
    return found
