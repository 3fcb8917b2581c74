"""Networks by name: `seed:<name>` (ours), `torchvision:<name>`, `timm:<name>`.

A built network maps float32 normalised images [N, 3, H, W] to logits [N, C]. Nearly all of them are
also an `EmbeddingModel`.
"""

from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

import timm
import torchvision
from torch import Tensor, nn

from training.errors import TrainingError
from training.models.airbench import Airbench
from training.models.lenet import LeNet5
from training.models.squeezenet import SqueezeNet11
from training.models.with_head import split_head

Option = int | float | str | bool

SEED_MODELS: Mapping[str, Callable[..., nn.Module]] = {
    "airbench": Airbench,
    "lenet5": LeNet5,
    "squeezenet1_1": SqueezeNet11,
}
# Both would warn that their initialisation is about to change, and return a tuple while training.
_TORCHVISION_OPTIONS: Mapping[str, Mapping[str, Option]] = {
    "googlenet": {"aux_logits": False, "init_weights": True},
    "inception_v3": {"aux_logits": False, "init_weights": True},
}


@runtime_checkable
class EmbeddingModel(Protocol):
    """A network that also gives the features that its classifier reads."""

    def forward_with_embedding(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits [N, C] and the embedding [N, D], in one pass."""


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
        raise TrainingError(f"{architecture}: expected one of {', '.join(_BUILDERS)} and a name")
    if weights is not None and is_pretrained:
        raise TrainingError(f"{architecture}: give weights or ask for the hub's, not both")
    try:
        net = builder(name, classes, is_pretrained, {} if options is None else options)
    except TypeError as error:
        raise TrainingError(f"{architecture}: {error}") from error
    if weights is not None:
        _load_exactly(net, weights, architecture)
    return _with_embedding(net)


def _build_seed(
    name: str, classes: int, is_pretrained: bool, options: Mapping[str, Option]
) -> nn.Module:
    if name not in SEED_MODELS:
        raise TrainingError(f"seed:{name}: unknown, there are {', '.join(SEED_MODELS)}")
    if is_pretrained:
        raise TrainingError(f"seed:{name}: no hub has weights of it; give a file")
    return SEED_MODELS[name](classes, **options)


def _build_torchvision(
    name: str, classes: int, is_pretrained: bool, options: Mapping[str, Option]
) -> nn.Module:
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
    _replace_head(net, classes)
    return net


def _build_timm(
    name: str, classes: int, is_pretrained: bool, options: Mapping[str, Option]
) -> nn.Module:
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


def _replace_head(net: nn.Module, classes: int) -> None:
    found = _last_linear(net)
    if found is None:
        raise TrainingError(
            f"{type(net).__name__}: has no linear classifier that could be replaced"
        )
    path, head = found
    if head.out_features == classes:
        return
    fresh = nn.Linear(head.in_features, classes)
    # Small weights start every class at the same probability: the first loss is ln C.
    nn.init.normal_(fresh.weight, std=0.01)
    nn.init.zeros_(fresh.bias)
    net.set_submodule(path, fresh)


def _with_embedding(net: nn.Module) -> nn.Module:
    if isinstance(net, EmbeddingModel):
        return net
    found = _last_linear(net)
    return net if found is None else split_head(net, found[0])
