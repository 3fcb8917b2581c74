from __future__ import annotations

import io
import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from pydantic import TypeAdapter
from sklearn.datasets import load_sample_image
from torch import nn

from service.bundle.heatmap import occlude, occlusion_evidence
from service.cli import main
from training.attribution import (
    grad_cam,
    input_gradients,
    integrated_gradients,
    map_layers,
    recording,
    saliency,
    smooth_grad,
)
from training.checkpoint import save_weights
from training.config import InputRecipe
from training.errors import TrainingError
from training.maximise import maximise, strongest_patches
from training.models.normalise import Normalise
from training.visualise import Subject, attribute, choose_layers, draw_first_layer, visualise


class SmallNet(nn.Module):
    """Two convolutions, global pooling and a linear layer, so that Grad-CAM has a known answer."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 6, 3, padding=1)
        self.act = nn.ReLU(inplace=True)
        self.second = nn.Conv2d(6, 8, 3, stride=2, padding=1)
        self.last = nn.ReLU()
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        maps = self.last(self.second(self.act(self.first(x))))
        return self.head(maps.mean(dim=(2, 3)))


@pytest.fixture
def net():
    torch.manual_seed(0)
    return SmallNet().eval()


@pytest.fixture
def image():
    return torch.randn(1, 3, 24, 20, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def recipe_input():
    document = {
        "preprocess": {
            "resize": {"policy": "squash", "size": 32, "interpolation": "bilinear"},
            "crop": {"height": 32, "width": 32},
            "background": [0, 0, 0],
        },
        "normalisation": {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]},
    }
    return TypeAdapter(InputRecipe).validate_json(json.dumps(document))


@pytest.fixture
def subject(net, recipe_input):
    return Subject(net=net, input=recipe_input, class_names=("cat", "dog", "fish", "owl"))


@pytest.fixture
def view():
    flower = Image.fromarray(load_sample_image("flower.jpg")).resize((32, 32))
    return np.asarray(flower)


def test_the_gradient_is_that_of_small_steps(net, image):
    net, image = net.double(), image.double()
    gradient = input_gradients(net, image, 2)[0]
    for place in ((0, 3, 4), (2, 20, 11)):
        step = torch.zeros_like(image)
        step[0][place] = 1e-5
        with torch.no_grad():
            rise = (net(image + step) - net(image - step))[0, 2] / 2e-5
        assert float(gradient[place]) == pytest.approx(float(rise), rel=1e-3, abs=1e-9)
    assert saliency(net, image, 2) == pytest.approx(gradient.abs().amax(dim=0).numpy())


def test_integrated_gradients_add_up_to_the_difference_of_the_logits(net, image):
    found = integrated_gradients(net, image, 1, steps=256)
    with torch.no_grad():
        difference = float((net(image) - net(torch.zeros_like(image)))[0, 1])
    assert float(found.sum()) == pytest.approx(difference, rel=0.01)
    # A pixel that is as in the baseline has no part in it.
    same = image.clone()
    same[:, :, 5, 5] = 0
    assert integrated_gradients(net, same, 1)[5, 5] == 0


def test_grad_cam_before_global_pooling_is_the_class_activation_map(net, image):
    with torch.no_grad(), recording(net, ["last"]) as kept:
        net(image)
    places = kept["last"][0, 0].numel()
    expected = torch.einsum("c,chw->hw", net.head.weight[3], kept["last"][0]) / places
    found = grad_cam(net, image, 3, "last")
    assert found == pytest.approx(expected.detach().clamp_min(0).numpy(), abs=1e-6)


def test_smooth_grad_is_the_same_each_time_and_leaves_the_net_as_it_was(net, image):
    first = smooth_grad(net, image, 0)
    assert (first == smooth_grad(net, image, 0)).all()
    assert first.shape == (24, 20)
    assert all(one.requires_grad and one.grad is None for one in net.parameters())
    assert not net.last._forward_hooks


def test_layers_with_maps_are_listed_in_order(net, image):
    layers = map_layers(net, image)
    assert layers == {
        "first": (6, 24, 20),
        "act": (6, 24, 20),
        "second": (8, 12, 10),
        "last": (8, 12, 10),
    }
    assert choose_layers(list(layers)) == ("first", "second", "last")
    assert choose_layers(["only"]) == ("only",)
    with pytest.raises(TrainingError, match="no layer of the network puts out maps"):
        choose_layers([])


@pytest.mark.parametrize(
    ("layer", "message"), [("nowhere", "has no layer 'nowhere'"), ("head", "puts out no maps")]
)
def test_a_layer_that_has_no_maps_is_refused(net, image, layer, message):
    with pytest.raises(TrainingError, match=message):
        grad_cam(net, image, 0, layer)


def test_occlusion_falls_on_the_part_that_matters(recipe_input):
    class TopLeft(nn.Module):
        def forward(self, x):
            bright = x[:, :, :8, :8].mean(dim=(1, 2, 3))
            return torch.stack([bright, -bright], dim=1)

    subject = Subject(net=TopLeft(), input=recipe_input, class_names=("on", "off"))
    white = np.full((32, 32, 3), 255, np.uint8)
    evidence = attribute_occlusion(subject, white)
    assert evidence[0, 0] > 0.1
    assert evidence[4:, 4:] == pytest.approx(0, abs=1e-6)


def attribute_occlusion(subject, view):
    probabilities = subject.logits(occlude(view, (127, 127, 127))).softmax(dim=1).numpy()
    return occlusion_evidence(probabilities, 0)


def test_every_method_gives_a_finite_map(subject, view):
    found = attribute(subject, view, 1, "last")
    assert len(found) == 5
    assert all(np.isfinite(one).all() and one.ndim == 2 for one in found.values())


def test_patches_are_the_receptive_fields_of_the_strongest_outputs(recipe_input):
    torch.manual_seed(3)
    net = nn.Sequential(nn.Conv2d(3, 2, 5, stride=2, padding=0), nn.Flatten(), nn.LazyLinear(2))
    net(torch.zeros(1, 3, 32, 32))
    with torch.no_grad():
        net[0].weight.zero_()
        net[0].weight[1] = 1.0
    views = np.zeros((3, 32, 32, 3), np.uint8)
    views[2, 10:15, 20:25] = 200
    normalise = Normalise(recipe_input.normalisation)
    found = strongest_patches(net.eval(), normalise, views, "0", [1], 2)
    best = found[1][0]
    assert best.image == 2
    assert best.pixels.shape == (5, 5, 3)
    assert (best.pixels == 200).all()


def test_a_made_image_excites_more_than_noise(net, recipe_input):
    normalise = Normalise(recipe_input.normalisation)
    made = maximise(net, normalise, (32, 32), lambda x: net(x)[:, 2], 2, steps=20)
    assert made.shape == (2, 32, 32, 3)
    noise = np.random.default_rng(0).integers(96, 160, made.shape, np.uint8)
    with torch.no_grad():
        of_made, of_noise = (net(normalise(torch.from_numpy(one)))[:, 2] for one in (made, noise))
    assert of_made.min() > of_noise.max()
    assert all(one.requires_grad for one in net.parameters())


def test_first_layer_filters_are_shown_on_one_scale(subject):
    drawn = draw_first_layer(subject)
    assert drawn is not None
    weights = subject.net.first.weight.detach().numpy()
    strongest = np.unravel_index(np.abs(weights).argmax(), weights.shape)
    pixels = np.asarray(drawn)
    assert pixels.min() == 0 or pixels.max() == 255
    assert strongest[0] < 6


def write_image(path):
    Image.fromarray(load_sample_image("china.jpg")).save(path)
    return path


def test_every_picture_is_written(subject, view, tmp_path):
    views = np.stack([view, view[::-1], view[:, ::-1]])
    photograph = write_image(tmp_path / "china.png")
    files = visualise(subject, tmp_path / "a" / "b", images=[photograph], views=views, steps=2)
    assert {one.name for one in files} == {
        *("first_layer.png", "attribution.png", "maximised.png"),
        *(f"feature_maps-{one}.png" for one in ("first", "second", "last")),
        *(f"patches-{one}.png" for one in ("first", "second", "last")),
    }
    for one in files:
        with Image.open(one) as picture:
            assert len(picture.convert("RGB").getcolors(10**6)) > 10, one.name


@pytest.fixture
def squeezenet(tmp_path):
    """Random weights of a real architecture, as the files that the command takes."""
    from training.models.registry import build_model

    torch.manual_seed(0)
    net = build_model("seed:squeezenet1_1", classes=4)
    save_weights(tmp_path / "net.safetensors", net.state_dict())
    (tmp_path / "labels.json").write_text('["cat", "dog", "fish", "owl"]')
    write_image(tmp_path / "china.png")
    return [
        *("--arch", "seed:squeezenet1_1", "--weights", tmp_path / "net.safetensors"),
        *("--labels", tmp_path / "labels.json", "--preprocess", "resize=48"),
        *("--preprocess", "crop=48", "--preprocess", "mean=0.5,0.5,0.5"),
        *("--preprocess", "std=0.25,0.25,0.25", "--image", tmp_path / "china.png"),
        *("--out", tmp_path / "out"),
    ]


def run(*arguments):
    return CliRunner().invoke(main, ["visualise", *map(str, arguments)])


def test_the_command_draws_published_weights(squeezenet, tmp_path):
    done = run(*squeezenet, "--class", "owl", "--steps", "0")
    assert done.exit_code == 0, done.stderr
    assert sorted(done.stdout.split()) == sorted(map(str, (tmp_path / "out").iterdir()))
    assert (tmp_path / "out" / "attribution.png").is_file()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (("--class", "mouse"), "there is no class 'mouse'"),
        (("--layer", "nowhere"), "'nowhere' puts out no maps; these do: "),
        (("--image", "missing.png"), "missing.png: No such file"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(squeezenet, changes, message):
    done = run(*squeezenet, "--steps", "0", *changes)
    assert done.exit_code == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


def test_neither_a_run_nor_an_architecture_is_a_wrong_use(tmp_path):
    assert "give RUN_DIR or --arch" in run("--out", tmp_path).stderr


def test_an_image_that_is_none_is_told(subject, tmp_path):
    (tmp_path / "a.png").write_bytes(io.BytesIO(b"no image").getvalue())
    with pytest.raises(TrainingError, match=r"a\.png: "):
        subject.view(tmp_path / "a.png")
