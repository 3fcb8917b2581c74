"""Networks by name: `seed:<name>` (ours), `torchvision:<name>`, `timm:<name>`.

A built network maps float32 normalised images [N, 3, H, W] to logits [N, C]. Nearly all of them are
also an `EmbeddingModel`.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from training.errors import TrainingError
from training.models.auxiliary import WithAuxiliary
from training.models.classifier import EmbeddingModel
from training.models.ensemble import Ensemble, FeatureFusion
from training.models.seeds import SEED_MODELS
from training.models.with_head import split_head
from training.shapes_alone import compiler_unloaded

Option = int | float | str | bool

# Made of other networks, which are built here.
JOINED = ("ensemble", "feature_fusion")
# Both would warn that their initialisation is about to change. The option `aux_logits` brings their
# auxiliary classifiers.
_TORCHVISION_OPTIONS: Mapping[str, Mapping[str, Option]] = {
    "googlenet": {"aux_logits": False, "init_weights": True},
    "inception_v3": {"aux_logits": False, "init_weights": True},
}
# What their losses count: from arXiv 1409.4842, and from the authors' TensorFlow code.
_AUXILIARY_WEIGHTS = {"GoogLeNet": 0.3, "Inception3": 0.4}
_AUXILIARY_HEADS = ("aux1.fc2", "aux2.fc2", "AuxLogits.fc")


def build_model(
    architecture: str,
    *,
    classes: int,
    weights: Mapping[str, Tensor] | None = None,
    is_pretrained: bool = False,
    options: Mapping[str, Option] | None = None,
) -> nn.Module:
    """Build a network for `classes` classes, in training mode.

    Args:
        architecture: `provider:name`.
        classes: number of logits.
        weights: a state dict in the provider's own names, which must fit exactly.
        is_pretrained: download the provider's default weights; the classifier is made anew when its
            number of classes differs.
        options: keyword arguments of the network's constructor.

    Raises:
        TrainingError: the name or an option is unknown, the weights do not fit or cannot be had.
    """
    provider, separator, name = architecture.partition(":")
    builder = _BUILDERS.get(provider) if separator else None
    if builder is None:
        raise TrainingError(
            f"{architecture}: expected one of {', '.join(_BUILDERS)} and a name, as in "
            "seed:lenet5; `fivecrop arch list` names those worth knowing"
        )
    if weights is not None and is_pretrained:
        raise TrainingError(f"{architecture}: give weights or ask for the hub's, not both")
    try:
        net = builder(name, classes, is_pretrained, {} if options is None else options)
    except (TypeError, ValueError) as error:
        raise TrainingError(f"{architecture}: {error}") from error
    if weights is not None:
        _load_exactly(net, weights, architecture)
    return _with_embedding(net)


def _build_seed(
    name: str, classes: int, is_pretrained: bool, options: Mapping[str, Option]
) -> nn.Module:
    if name in JOINED:
        texts: dict[str, Any] = dict(options)
        return _build_joined(name, classes, is_pretrained, **texts)
    if name not in SEED_MODELS:
        close = difflib.get_close_matches(name, [*SEED_MODELS, *JOINED], n=3, cutoff=0)
        raise TrainingError(
            f"seed:{name}: unknown, close are {', '.join(close)}; `fivecrop arch list` has them all"
        )
    if is_pretrained:
        raise TrainingError(f"seed:{name}: no hub has weights of it")
    return SEED_MODELS[name](classes, **options)


def _build_joined(
    name: str,
    classes: int,
    is_pretrained: bool,
    *,
    members: str = "",
    weights: str = "",
    scales: str = "",
    mean: str = "probabilities",
    size: int = 96,
) -> nn.Module:
    """Build a net of several; `members`, `weights` and `scales` are separated by commas."""
    if not members:
        raise TrainingError(f"seed:{name}: needs the option members, names between commas")
    built = [
        build_model(
            member.strip(),
            classes=classes,
            is_pretrained=is_pretrained and not member.strip().startswith("seed:"),
        )
        for member in members.split(",")
    ]
    factors = [float(one) for one in scales.split(",")] if scales else None
    if name == "feature_fusion":
        return FeatureFusion(built, classes, size, factors)
    shares = [float(one) for one in weights.split(",")] if weights else None
    return Ensemble(built, shares, factors, mean)


def _build_torchvision(
    name: str, classes: int, is_pretrained: bool, options: Mapping[str, Option]
) -> nn.Module:
    with compiler_unloaded():
        import torchvision  # our own networks do without

    if name not in torchvision.models.list_models(module=torchvision.models):
        raise TrainingError(f"torchvision:{name}: torchvision has no such classifier")
    arguments: dict[str, Option] = {**_TORCHVISION_OPTIONS.get(name, {}), **options}
    if not is_pretrained:
        net: nn.Module = torchvision.models.get_model(name, num_classes=classes, **arguments)
        return net
    try:
        net = torchvision.models.get_model(name, weights="DEFAULT", **options)
    except OSError as error:
        raise TrainingError(f"torchvision:{name}: weights cannot be downloaded: {error}") from error
    _replace_last_head(net, classes)
    for path in _AUXILIARY_HEADS:
        if _has_layer(net, path):
            _replace_head(net, path, classes)
    return net


def _build_timm(
    name: str, classes: int, is_pretrained: bool, options: Mapping[str, Option]
) -> nn.Module:
    import timm  # takes seconds, and our own networks do without

    if not timm.is_model(name.partition(".")[0]):
        raise TrainingError(f"timm:{name}: timm has no such model")
    try:
        arguments: dict[str, Any] = {"num_classes": classes, **options}
        net: nn.Module = timm.create_model(name, pretrained=is_pretrained, **arguments)
    except (RuntimeError, OSError) as error:
        raise TrainingError(f"timm:{name}: {str(error).splitlines()[0]}") from error
    return net


_BUILDERS: Mapping[str, Callable[[str, int, bool, Mapping[str, Option]], nn.Module]] = {
    "seed": _build_seed,
    "torchvision": _build_torchvision,
    "timm": _build_timm,
}


def _load_exactly(net: nn.Module, weights: Mapping[str, Tensor], architecture: str) -> None:
    own = net.state_dict()
    # Old files lack this counter, which nothing reads.
    missing = [key for key in own.keys() - weights if not key.endswith("num_batches_tracked")]
    unknown = list(weights.keys() - own.keys())
    for problem, keys in (("lack", missing), ("have unknown", unknown)):
        if keys:
            listed = ", ".join(sorted(keys)[:3])
            raise TrainingError(
                f"{architecture}: the weights {problem} {listed} ({len(keys)} in all)"
            )
    for key in own.keys() & weights.keys():
        if own[key].shape != weights[key].shape:
            shapes = f"{tuple(weights[key].shape)}, the network {tuple(own[key].shape)}"
            raise TrainingError(f"{architecture}: the weights' {key} is {shapes}")
    net.load_state_dict(weights, strict=False)


def _last_linear(net: nn.Module) -> tuple[str, nn.Linear] | None:
    """Return path and layer of the classifier, if the last layer with weights is linear."""
    for path, module in reversed(list(net.named_modules())):
        if isinstance(module, nn.Linear):
            return path, module
        if isinstance(module, nn.Conv2d):
            return None
    return None


def _replace_last_head(net: nn.Module, classes: int) -> None:
    found = _last_linear(net)
    if found is None:
        raise TrainingError(
            f"{type(net).__name__}: has no linear classifier that could be replaced"
        )
    _replace_head(net, found[0], classes)


def _replace_head(net: nn.Module, path: str, classes: int) -> None:
    head = net.get_submodule(path)
    assert isinstance(head, nn.Linear)
    if head.out_features == classes:
        return
    fresh = nn.Linear(head.in_features, classes)
    # Small weights start every class at the same probability: the first loss is ln C.
    nn.init.normal_(fresh.weight, std=0.01)
    nn.init.zeros_(fresh.bias)
    net.set_submodule(path, fresh)


def _has_layer(net: nn.Module, path: str) -> bool:
    return any(name == path for name, _ in net.named_modules())


def _with_embedding(net: nn.Module) -> nn.Module:
    if isinstance(net, EmbeddingModel | Ensemble):
        return net
    found = _last_linear(net)
    if found is None:
        return net
    auxiliary_weight = _AUXILIARY_WEIGHTS.get(type(net).__name__)
    has_auxiliary = any(_has_layer(net, path) for path in _AUXILIARY_HEADS)
    parted = split_head(net, found[0])
    if auxiliary_weight is None or not has_auxiliary:
        return parted
    return WithAuxiliary(parted.backbone, parted.head, auxiliary_weight)
