import pytest
import torch
from torch import nn

from training.checkpoint import save_weights
from training.config import ModelRecipe
from training.errors import TrainingError
from training.models.registry import build_model
from training.models.resnet import Residual
from training.network import build_network, load_backbone


def build(name="timm:test_resnet", classes=3, **options):
    return build_network(ModelRecipe(architecture=name, **options), classes=classes)


def test_dropout_drops_features_before_the_classifier_in_training_only():
    net = build(dropout=0.5)
    seen = []
    net.head.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
    images = torch.randn(4, 3, 32, 32)
    _, features = net.train().forward_with_embedding(images)
    kept = seen[0] != 0
    # The features are those of a ReLU: some are 0 anyway.
    assert 0.3 < kept.sum() / (features != 0).sum() < 0.7
    assert torch.allclose(seen[0][kept], 2 * features[kept])
    net.eval().forward_with_embedding(images)
    assert torch.equal(seen[1], net.forward_with_embedding(images)[1])
    assert net.state_dict().keys() == build().state_dict().keys()


@pytest.mark.parametrize(
    "name", ["timm:test_resnet", "torchvision:convnext_tiny", "seed:cifar_resnet20"]
)
def test_drop_path_leaves_branches_out_in_training_only(name):
    torch.manual_seed(0)
    net = build(name, drop_path=0.5)
    images = torch.randn(1, 3, 32, 32).expand(8, -1, -1, -1)
    for one in net.modules():
        if isinstance(one, nn.modules.batchnorm._BatchNorm):
            one.eval()
            # timm's branches end in a scale of 0, and are as good as left out.
            nn.init.ones_(one.weight)
    spread = net(images).std(dim=0).max()
    assert spread > 1e-7
    assert net.eval()(images).std(dim=0).max() < spread / 100 + 1e-6


def test_drop_path_rises_in_a_line_and_keeps_the_mean():
    net = build("seed:cifar_resnet20", drop_path=0.5)
    blocks = [one for one in net.modules() if isinstance(one, Residual)]
    assert [one.drop_path for one in blocks] == pytest.approx([n / 18 for n in range(1, 10)])
    torch.manual_seed(0)
    images = torch.rand(1, 16, 4, 4).expand(4000, -1, -1, -1)
    block = blocks[0]
    block.drop_path = 0.4
    block.body = nn.Identity()
    # ReLU(x + body(x)) is x where the body is left out, and (1 + 1/0.6) x elsewhere.
    out = block(images)
    left_out = (out == images).flatten(1).all(dim=1)
    assert left_out.float().mean() == pytest.approx(0.4, abs=0.03)
    assert torch.allclose(out[~left_out], images[~left_out] * (1 + 1 / 0.6))
    assert torch.equal(block.eval()(images), 2 * images)
    with pytest.raises(TrainingError, match="drop_path: seed:cifar_resnet20 has none"):
        build("seed:cifar_resnet20", drop_path=0.5, options={"shortcut": "plain"})


def test_what_has_no_residual_branches_has_no_drop_path():
    with pytest.raises(TrainingError, match="drop_path: seed:lenet5 has none"):
        build("seed:lenet5", drop_path=0.1)


def test_weights_of_a_run_are_taken_over_with_a_new_head_for_new_classes(tmp_path):
    source = build(classes=5)
    save_weights(tmp_path / "best.safetensors", source.state_dict())
    same = build(classes=5, weights=(tmp_path,))
    assert all(
        torch.equal(value, source.state_dict()[key]) for key, value in same.state_dict().items()
    )
    other = build(classes=3, weights=(tmp_path / "best.safetensors",))
    for key, value in other.state_dict().items():
        if not key.startswith("head."):
            assert torch.equal(value, source.state_dict()[key])
    assert other.head.weight.shape[0] == 3


def test_several_runs_are_taken_over_as_their_mean(tmp_path):
    sources = [build(classes=5), build(classes=5)]
    files = [tmp_path / f"{index}.safetensors" for index in range(2)]
    for source, file in zip(sources, files, strict=True):
        save_weights(file, source.state_dict())
    one, other = (source.state_dict() for source in sources)
    net = build(classes=3, weights=tuple(files))
    for key, value in net.state_dict().items():
        if not key.startswith("head."):
            assert torch.allclose(value.float(), (one[key] + other[key]) / 2), key
    save_weights(files[1], build_model("seed:lenet5", classes=5).state_dict())
    with pytest.raises(TrainingError, match=r"1\.safetensors: weights of another network: no"):
        build(classes=3, weights=tuple(files))


def test_published_weights_get_a_classifier_of_ours_where_it_is_a_convolution(tmp_path):
    source = build_model("seed:squeezenet1_1", classes=7)
    save_weights(tmp_path / "w.safetensors", source.state_dict())
    net = build_model("seed:squeezenet1_1", classes=3)
    own = net.state_dict()["classifier.1.weight"].clone()
    load_backbone(net, [tmp_path / "w.safetensors"], classes=3)
    assert torch.equal(net.state_dict()["classifier.1.weight"], own)
    assert torch.equal(
        net.state_dict()["features.0.weight"], source.state_dict()["features.0.weight"]
    )


def test_weights_of_another_architecture_are_refused_in_one_line(tmp_path):
    save_weights(tmp_path / "w.safetensors", build().state_dict())
    for name in ("seed:lenet5", "timm:test_efficientnet"):
        with pytest.raises(TrainingError, match=r"w\.safetensors: weights of another network: no"):
            build(name, weights=(tmp_path / "w.safetensors",))


def test_initialisation_and_norm_are_applied():
    net = build(initialisation="orthogonal", norm="group")
    weight = net.head.weight
    assert torch.allclose(weight @ weight.T, torch.eye(3), atol=1e-5)
    assert not any(isinstance(one, nn.BatchNorm2d) for one in net.modules())
