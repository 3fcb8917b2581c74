"""Each family learns, leaves for ONNX Runtime, and takes other sizes, channels and classes.

With real weights, so small members of each family stand for it: fewer layers, narrower, or on
smaller pictures. The sizes of all of them are in test_catalogue.py.
"""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from torch.nn import functional

from service.bundle.manifest import Normalisation, Size
from training.errors import TrainingError
from training.graph import ServedGraph, export_onnx
from training.models.auxiliary import logits_for_training
from training.models.locally_connected import LocallyConnected2d
from training.models.registry import build_model
from training.models.resnet import SHORTCUTS
from training.parity import MIN_IMAGES, check_parity
from training.session import open_session

NORMALISATION = Normalisation(mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
CLASSES = 5
# Name, options, pixels a side.
QUICK = [
    ("seed:lenet5_1998", {}, 32),
    ("seed:cifar_resnet20", {"depth": 8}, 16),
    ("seed:wrn16_4", {"depth": 10, "width": 1, "dropout": 0.3}, 16),
    ("seed:googlenet_2014", {}, 32),
    ("seed:resnet9", {"width": 8}, 16),
]
SLOW = [
    ("seed:alexnet_2012", {}, 63),
    ("seed:zfnet", {}, 63),
    ("seed:nin_cifar", {}, 32),
    ("seed:nin_imagenet", {}, 95),
    ("seed:bipyramid", {"has_norm": True, "dropout": 0.5}, 40),
    ("seed:conv_local", {}, 24),
    ("seed:bn_inception", {}, 64),
    *(("seed:resnet18_v1", {"shortcut": shortcut, "width": 8}, 48) for shortcut in SHORTCUTS),
    *(("seed:resnet50_v1", {"shortcut": shortcut, "width": 8}, 48) for shortcut in SHORTCUTS),
    ("seed:cifar_preresnet110", {"depth": 11}, 16),
    ("seed:cifar_densenet_bc100_12", {"depth": 10}, 16),
    ("seed:shufflenet_v1_x0_5", {}, 48),
    ("seed:nasnet_a_mobile", {"cells": 1, "features": 96}, 64),
    ("seed:ensemble", {"members": "seed:lenet5,seed:cifar_resnet20", "weights": "1,3"}, 32),
    ("seed:feature_fusion", {"members": "seed:lenet5,seed:cifar_resnet20", "scales": "1,0.5"}, 32),
    ("torchvision:googlenet", {"aux_logits": True}, 64),
    ("torchvision:mobilenet_v2", {}, 48),
    ("torchvision:shufflenet_v2_x0_5", {}, 48),
    ("torchvision:squeezenet1_0", {}, 48),
    ("timm:legacy_xception", {}, 71),
    ("timm:seresnet50", {}, 48),
    ("timm:test_efficientnet", {}, 48),
    ("torchvision:alexnet", {}, 63),
    ("torchvision:vgg11_bn", {}, 32),
    ("torchvision:densenet121", {}, 48),
    ("torchvision:resnet34", {}, 48),
    ("timm:resnetv2_18", {}, 48),
    ("timm:seresnext50_32x4d", {}, 48),
    ("timm:mobilenetv1_100", {}, 48),
    ("timm:mobilenetv4_conv_small", {}, 48),
    ("timm:convnext_atto", {}, 48),
    ("timm:regnety_004", {}, 48),
    ("timm:repvgg_a0", {}, 48),
    ("timm:resnet10t", {}, 48),
]
# The largest of each family, on small pictures: gigabytes and minutes; `pytest -m large` runs them.
LARGE = [
    # Its auxiliary head takes no smaller pictures.
    ("torchvision:inception_v3", {"aux_logits": True}, 299),
    ("torchvision:vgg19", {}, 64),
    ("torchvision:resnet152", {}, 64),
    ("torchvision:wide_resnet101_2", {}, 64),
    ("torchvision:resnext101_64x4d", {}, 64),
    ("torchvision:densenet161", {}, 64),
    ("torchvision:efficientnet_b7", {}, 64),
    ("timm:inception_v4", {}, 107),
    ("timm:inception_resnet_v2", {}, 107),
    ("timm:legacy_senet154", {}, 64),
    ("timm:nasnetalarge", {}, 96),
    ("seed:zfnet_wide", {}, 63),
    ("seed:wrn28_10", {}, 16),
    ("seed:cifar_resnet1202", {}, 16),
    ("seed:cifar_preresnet1001", {}, 16),
]
ALL = [
    *QUICK,
    *(pytest.param(*row, marks=pytest.mark.e2e) for row in SLOW),
    *(pytest.param(*row, marks=pytest.mark.large) for row in LARGE),
]


def random_images(count, channels, size):
    return torch.randn(count, channels, size, size, generator=torch.Generator().manual_seed(1))


def take_a_step(net, images, labels):
    net.train()
    logits, auxiliary = logits_for_training(net, images)
    total = functional.cross_entropy(logits, labels) + sum(
        weight * functional.cross_entropy(other, labels) for weight, other in auxiliary
    )
    total.backward()
    assert all(
        parameter.grad is not None and parameter.grad.isfinite().all()
        for parameter in net.parameters()
        if parameter.requires_grad
    )
    # As long a step for every net: their gradients differ by orders of magnitude.
    torch.nn.utils.clip_grad_norm_(net.parameters(), 0.1)
    torch.optim.SGD(net.parameters(), lr=0.1).step()


def export_and_check(net, size, tmp_path):
    rng = np.random.default_rng(0)
    views = rng.integers(0, 256, (MIN_IMAGES, size, size, 3), dtype=np.uint8)
    graph = ServedGraph(net.eval(), NORMALISATION).eval()
    with torch.inference_mode():
        logits = graph.logits_and_embedding(torch.from_numpy(views))[0]
        # Untrained nets are of one mind about everything: make their answers differ.
        centred = logits - logits.mean(dim=0)
        graph.temperature = float(centred.std())
        expected = torch.cat([graph(batch)[0] for batch in torch.from_numpy(views).split(32)])
    model = export_onnx(graph, Size(height=size, width=size))
    path = tmp_path / "model.onnx"
    onnx.save(model, path)
    check_parity(open_session(path), views, expected.numpy())


@pytest.mark.parametrize(("architecture", "options", "size"), ALL)
def test_a_network_trains_a_step_and_its_graph_answers_as_it_does(
    architecture, options, size, tmp_path
):
    torch.manual_seed(0)
    net = build_model(architecture, classes=CLASSES, options=options)
    before = {name: value.clone() for name, value in net.named_parameters()}
    labels = torch.arange(8) % CLASSES
    take_a_step(net, random_images(8, 3, size), labels)
    # Zero-initialised ends of residual bodies keep the gradient from what is below them at first.
    changed = [not torch.equal(before[n], p) for n, p in net.named_parameters() if p.grad.any()]
    assert sum(changed) > 0.8 * len(changed)  # some gradients are below the rounding of a weight

    export_and_check(net, size, tmp_path)


@pytest.mark.e2e
def test_a_graph_that_onnx_runtime_spoils_is_refused_with_the_numbers(tmp_path):
    """It folds standardised weights wrongly: right only where nothing is optimised."""
    torch.manual_seed(0)
    net = build_model("timm:resnetv2_50x1_bit", classes=CLASSES)
    told = r"probabilities differ by \d\.\d\de-\d\d \(at most 1e-04\), top-1 agrees on \d\d\.\d\d%"
    with pytest.raises(TrainingError, match=told):
        export_and_check(net, 48, tmp_path)


@pytest.mark.parametrize("architecture", ["seed:googlenet_2014", "torchvision:googlenet"])
def test_auxiliary_heads_add_their_losses_and_stay_out_of_the_graph(architecture):
    options = {"has_auxiliary" if architecture.startswith("seed") else "aux_logits": True}
    torch.manual_seed(0)
    net = build_model(architecture, classes=CLASSES, options=options)
    logits, auxiliary = logits_for_training(net, random_images(4, 3, 32))
    assert logits.shape == (4, CLASSES)
    assert [(weight, other.shape) for weight, other in auxiliary] == [(0.3, (4, CLASSES))] * 2
    with torch.no_grad():
        for parameter in net.parameters():  # equal ones, as fresh biases are, would be kept once
            parameter.add_(1e-3 * torch.rand_like(parameter))
    exported = export_onnx(ServedGraph(net.eval(), NORMALISATION), Size(height=32, width=32))
    kept = sum(np.prod(one.dims, dtype=int) for one in exported.graph.initializer)
    plain = build_model(architecture, classes=CLASSES, options=dict.fromkeys(options, False))
    own = sum(parameter.numel() for parameter in plain.parameters())
    # What is more are a few constants of shapes; batch normalisation is folded into weights or not.
    buffers = sum(buffer.numel() for buffer in plain.buffers())
    assert own - buffers <= kept <= own + buffers + 1000


def test_inception_v3_trains_with_its_auxiliary_head():
    with torch.device("meta"):
        net = build_model("torchvision:inception_v3", classes=7, options={"aux_logits": True})
        logits, auxiliary = logits_for_training(net, torch.empty(2, 3, 299, 299))
    assert logits.shape == (2, 7)
    assert [(weight, other.shape) for weight, other in auxiliary] == [(0.4, (2, 7))]


# Any size from the smallest that is legal on, with a side that is odd.
SMALLEST = {
    "seed:lenet5": 16,
    "seed:lenet5_1998": 16,
    "seed:alexnet_2012": 63,
    "seed:zfnet": 63,
    "seed:nin_cifar": 5,
    "seed:nin_imagenet": 95,
    "seed:googlenet_2014": 31,
    "seed:bn_inception": 8,
    "seed:resnet18_v1": 2,
    "seed:resnet50_v1": 2,
    "seed:cifar_resnet20": 1,
    "seed:cifar_preresnet110": 1,
    "seed:resnet9": 8,
    "seed:wrn16_4": 1,
    "seed:cifar_densenet_bc100_12": 4,
    "seed:shufflenet_v1_x1_0": 2,
    "seed:nasnet_a_mobile": 32,
    "seed:bipyramid": 16,
    "seed:conv_local": 1,
}


@pytest.mark.parametrize("architecture", SMALLEST)
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_any_size_any_channels_and_any_classes_are_taken(architecture, channels):
    smallest = SMALLEST[architecture]
    with torch.device("meta"):
        net = build_model(architecture, classes=3, options={"channels": channels}).eval()
        for size in ((smallest, smallest), (smallest + 37, smallest + 22)):
            assert net(torch.empty(2, channels, *size)).shape == (2, 3)
        if channels == 1:
            assert net(torch.empty(2, 3, smallest, smallest)).shape == (2, 3)


def test_a_plain_net_is_the_residual_one_without_its_shortcuts():
    for name in ("resnet34_v1", "cifar_resnet20"):
        with torch.device("meta"):
            plain, padded = (
                build_model(f"seed:{name}", classes=10, options={"shortcut": shortcut})
                for shortcut in ("plain", "A")
            )
        assert plain.state_dict().keys() == padded.state_dict().keys()


def test_shortcuts_a_b_and_c_carry_what_they_are_to_carry():
    """With a body that says nothing, a block is its shortcut."""
    images = random_images(2, 16, 8).relu()
    for shortcut in "ABC":
        net = build_model(
            "seed:cifar_resnet20", classes=2, options={"depth": 8, "shortcut": shortcut}
        ).eval()
        first, second = net.stages[0][0], net.stages[1][0]
        for block in (first, second):
            torch.nn.init.zeros_(block.body[-1].weight)
        with torch.no_grad():
            kept, grown = first(images), second(images)
        assert torch.equal(kept, images) == (shortcut != "C")
        is_padded = torch.equal(grown[:, :16], images[:, :, ::2, ::2]) and not grown[:, 16:].any()
        assert is_padded == (shortcut == "A")


def test_locally_connected_layer_is_a_convolution_when_its_weights_agree():
    torch.manual_seed(0)
    layer = LocallyConnected2d(3, 4, (9, 8), kernel_size=3, stride=2, padding=1)
    shared = torch.randn(4, 3, 3, 3)
    with torch.no_grad():
        layer.weight.copy_(shared.flatten(1).expand_as(layer.weight))
    images = torch.randn(2, 3, 9, 8)
    expected = functional.conv2d(images, shared, stride=2, padding=1)
    assert torch.allclose(layer(images), expected, atol=1e-5)
    with torch.no_grad():
        layer.weight[0].zero_()  # of the first place alone
    changed = layer(images) != expected
    assert changed[..., 0, 0].all()
    assert torch.allclose(layer(images)[..., 0, 1:], expected[..., 0, 1:], atol=1e-5)


def test_the_lectured_locally_connected_layer_has_40_000_weights_if_padded():
    # 10x10 windows with stride 5 on 100x100: 20x20 places need padding; without it they are 19x19.
    padded = LocallyConnected2d(1, 1, (104, 104), kernel_size=10, stride=5, has_bias=False)
    valid = LocallyConnected2d(1, 1, (100, 100), kernel_size=10, stride=5, has_bias=False)
    assert padded.out_size == (19, 19)
    assert padded.weight.numel() == valid.weight.numel() == 36_100
    padded = LocallyConnected2d(1, 1, (105, 105), kernel_size=10, stride=5, has_bias=False)
    assert padded.out_size == (20, 20)
    assert padded.weight.numel() == 40_000


def two_members(**options):
    torch.manual_seed(0)
    members = "seed:lenet5, seed:cifar_resnet20"
    return build_model("seed:ensemble", classes=4, options={"members": members, **options}).eval()


def test_an_ensemble_answers_with_the_weighted_mean_of_its_members():
    images = random_images(3, 3, 32)
    with torch.no_grad():
        net = two_members()
        first, second = (member(images).softmax(dim=1) for member in net.members)
        assert torch.allclose(net(images).softmax(dim=1), (first + second) / 2, atol=1e-6)
        net = two_members(weights="1,3")
        assert torch.allclose(net(images).softmax(dim=1), (first + 3 * second) / 4, atol=1e-6)
        net = two_members(mean="logits")
        product = (first * second).sqrt()
        product = product / product.sum(dim=1, keepdim=True)
        assert torch.allclose(net(images).softmax(dim=1), product, atol=1e-6)


def test_an_ensemble_shows_its_members_several_scales():
    images = random_images(2, 3, 64)
    with torch.no_grad():
        net = two_members(scales="0.5,1.5")
        seen = []
        for member in net.members:
            member.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape[-1]))
        net(images)
    assert seen == [32, 96]


def test_feature_fusion_joins_the_embeddings_under_one_classifier():
    net = build_model(
        "seed:feature_fusion",
        classes=4,
        options={"members": "seed:lenet5,seed:cifar_resnet20,seed:airbench", "size": 32},
    ).eval()
    assert net.head.weight.shape == (4, 84 + 64 + 256)
    with torch.no_grad():
        logits, embedding = net.forward_with_embedding(random_images(2, 3, 32))
    assert logits.shape == (2, 4)
    assert embedding.shape == (2, 84 + 64 + 256)


@pytest.mark.parametrize(
    ("architecture", "options", "complaint"),
    [
        ("seed:resnet50_v1", {"shortcut": "D"}, "shortcut must be one of A, B, C, plain"),
        ("seed:cifar_resnet20", {"depth": 21}, r"depth must be 6n \+ 2"),
        ("seed:wrn16_4", {"depth": 17}, r"depth must be 6n \+ 4"),
        ("seed:shufflenet_v1_x1_0", {"groups": 5}, "groups must be one of 1, 2, 3, 4, 8"),
        ("seed:lenet5", {"channels": 0}, "channels must be 1 or more"),
        ("seed:nasnet_a_mobile", {"features": 100}, "multiple of 96"),
        ("seed:ensemble", {}, "needs the option members"),
        (
            "seed:ensemble",
            {"members": "seed:lenet5", "weights": "1,2"},
            "weights must be 1 numbers",
        ),
        ("seed:ensemble", {"members": "seed:lenet5", "mean": "mode"}, "mean must be one of"),
    ],
)
def test_options_that_make_no_network_are_refused(architecture, options, complaint):
    with pytest.raises(TrainingError, match=complaint):
        build_model(architecture, classes=3, options=options)
