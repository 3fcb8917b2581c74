"""The table of layers against brute force: the catalogue, which was counted, and gradients."""

from __future__ import annotations

import csv
import io
import json

import pytest
import torch
from torch import nn

from training.errors import TrainingError
from training.layer_table import LayerTable
from training.layer_trace import trace_layers
from training.models.catalogue import ARCHITECTURES
from training.models.registry import build_model
from training.shapes_alone import on_meta_device


def trace(name, size, classes=10, **options):
    with on_meta_device():
        net = build_model(name, classes=classes, options=options).eval()
    return trace_layers(net, (size, size))


def test_vgg16_keeps_15_237_608_values_for_a_picture():
    """61 MB; the lecture's 24 million and 96 MB count something twice."""
    table = LayerTable(architecture="vgg16", rows=trace("torchvision:vgg16", 224, classes=1000))
    assert table.values == 15_237_608
    assert table.parameters == 138_357_544
    weights = sum(row.parameters - row.shape[0] for row in table.rows if row.parameters)
    assert weights == 138_344_128
    sizes = [(row.shape, row.values) for row in table.rows if row.kind == "max-pool"]
    assert sizes == [
        ((64, 112, 112), 802_816),
        ((128, 56, 56), 401_408),
        ((256, 28, 28), 200_704),
        ((512, 14, 14), 100_352),
        ((512, 7, 7), 25_088),
    ]


def test_vgg16_has_the_weights_of_the_lectured_list():
    """Layer by layer, without biases; one of them, 36,864, is struck out there and right."""
    rows = trace("torchvision:vgg16", 224, classes=1000)
    assert [row.parameters - row.shape[0] for row in rows if row.parameters] == [
        *(1_728, 36_864, 73_728, 147_456, 294_912, 589_824, 589_824),
        *(1_179_648, *[2_359_296] * 5, 102_760_448, 16_777_216, 4_096_000),
    ]


def test_lenet5_sees_what_is_lectured():
    rows = trace("seed:lenet5", 32)
    assert [row.fields[0].size for row in rows] == [1, 5, 6, 14, 16, 32, 32, 32]
    assert [row.parameters for row in rows if row.parameters] == [156, 2_416, 48_120, 10_164, 850]


def test_resnet18_has_20_convolutions_with_its_projections():
    kinds = [row.kind for row in trace("torchvision:resnet18", 224)]
    assert kinds.count("convolution") == 20
    assert kinds.count("sum") == 8
    assert kinds.count("linear") == 1


LIGHT = [
    row
    for row in ARCHITECTURES
    if not any(slow in row.title for slow in ("1202", "1001", "bc250", "bc190", "nasnetalarge"))
]


@pytest.mark.e2e
@pytest.mark.parametrize("row", LIGHT, ids=lambda row: row.title)
def test_the_table_adds_up_for_every_architecture(row):
    assert_adds_up(row)


@pytest.mark.parametrize(
    "title",
    [
        "seed:lenet5_1998",
        "seed:alexnet_2012",
        "seed:googlenet_2014",
        "seed:conv_local",
        "seed:shufflenet_v1_x1_0",
        "seed:cifar_densenet_bc100_12",
        "seed:airbench",
        "torchvision:mobilenet_v2",
        "timm:convnext_atto",
        "timm:test_efficientnet",
    ],
)
def test_the_table_adds_up(title):
    assert_adds_up(next(row for row in ARCHITECTURES if row.title == title))


def assert_adds_up(row):
    with on_meta_device():
        net = build_model(row.name, classes=row.classes, options=row.options).eval()
    rows = trace_layers(net, (row.size, row.size))
    # What FlopCounterMode counts: test_catalogue.py.
    assert sum(one.multiply_adds for one in rows) == row.multiply_adds
    unused = sum(
        parameter.numel()
        for name, parameter in net.named_parameters()
        if "auxiliary." in name or "aux1." in name or "aux2." in name or "AuxLogits." in name
    )
    assert sum(one.parameters for one in rows) + unused == row.parameters
    # Nets whose classifier is a convolution average its maps, and then those below it.
    assert row.classes in [one.values for one in rows[-2:]]


def made_linear(net):
    """The network with every weight positive and nothing that could hide a path.

    A maximum has the gradient of one input, and ReLU of none: averages and identities see the same.
    """
    for path, module in list(net.named_modules()):
        if isinstance(module, nn.MaxPool2d):
            average = nn.AvgPool2d(
                module.kernel_size, module.stride, module.padding, module.ceil_mode
            )
            net.set_submodule(path, average)
        elif isinstance(module, nn.ReLU | nn.ReLU6 | nn.LocalResponseNorm | nn.SiLU):
            net.set_submodule(path, nn.Identity())
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.fill_(1 / parameter[0].numel() if parameter.ndim > 1 else 1.0)
    return net


def layer_output(net, path, image):
    caught = []
    handle = net.get_submodule(path).register_forward_hook(lambda *args: caught.append(args[2]))
    net(image)
    handle.remove()
    return caught[-1]


@pytest.mark.parametrize(
    ("name", "options", "size", "paths"),
    [
        ("seed:lenet5", {"channels": 3}, 44, ("c1", "c3")),
        ("seed:alexnet_2012", {}, 200, ("features.3", "features.4", "features.12")),
        ("seed:nin_cifar", {}, 40, ("features.0", "features.8", "features.12")),
        ("seed:googlenet_2014", {}, 130, ("stem.8", "inceptions.3a", "inceptions.3b.five")),
        ("seed:cifar_resnet20", {}, 64, ("stages.0.2", "stages.1.0.body", "stages.2.1")),
        ("seed:cifar_resnet20", {"shortcut": "B"}, 64, ("stages.1.2",)),
        ("seed:shufflenet_v1_x0_5", {}, 160, ("units.0", "units.1", "units.5.expand")),
        ("seed:cifar_densenet_bc100_12", {"depth": 22}, 48, ("blocks.2", "blocks.5")),
        ("torchvision:resnet18", {}, 200, ("maxpool", "layer1", "layer2.0")),
        ("torchvision:mobilenet_v2", {}, 160, ("features.2", "features.8")),
    ],
)
def test_fields_are_where_gradients_flow(name, options, size, paths):
    net = build_model(name, classes=3, options=options)
    net = made_linear(net).double().eval()
    if hasattr(net, "backbone"):
        net = net.backbone
    with torch.device("meta"):
        same = build_model(name, classes=3, options=options).eval()
    same = getattr(same, "backbone", same)
    rows = {row.path: row for row in trace_layers(same, (size, size))}
    for path in paths:
        image = torch.rand(1, 3, size, size, dtype=torch.double, requires_grad=True)
        out = layer_output(net, path, image)
        # The last row inside a module is the one that makes its output.
        row = [one for own, one in rows.items() if own == path or own.startswith(f"{path}.")][-1]
        assert row.shape == out.shape[1:]
        for place in (0, out.shape[2] // 2, out.shape[2] - 1):
            (gradient,) = torch.autograd.grad(
                out[0, :, place, place].sum(), image, retain_graph=True
            )
            touched = gradient[0].abs().sum(dim=0)
            for axis, field in enumerate(row.fields):
                pixels = touched.sum(dim=1 - axis).nonzero().flatten()
                assert (int(pixels[0]), int(pixels[-1])) == field.cut(place, size)


def test_a_squeeze_and_excitation_sees_the_whole_picture():
    rows = trace("timm:seresnet50", 64)
    gated = next(row for row in rows if row.kind == "product")
    assert gated.fields[0].cut(0, 64) == gated.fields[0].cut(5, 64) == (0, 63)


def test_a_picture_and_its_layers_may_be_oblong():
    with torch.device("meta"):
        net = build_model("seed:resnet18_v1", classes=3).eval()
    rows = trace_layers(net, (64, 96))
    assert rows[0].shape == (3, 64, 96)
    assert rows[1].shape == (64, 32, 48)
    assert [field.size for field in rows[-1].fields] == [64, 96]


def test_a_picture_too_small_is_refused_in_one_line():
    with pytest.raises(TrainingError, match=r"^images of 16 x 16 do not fit: "):
        trace("seed:alexnet_2012", 16)


def test_the_three_forms_tell_the_same():
    rows = trace("seed:googlenet_2014", 64)
    table = LayerTable(architecture="seed:googlenet_2014", rows=rows, unused_parameters=7)
    document = json.loads(table.to_json())
    lines = list(csv.DictReader(io.StringIO(table.to_csv())))
    assert len(document["layers"]) == len(lines) == len(rows)
    for told, line in zip(document["layers"], lines, strict=True):
        assert line["output_shape"] == "x".join(map(str, told["output_shape"]))
        assert int(line["parameters"]) == told["parameters"]
        assert told["activation_bytes"] == 4 * told["activation_values"]
    assert document["total"]["multiply_adds"] == table.multiply_adds
    text = table.to_text().splitlines()
    assert text[0].split() == [
        *("layer", "kind", "kernel", "stride", "padding", "output"),
        *("sees", "every", "from", "parameters", "mult-adds", "values"),
    ]
    assert text[-3] == f"parameters {table.parameters:,} (7 more in training)"
