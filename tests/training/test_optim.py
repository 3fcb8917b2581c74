import pytest
import torch
from torch import nn

from training.config import OptimRecipe
from training.optim import build_optimizer, lr_factor, set_lr

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
