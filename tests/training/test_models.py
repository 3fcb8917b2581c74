import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from service.bundle.manifest import Normalisation
from training.checkpoint import load_weights
from training.errors import TrainingError
from training.models.airbench import Airbench
from training.models.classifier import EmbeddingModel
from training.models.normalise import Normalise
from training.models.registry import build_model
from training.shapes_alone import on_meta_device

SEEDS = ["seed:airbench", "seed:lenet5", "seed:squeezenet1_1"]


def count_parameters(net: nn.Module) -> int:
    return sum(parameter.numel() for parameter in net.parameters())


@pytest.mark.parametrize(
    ("architecture", "classes", "expected"),
    [
        ("seed:lenet5", 10, 61_706),
        ("seed:airbench", 10, 1_972_792),
        ("seed:airbench96", 10, 12_721_208),
        ("seed:airbench_deep", 10, 2_318_904),
        ("seed:airbench_wide", 10, 4_608_824),
        ("seed:squeezenet1_1", 1000, 1_235_496),
        ("torchvision:resnet18", 1000, 11_689_512),
        ("timm:test_resnet", 1000, 469_688),
    ],
)
def test_parameters_are_those_of_the_literature(architecture, classes, expected):
    assert count_parameters(build_model(architecture, classes=classes)) == expected


def test_lenet_on_colour_differs_only_in_its_first_layer():
    net = build_model("seed:lenet5", classes=10, options={"channels": 3})
    assert count_parameters(net) == 61_706 + 2 * 6 * 25


@pytest.mark.parametrize(
    ("architecture", "size", "width"),
    [
        ("seed:airbench", 32, 256),
        ("seed:lenet5", 32, 84),
        ("seed:squeezenet1_1", 64, 512),
        ("torchvision:resnet18", 32, 512),
        ("torchvision:mobilenet_v3_small", 32, 1024),
        ("timm:test_resnet", 32, 96),
    ],
)
def test_networks_give_logits_and_embedding_in_one_pass(architecture, size, width):
    net = build_model(architecture, classes=7).eval()
    assert isinstance(net, EmbeddingModel)
    images = torch.randn(2, 3, size, size)
    with torch.no_grad():
        logits, embedding = net.forward_with_embedding(images)
        assert torch.equal(net(images), logits)
    assert logits.shape == (2, 7)
    assert embedding.shape == (2, width)


def test_taking_the_head_off_changes_no_logit():
    import torchvision

    torch.manual_seed(0)
    plain = torchvision.models.resnet18(num_classes=5).eval()
    net = build_model("torchvision:resnet18", classes=5, weights=plain.state_dict()).eval()
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(net(images), plain(images))


@pytest.mark.parametrize("architecture", SEEDS)
def test_a_seed_builds_the_same_network_again(architecture):
    nets = []
    for _ in range(2):
        torch.manual_seed(3)
        nets.append(build_model(architecture, classes=3))
    for first, second in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        assert torch.equal(first, second)


def test_alexnet_damps_a_response_by_its_neighbours_as_the_paper_says():
    """Section 3.3: k = 2, n = 5, alpha = 1e-4, beta = 0.75, over the sum of squares."""
    with on_meta_device():
        net = build_model("seed:alexnet_2012", classes=2)
    norm = next(one for one in net.modules() if isinstance(one, nn.LocalResponseNorm))
    maps = 100 * torch.randn(1, 8, 2, 3, generator=torch.Generator().manual_seed(0))
    for channel in range(8):
        near = maps[:, max(0, channel - 2) : channel + 3].square().sum(dim=1)
        expected = maps[:, channel] / (2 + 1e-4 * near) ** 0.75
        assert torch.allclose(norm(maps)[:, channel], expected, rtol=1e-5)


def test_whitening_gives_uncorrelated_patches_of_unit_variance():
    rng = np.random.default_rng(0)
    coarse = torch.from_numpy(rng.normal(size=(64, 3, 9, 9))).float()
    images = functional.interpolate(coarse, size=(32, 32), mode="bilinear")
    images = images + 0.2 * torch.from_numpy(rng.normal(size=(64, 3, 32, 32))).float()
    net = Airbench(10)
    net.whiten_like(images)
    nn.init.zeros_(net.whiten.bias)
    with torch.no_grad():
        out = net.whiten(images)
    assert torch.equal(out[:, :12], -out[:, 12:])
    flat = out[:, :12].permute(1, 0, 2, 3).reshape(12, -1)
    second_moments = flat @ flat.T / flat.shape[1]
    assert torch.allclose(second_moments, torch.eye(12), atol=0.02)


def test_whitening_is_exact_under_autocast():
    torch.manual_seed(0)
    smooth = functional.interpolate(torch.randn(16, 3, 3, 3), size=(32, 32), mode="bilinear")
    net = Airbench(10)
    net.whiten_like(smooth)
    with torch.no_grad():
        exact = net.whiten(smooth)
        with torch.autocast("cpu", torch.bfloat16):
            ours, plain = net._whiten(smooth).float(), net.whiten(smooth).float()
    rounding = exact.abs().max() * 2**-7
    assert (ours - exact).abs().max() < rounding
    assert (plain - exact).abs().max() > 3 * rounding  # what is avoided


def test_airbench_starts_by_passing_its_input_on():
    block = Airbench(10).blocks[1]
    x = torch.randn(1, 64, 8, 8)
    assert torch.allclose(block.conv1(x)[:, :64], x, atol=1e-6)


def test_whitening_leaves_directions_that_hardly_vary_small():
    """What a JPEG's encoder leaves of fine colour is noise: a floor under the variance hides it."""
    rng = np.random.default_rng(0)
    grey = torch.from_numpy(rng.normal(size=(64, 1, 32, 32))).float().expand(-1, 3, -1, -1)
    noise = 0.01 * torch.from_numpy(rng.normal(size=(64, 3, 32, 32))).float()
    net = Airbench(10, whitening_epsilon=0.02)
    net.whiten_like(grey + noise)
    with torch.no_grad():
        deviations = net.whiten(grey + noise)[:, :12].std(dim=(0, 2, 3))
    assert (deviations[:4] > 0.9).all()  # of brightness, in its four pixels
    assert (deviations[4:] < 0.1).all()  # of colour


def test_the_deep_airbench_adds_to_what_its_blocks_first_convolution_found():
    block = Airbench(10, is_deep=True).blocks[1].eval()
    x = torch.randn(2, 64, 8, 8)
    found = functional.gelu(block.norm1(functional.max_pool2d(block.conv1(x), 2)))
    nn.init.zeros_(block.conv3.weight)
    assert torch.allclose(block(x), functional.gelu(found))


def test_normalise_shows_what_the_manifest_says():
    normalisation = Normalisation(mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 1.0))
    views = torch.randint(0, 256, (2, 4, 5, 3), dtype=torch.uint8)
    images = Normalise(normalisation)(views)
    assert images.shape == (2, 3, 4, 5)
    assert images.is_contiguous(memory_format=torch.channels_last)
    scaled = views.numpy().astype(np.float64) / 255
    expected = (scaled - normalisation.mean) / np.array(normalisation.std)
    assert np.allclose(images.permute(0, 2, 3, 1).numpy(), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("architecture", "complaint"),
    [
        ("resnet18", "expected one of seed, torchvision, timm and a name"),
        ("hub:resnet18", "expected one of seed, torchvision, timm and a name"),
        ("seed:resnet18", "unknown, close are resnet18_v1, .* `fivecrop arch list` has them all"),
        ("torchvision:resnet19", "no such classifier"),
        ("torchvision:fcn_resnet50", "no such classifier"),
        ("timm:resnet19", "no such model"),
        ("seed:ensemble", "seed:ensemble: needs the option members"),
    ],
)
def test_unknown_architectures_are_refused(architecture, complaint):
    with pytest.raises(TrainingError, match=complaint):
        build_model(architecture, classes=10)


@pytest.mark.parametrize("architecture", ["seed:lenet5", "torchvision:resnet18", "timm:resnet18"])
def test_unknown_options_are_refused(architecture):
    with pytest.raises(TrainingError, match="chanels"):
        build_model(architecture, classes=10, options={"chanels": 1})


def test_weights_must_fit_exactly():
    own = build_model("seed:lenet5", classes=10).state_dict()
    with pytest.raises(TrainingError, match=r"lack c1\.bias, c1\.weight \(2 in all\)"):
        build_model(
            "seed:lenet5",
            classes=10,
            weights={key: value for key, value in own.items() if not key.startswith("c1")},
        )
    with pytest.raises(TrainingError, match="have unknown extra"):
        build_model("seed:lenet5", classes=10, weights={**own, "extra": torch.zeros(1)})
    with pytest.raises(TrainingError, match=r"head\.(bias|weight) is \(10"):
        build_model("seed:lenet5", classes=11, weights=own)


@pytest.mark.data
def test_squeezenet_with_the_authors_weights_equals_torchvisions(shared_data):
    import torchvision

    weights = load_weights(shared_data / "squeezenet1_1-imagenet.safetensors")
    net = build_model("seed:squeezenet1_1", classes=1000, weights=weights).eval()
    theirs = torchvision.models.squeezenet1_1()
    theirs.load_state_dict(weights)
    images = 60 * torch.randn(2, 3, 227, 227)
    with torch.no_grad():
        assert torch.allclose(net(images), theirs.eval()(images), rtol=1e-4, atol=1e-3)
