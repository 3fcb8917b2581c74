import math

import pytest
import torch
from torch import nn

from training.config import OptimRecipe
from training.models.registry import build_model
from training.optim import (
    build_optimizer,
    layer_lr_scales,
    lr_factor,
    momentum_at,
    set_lr,
    set_momentum,
)

TRIANGLE = OptimRecipe(
    lr=2.0, schedule="linear", warmup_fraction=0.2, start_factor=0.1, end_factor=0.05
)


def net_with_norm():
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))


def test_the_learning_rate_rises_to_its_peak_and_falls_to_its_end():
    factors = [lr_factor(TRIANGLE, step, 100) for step in range(101)]
    assert factors[0] == pytest.approx(0.1)
    assert factors[10] == pytest.approx(0.55)
    assert factors[20] == pytest.approx(1.0)
    assert factors[60] == pytest.approx(0.525)
    assert factors[100] == pytest.approx(0.05)
    assert max(factors) == factors[20]


def test_cosine_is_half_way_down_at_half_time_and_constant_stays():
    cosine = OptimRecipe(lr=1.0, schedule="cosine", warmup_fraction=0.0)
    assert lr_factor(cosine, 50, 100) == pytest.approx(0.5)
    assert lr_factor(cosine, 0, 100) == 1.0
    constant = OptimRecipe(lr=1.0, schedule="constant", warmup_fraction=0.0)
    assert lr_factor(constant, 99, 100) == 1.0


def test_every_trainable_parameter_is_in_exactly_one_group():
    net = net_with_norm()
    net[1].weight.requires_grad_(False)
    optimizer = build_optimizer(TRIANGLE, net)
    grouped = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in net.parameters() if p.requires_grad)


def test_biases_and_norms_do_not_decay_unless_asked():
    net = net_with_norm()
    plain = build_optimizer(OptimRecipe(lr=1.0, weight_decay=0.1), net)
    decay = {id(p): group["weight_decay"] for group in plain.param_groups for p in group["params"]}
    assert decay[id(net[0].weight)] == decay[id(net[3].weight)] == 0.1
    assert decay[id(net[0].bias)] == decay[id(net[1].weight)] == decay[id(net[1].bias)] == 0


def test_scaled_norm_biases_shrink_at_the_rate_of_the_rest():
    recipe = OptimRecipe(
        lr=1.5, weight_decay=0.01, is_decay_on_biases=True, norm_bias_lr_scale=64.0
    )
    net = net_with_norm()
    optimizer = build_optimizer(recipe, net)
    norm = next(g for g in optimizer.param_groups if g["params"][0] is net[1].bias)
    assert norm["lr"] == 1.5 * 64
    assert {group["lr"] * group["weight_decay"] for group in optimizer.param_groups} == {0.015}


def test_set_lr_keeps_the_ratio_of_the_groups():
    recipe = OptimRecipe(lr=1.0, norm_bias_lr_scale=8.0)
    optimizer = build_optimizer(recipe, net_with_norm())
    set_lr(optimizer, 0.5)
    set_lr(optimizer, 0.25)
    assert sorted({group["lr"] for group in optimizer.param_groups}) == [0.25, 2.0]


def test_adamw_is_built_by_name():
    assert isinstance(
        build_optimizer(OptimRecipe(name="adamw", lr=1e-3), net_with_norm()), torch.optim.AdamW
    )


def test_rmsprop_takes_its_decay_momentum_and_eps():
    recipe = OptimRecipe(name="rmsprop", lr=0.1, rmsprop_decay=0.9, momentum=0.8, eps=1.0)
    optimizer = build_optimizer(recipe, net_with_norm())
    assert isinstance(optimizer, torch.optim.RMSprop)
    group = optimizer.param_groups[0]
    assert (group["alpha"], group["momentum"], group["eps"]) == (0.9, 0.8, 1.0)


@pytest.mark.parametrize("is_nesterov", [True, False])
def test_sgd_steps_with_momentum_that_looks_ahead_or_not(is_nesterov):
    weight = nn.Parameter(torch.zeros(1, 1))
    net = nn.Module()
    net.weight = weight
    recipe = OptimRecipe(lr=0.1, momentum=0.5, is_nesterov=is_nesterov, weight_decay=0)
    optimizer = build_optimizer(recipe, net)
    for _ in range(2):  # of a gradient that is always 1
        weight.grad = torch.ones_like(weight)
        optimizer.step()
    # Speeds 1 and 1.5; looking ahead, half the new speed comes on top of the gradient.
    expected = (1 + 0.5) + (1 + 0.75) if is_nesterov else 1 + 1.5
    assert float(weight.detach()) == pytest.approx(-0.1 * expected)


def test_adamw_takes_its_betas():
    recipe = OptimRecipe(name="adamw", lr=0.1, betas=(0.8, 0.95), eps=1e-6)
    group = build_optimizer(recipe, net_with_norm()).param_groups[0]
    assert (group["betas"], group["eps"]) == ((0.8, 0.95), 1e-6)


def test_the_step_schedule_falls_at_its_milestones():
    recipe = OptimRecipe(
        lr=1.0, schedule="step", warmup_fraction=0, milestones=(0.3, 0.6), step_factor=0.2
    )
    factors = [lr_factor(recipe, step, 10) for step in range(10)]
    assert factors == pytest.approx([1, 1, 1, 0.2, 0.2, 0.2, 0.04, 0.04, 0.04, 0.04])


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_one_cycle_is_that_of_pytorch_in_rate_and_momentum(name):
    total = 40
    recipe = OptimRecipe(
        name=name,
        lr=2.0,
        momentum=0.95,
        betas=(0.95, 0.999),
        schedule="one_cycle",
        warmup_fraction=0.3,
        start_factor=0.04,
        end_factor=0.0001,
        low_momentum=0.85,
    )
    ours, theirs = (build_optimizer(recipe, net_with_norm()) for _ in range(2))
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        theirs,
        max_lr=2.0,
        total_steps=total,
        pct_start=0.3,
        div_factor=25,
        final_div_factor=400,
        base_momentum=0.85,
        max_momentum=0.95,
    )
    for step in range(total):
        set_lr(ours, lr_factor(recipe, step, total))
        set_momentum(ours, momentum_at(recipe, step, total))
        for mine, reference in zip(ours.param_groups, theirs.param_groups, strict=True):
            assert mine["lr"] == pytest.approx(reference["lr"], rel=1e-6, abs=1e-9)
            key = "betas" if name == "adamw" else "momentum"
            assert mine[key] == pytest.approx(reference[key])
        theirs.step()
        if step < total - 1:
            schedule.step()


def test_without_low_momentum_it_is_left_alone():
    assert momentum_at(OptimRecipe(lr=1.0, schedule="one_cycle"), 3, 10) is None


@pytest.mark.parametrize(
    ("architecture", "first", "last"),
    [
        ("seed:lenet5", "c1.weight", "head.weight"),
        ("seed:cifar_resnet20", "stem.0.weight", "head.weight"),
        ("timm:test_resnet", "backbone.conv1.0.weight", "head.weight"),
        ("torchvision:resnet18", "backbone.conv1.weight", "head.weight"),
    ],
)
def test_layers_learn_the_slower_the_farther_they_are_from_the_head(architecture, first, last):
    net = build_model(architecture, classes=3)
    names = {id(parameter): name for name, parameter in net.named_parameters()}
    recipe = OptimRecipe(lr=1.0, layer_decay=0.5, weight_decay=0.1)
    peak = {
        names[id(parameter)]: group["peak_lr"]
        for group in build_optimizer(recipe, net).param_groups
        for parameter in group["params"]
    }
    assert peak.keys() == set(names.values())
    assert peak[last] == 1.0
    assert peak[first] == min(peak.values()) < 0.2
    in_order = [peak[name] for name in names.values() if name.endswith("weight")]
    assert in_order == sorted(in_order)
    assert all(value == 0.5 ** round(-math.log2(value)) for value in peak.values())
    # No step is left out.
    assert len(set(peak.values())) == 1 - round(math.log2(min(peak.values())))


def test_a_normalisation_learns_as_fast_as_the_convolution_before_it():
    net = build_model("seed:cifar_resnet20", classes=3)
    scales = layer_lr_scales(net, 0.7)
    assert scales[id(net.stem[0].weight)] == scales[id(net.stem[1].weight)]
    block = net.stages[1][2]
    assert len({scales[id(parameter)] for parameter in block.parameters()}) == 1
