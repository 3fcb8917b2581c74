import pytest
import torch
from torch import nn

from training.errors import TrainingError
from training.models.norm_layers import BatchRenorm2d, SynchronisedBatchNorm2d, replace_norms
from training.models.registry import build_model


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("layer", nn.GroupNorm),
        ("group", nn.GroupNorm),
        ("instance", nn.InstanceNorm2d),
        ("batch_renorm", BatchRenorm2d),
        ("synchronised", SynchronisedBatchNorm2d),
        ("none", nn.Identity),
    ],
)
@pytest.mark.parametrize("name", ["seed:cifar_resnet20", "timm:test_efficientnet"])
def test_every_batch_normalisation_is_replaced_and_its_scale_kept(name, kind, expected):
    net = build_model(name, classes=3)
    norms = [one for one in net.modules() if isinstance(one, nn.BatchNorm2d)]
    with torch.no_grad():
        norms[0].weight.fill_(3.0)
    replace_norms(net, kind)
    left = [one for one in net.modules() if type(one).__name__.startswith("BatchNorm")]
    assert left == []
    fresh = [one for one in net.modules() if isinstance(one, expected)]
    assert len(fresh) >= len(norms)
    if kind != "none":
        assert fresh[0].weight.eq(3).all()
    logits = net(torch.randn(2, 3, 64, 64))
    assert logits.shape == (2, 3)
    assert torch.isfinite(logits).all()


@pytest.mark.parametrize(("kind", "over"), [("layer", (1, 2, 3)), ("instance", (2, 3))])
def test_means_are_taken_over_what_the_name_says(kind, over):
    net = nn.Sequential(nn.BatchNorm2d(4))
    replace_norms(net, kind)
    values = net(torch.randn(5, 4, 6, 6) * 3 + 1)
    assert values.mean(dim=over).abs().max() < 1e-5


def test_batch_renorm_begins_as_batch_norm_and_then_follows_the_running_statistics():
    torch.manual_seed(0)
    plain, renorm = nn.BatchNorm2d(3), BatchRenorm2d(3)
    images = torch.randn(8, 3, 5, 5) * 2 + 1
    assert torch.allclose(renorm(images), plain(images), atol=1e-5)
    for key, value in plain.state_dict().items():
        assert torch.allclose(renorm.state_dict()[key], value)
    # Long after, a batch within the bounds comes out as evaluation would give it.
    renorm.num_batches_tracked.fill_(50_000)
    renorm.running_mean.copy_(torch.tensor([0.9, 1.1, 1.0]))
    renorm.running_var.copy_(torch.tensor([3.0, 5.0, 4.0]))
    expected = renorm.eval()(images)
    assert torch.allclose(renorm.train()(images), expected, atol=1e-5)
    assert not torch.allclose(expected, plain.train()(images), atol=1e-2)


def test_batch_renorm_lets_gradients_through_the_batch_statistics():
    renorm = BatchRenorm2d(2)
    images = torch.randn(4, 2, 3, 3, requires_grad=True)
    renorm(images).square().sum().backward()
    # The sum of squares of normalised values is a constant, whatever goes in.
    assert images.grad.abs().max() < 1e-3


def test_a_network_without_batch_norm_is_refused():
    with pytest.raises(TrainingError, match="LeNet5 has no batch normalisation"):
        replace_norms(build_model("seed:lenet5", classes=3), "group")


def test_synchronised_sums_are_batch_normalisation(group):
    torch.manual_seed(0)
    plain, synchronised = nn.BatchNorm2d(3), SynchronisedBatchNorm2d(3)
    images = torch.randn(8, 3, 5, 5) * 2 + 100
    found = []
    for norm in (plain, synchronised):
        with torch.no_grad():
            norm.weight.copy_(torch.tensor([0.5, 1.0, 2.0]))
        shown = images.clone().requires_grad_()
        out = norm(shown)
        (out**3).mean().backward()
        found.append((out.detach(), shown.grad, norm.weight.grad, norm.bias.grad))
    for one, other in zip(*found, strict=True):
        assert torch.allclose(one, other, atol=1e-4, rtol=1e-3)
    for key, value in plain.state_dict().items():
        assert torch.allclose(synchronised.state_dict()[key], value, rtol=1e-4)
    assert torch.equal(synchronised.eval()(images), plain.eval()(images)) or torch.allclose(
        synchronised(images), plain(images), atol=1e-4
    )
