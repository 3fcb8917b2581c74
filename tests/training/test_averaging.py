import pytest
import torch
from torch import nn

from training.averaging import WeightAverage
from training.config import AverageRecipe


def net_of(value):
    net = nn.Sequential(nn.Linear(1, 1, bias=False), nn.BatchNorm1d(1))
    nn.init.constant_(net[0].weight, value)
    return net


def set_weight(net, value):
    nn.init.constant_(net[0].weight, value)


def test_an_ema_trails_the_network_and_replaces_it_at_the_end():
    net = net_of(0.0)
    average = WeightAverage(AverageRecipe(kind="ema", decay=0.5), net, total_steps=3)
    expected = 0.0
    for step in (1, 2, 3):
        set_weight(net, float(step))
        average.update(net, step)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * step
    assert float(net[0].weight.detach()) == 3.0
    assert float(average.evaluated_state(net)["0.weight"]) == pytest.approx(expected)
    average.finish(net)
    assert float(net[0].weight.detach()) == pytest.approx(expected)


def test_lookahead_pulls_the_network_back_every_few_steps():
    net = net_of(0.0)
    recipe = AverageRecipe(kind="lookahead", decay=0.8, every_steps=2)
    average = WeightAverage(recipe, net, total_steps=4)
    set_weight(net, 1.0)
    average.update(net, 1)
    assert float(net[0].weight.detach()) == 1.0
    average.update(net, 2)
    pulled = 1 - 0.8 * 0.5**3
    assert float(net[0].weight.detach()) == pytest.approx(pulled)
    assert float(average.evaluated_state(net)["0.weight"]) == pytest.approx(pulled)
    set_weight(net, 5.0)
    average.update(net, 3)
    average.finish(net)
    assert float(net[0].weight.detach()) == pytest.approx(pulled)


def test_batch_statistics_are_averaged_and_counters_left_alone():
    net = net_of(0.0)
    average = WeightAverage(AverageRecipe(kind="ema"), net, total_steps=9)
    assert set(average.slow) == {
        "0.weight",
        "1.weight",
        "1.bias",
        "1.running_mean",
        "1.running_var",
    }
    net[1].num_batches_tracked += 7
    average.finish(net)
    assert int(net[1].num_batches_tracked) == 7


def test_no_average_changes_nothing():
    net = net_of(2.0)
    average = WeightAverage(AverageRecipe(), net, total_steps=2)
    average.update(net, 1)
    average.finish(net)
    assert float(net[0].weight.detach()) == 2.0
    assert torch.equal(average.evaluated_state(net)["0.weight"], net[0].weight)


def test_swa_is_the_plain_mean_of_the_late_networks():
    net = torch.nn.Linear(1, 1, bias=False)
    average = WeightAverage(AverageRecipe(kind="swa", every_steps=2, start_fraction=0.5), net, 12)
    for step in range(1, 13):
        with torch.no_grad():
            net.weight.fill_(float(step))
        average.update(net, step)
    assert float(average.evaluated_state(net)["weight"]) == 12
    average.finish(net)
    assert float(net.weight.detach()) == pytest.approx((8 + 10 + 12) / 3)


def test_swa_that_never_began_leaves_the_network():
    net = torch.nn.Linear(1, 1, bias=False)
    average = WeightAverage(AverageRecipe(kind="swa", every_steps=9), net, 4)
    with torch.no_grad():
        net.weight.fill_(3.0)
    average.update(net, 4)
    average.finish(net)
    assert float(net.weight.detach()) == 3
