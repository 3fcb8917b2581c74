import json
from pathlib import Path

import torch
from click.testing import CliRunner
from torch import nn

from training.cli import activations
from training.models.initialise import initialise
from training.models.registry import build_model
from training.probe import ReluWatch, describe_probe, probe_layers


def deep(scheme=None):
    torch.manual_seed(0)
    layers = [part for _ in range(8) for part in (nn.Linear(256, 256), nn.ReLU())]
    net = nn.Sequential(*layers)
    initialise(net, scheme)
    return net


def variances(net):
    found = probe_layers(net, torch.randn(512, 256))
    return [one.variance for one in found if one.kind == "Linear"]


def test_he_keeps_the_variance_through_relus_and_a_small_gaussian_loses_it():
    he, small = variances(deep("he_normal")), variances(deep("truncated_normal"))
    assert 0.4 < he[-1] / he[0] < 2.5
    assert small[-1] / small[0] < 1e-4


def test_dead_relus_are_those_that_never_fire():
    net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU())
    with torch.no_grad():
        net[0].bias.fill_(0.0)
        net[0].bias[:3] = -100.0
    conv, relu = probe_layers(net, torch.randn(16, 3, 8, 8))
    assert (conv.name, conv.kind, conv.dead_share) == ("0", "Conv2d", None)
    assert relu.dead_share == 3 / 8
    assert "37.5%" in describe_probe((conv, relu))


def test_relus_that_are_called_without_a_module_are_probed_too():
    net = build_model("seed:cifar_resnet20", classes=3)
    found = probe_layers(net, torch.randn(4, 3, 16, 16))
    named = [one.name for one in found if one.kind == "ReLU"]
    # The stem, and in each of nine blocks the one inside and the one behind the sum.
    assert len(named) == 19
    assert named[:3] == ["stem.2", "stages.0.0.body.2", "stages.0.0"]
    assert all(one.dead_share is not None for one in found if one.kind == "ReLU")
    with ReluWatch() as watch, torch.no_grad():
        nn.ReLU6()(torch.tensor([[1.0, -1.0], [8.0, -2.0]]))
    assert watch.dead_share == 0.5


def test_the_network_is_left_as_it_was():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5)).train()
    net[1].eval()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    probe_layers(net, torch.randn(4, 3, 8, 8) + 5)
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())
    assert [one.training for one in net] == [True, False, True, True]
    assert all(not one._forward_hooks for one in net.modules())


def test_the_command_shows_how_a_recipe_begins():
    digits = Path(__file__).parents[2] / "training" / "recipes" / "digits-lenet5.toml"
    overrides = ("model.architecture=timm:test_resnet", "train.cpu_threads=1")
    sets = [part for one in overrides for part in ("--set", one)]
    done = CliRunner().invoke(activations, [str(digits), *sets, "--json"])
    assert done.exit_code == 0, done.output
    layers = json.loads(done.stdout)
    assert layers[0]["kind"] == "Conv2d"
    assert any(one["dead_share"] is not None for one in layers)
    table = CliRunner().invoke(activations, [str(digits), *sets]).stdout
    assert len(table.splitlines()) == len(layers) + 1
