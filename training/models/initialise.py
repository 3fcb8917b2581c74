"""Initial weights as the papers give them, for whole networks."""

from torch import nn


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


def _fill_bias(layer: nn.Conv2d | nn.Linear, value: float) -> None:
    if layer.bias is not None:
        nn.init.constant_(layer.bias, value)
