"""Initial weights as the papers give them, for whole networks."""

from collections.abc import Callable, Mapping
from functools import partial

from torch import Tensor, nn


def he_normal(net: nn.Module) -> None:
    """Variance 2 / fan-out, which keeps gradients through ReLUs level (arXiv 1502.01852)."""
    for layer in net.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            _fill_bias(layer, 0.0)
        elif isinstance(layer, nn.Linear):
            nn.init.kaiming_normal_(layer.weight, mode="fan_in", nonlinearity="linear")
            _fill_bias(layer, 0.0)


def gaussian(net: nn.Module, std: float, bias: float = 0.0) -> None:
    """Zero mean and the same deviation everywhere, as it was done before 2013."""
    for layer in net.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.normal_(layer.weight, std=std)
            _fill_bias(layer, bias)


def xavier_uniform(net: nn.Module, bias: float = 0.0) -> None:
    """Variance 2 / (fan-in + fan-out) (Glorot and Bengio, AISTATS 2010)."""
    for layer in net.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            _fill_bias(layer, bias)


def initialise(net: nn.Module, scheme: str) -> None:
    """Draw the weights of all convolutions and linear layers anew; biases become 0.

    Normalisation layers keep theirs. A `scheme` is a key of `SCHEMES`.
    """
    draw = SCHEMES[scheme]
    for layer in net.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            draw(layer.weight)
            _fill_bias(layer, 0.0)


def _dirac(weight: Tensor) -> None:
    # A convolution that passes its input on; a linear layer has no such thing but the identity.
    if weight.ndim == 4:
        nn.init.dirac_(weight)
    else:
        nn.init.eye_(weight)


# LeCun (1998): variance 1 / fan-in. Saxe et al. (arXiv 1312.6120) for orthogonal.
SCHEMES: Mapping[str, Callable[[Tensor], object]] = {
    "xavier_uniform": nn.init.xavier_uniform_,
    "xavier_normal": nn.init.xavier_normal_,
    "he_uniform": partial(nn.init.kaiming_uniform_, nonlinearity="relu"),
    "he_normal": partial(nn.init.kaiming_normal_, nonlinearity="relu"),
    "lecun_normal": partial(nn.init.kaiming_normal_, nonlinearity="linear"),
    "truncated_normal": partial(nn.init.trunc_normal_, std=0.02),
    "orthogonal": nn.init.orthogonal_,
    "dirac": _dirac,
}


def _fill_bias(layer: nn.Conv2d | nn.Linear, value: float) -> None:
    if layer.bias is not None:
        nn.init.constant_(layer.bias, value)
