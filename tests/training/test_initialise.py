import math

import pytest
import torch
from torch import nn

from training.models.initialise import SCHEMES, initialise
from training.models.registry import build_model


def made(scheme):
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(64, 128, 3), nn.BatchNorm2d(128), nn.Flatten(), nn.Linear(400, 300)
    )
    nn.init.constant_(net[1].weight, 2.0)
    initialise(net, scheme)
    return net.requires_grad_(False)


@pytest.mark.parametrize(
    ("scheme", "variance"),
    [
        ("xavier_uniform", lambda into, out: 2 / (into + out)),
        ("xavier_normal", lambda into, out: 2 / (into + out)),
        ("he_uniform", lambda into, out: 2 / into),
        ("he_normal", lambda into, out: 2 / into),
        ("lecun_normal", lambda into, out: 1 / into),
        ("truncated_normal", lambda into, out: 0.02**2),
    ],
)
def test_weights_have_the_variance_of_the_paper(scheme, variance):
    net = made(scheme)
    for layer, into, out in ((net[0], 64 * 9, 128 * 9), (net[3], 400, 300)):
        assert float(layer.weight.var()) == pytest.approx(variance(into, out), rel=0.05)
        assert layer.bias.eq(0).all()
        peak = float(layer.weight.abs().max() / layer.weight.std())
        assert (peak < math.sqrt(3) * 1.05) == scheme.endswith("uniform")
    assert net[1].weight.eq(2).all()


def test_orthogonal_rows_are_orthonormal():
    weight = made("orthogonal")[3].weight
    assert torch.allclose(weight @ weight.T, torch.eye(300), atol=1e-5)


def test_dirac_passes_its_input_on():
    net = made("dirac")
    images = torch.randn(2, 64, 6, 6)
    assert torch.allclose(net[0](images)[:, :64], images[:, :, 1:-1, 1:-1])


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        # Weights' deviation, biases (None: it has none).
        (
            "alexnet_2012",
            {
                "features.0": (0.01, 0),
                "features.4": (0.01, 1),
                "features.8": (0.01, 0),
                "features.10": (0.01, 1),
                "features.12": (0.01, 1),
                "hidden.2": (0.01, 1),
                "hidden.5": (0.01, 1),
                "head": (0.01, 0),
            },
        ),
        ("nin_cifar", {"features.0": (0.05, 0)}),
        # Glorot, of 147 values into 3,136, as the authors' successors have it.
        ("googlenet_2014", {"stem.0": (math.sqrt(2 / (147 + 3136)), 0.2)}),
        # He, by what goes out: 64 x 7 x 7 and 16 x 3 x 3.
        ("resnet18_v1", {"stem.0": (math.sqrt(2 / (64 * 49)), None)}),
        ("cifar_resnet20", {"stages.0.0.body.0": (math.sqrt(2 / (16 * 9)), None)}),
        # LeCun's even distribution up to 2.4 / fan-in.
        ("lenet5_1998", {"c5": (2.4 / 400 / math.sqrt(3), 0)}),
    ],
)
def test_networks_begin_as_published(name, layers):
    torch.manual_seed(0)
    net = build_model(f"seed:{name}", classes=10)
    for path, (deviation, bias) in layers.items():
        layer = net.get_submodule(path)
        assert float(layer.weight.detach().std()) == pytest.approx(deviation, rel=0.05), path
        assert (layer.bias is None) == (bias is None)
        assert bias is None or layer.bias.eq(bias).all(), path


def test_every_scheme_is_tested():
    assert len(SCHEMES) == 8
