"""The numbers of the lectures, by the formulas; where a lecture is wrong, the right value."""

from __future__ import annotations

import contextlib
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from training.arithmetic import (
    Field,
    Window,
    convolution_multiply_adds,
    convolution_parameters,
    linear_parameters,
    local_parameters,
)
from training.errors import TrainingError
from training.size_explanation import explain, format_steps, read_layer


# Input, layer, output (height, width, channels), parameters.
@pytest.mark.parametrize(
    ("size", "layer", "shape", "parameters"),
    [
        # Tutorial 1.d, g: 5 filters of 5x5 on 32x32x3; the parameters do not depend on the stride.
        ("32x32x3", "conv5,nobias:5", (28, 28, 5), 375),
        ("32x32x3", "conv5,s3,nobias:5", (10, 10, 5), 375),
        # Tutorial 1.b: 20x20 needs padding; without it there are 19x19 places.
        ("100x100", "local10,s5,nobias:1", (19, 19, 1), 36_100),
        ("105x105", "local10,s5,nobias:1", (20, 20, 1), 40_000),
        # Tutorial 1.a, c.
        ("100x100", "fc,nobias:1000", (1, 1, 1000), 10_000_000),
        ("100x100", "conv10,nobias:100", (91, 91, 100), 10_000),
        # Exam, problem 4 b.
        ("26x26x26", "conv7,s3,p1:5", (8, 8, 5), (7 * 7 * 26 + 1) * 5),
        # Exam, problem 7 b and c: 256 with padding 5 (without it: 62).
        ("256x256x3", "conv11,s4,p5:96", (64, 64, 96), 34_944),
        ("256x256x3", "conv11,s4:96", (62, 62, 96), 34_944),
        # Exam, problem 7 of the first paper: 68 -> 64 -> 32.
        ("68x68", "conv5:6", (64, 64, 6), 156),
        ("64x64x6", "maxpool2", (32, 32, 6), 0),
        # Quiz 18.
        ("224x224x3", "conv3,s2:68", (111, 111, 68), (27 + 1) * 68),
        # LeNet-5: the second convolution has 2,416, which makes 61,706 in all and not 59,706.
        ("14x14x6", "conv5:16", (10, 10, 16), 2_416),
        # Xception's example: a full convolution, then depthwise and pointwise.
        ("10x10x3", "conv3:64", (8, 8, 64), 1_792),
        ("10x10x3", "conv3,g3:3", (8, 8, 3), 30),
        ("8x8x3", "conv1:64", (8, 8, 64), 256),
        # Bias-free: 1,728 against 27 + 192.
        ("10x10x3", "conv3,nobias:64", (8, 8, 64), 1_728),
        # VGG-16: the second layer has 36,864 weights; the first hidden one 102,760,448.
        ("224x224x64", "conv3,p1,nobias:64", (224, 224, 64), 36_864),
        ("7x7x512", "fc,nobias:4096", (1, 1, 4096), 102_760_448),
        # The segmentation exam: 50 maps of 32x32 from 64x64, and fc1 from 1600 to 640.
        ("64x64x3", "conv4,s2,p1:50", (32, 32, 50), (4 * 4 * 3 + 1) * 50),
        ("4x4x100", "fc,nobias:640", (1, 1, 640), 1600 * 640),
        ("32x32x50", "deconv4,s2,p1:5", (64, 64, 5), 4 * 4 * 50 * 5 + 5),
    ],
)
def test_a_layer_puts_out_and_has_what_the_lectures_ask(size, layer, shape, parameters):
    (step,) = explain(size, [layer])
    assert step.shape == shape
    assert step.parameters == parameters


@pytest.mark.parametrize(
    ("size", "layers", "seen"),
    [
        ("224x224", ["conv3:1", "conv3:1", "conv3:1"], [3, 5, 7]),
        ("256x256x3", ["conv11,s4,p5:96", "maxpool3,s2,p1", "conv5,p2:256"], [11, 19, 51]),
        ("32x32", ["conv5:6", "maxpool2", "conv5:16", "maxpool2", "fc:120"], [5, 6, 14, 16, 32]),
        ("64x64x3", ["conv4,s2,p1:50", "maxpool2", "fc:640"], [4, 6, 64]),
        ("224x224", ["conv1:1"], [1]),
        ("224x224", ["conv224:1"], [224]),
        ("224x224", ["fc:1"], [224]),
        ("32x32", ["conv3,d2:1", "conv3,d4:1"], [5, 13]),
    ],
)
def test_a_stack_sees_what_the_lectures_ask(size, layers, seen):
    assert [step.fields[0].size for step in explain(size, layers)] == seen


def test_an_image_of_68x68_brings_3_136_values_to_the_classifier_of_lenet5():
    convolutions = ["conv5:6", "maxpool2", "conv5:16", "maxpool2"]
    shapes = [step.shape for step in explain("68x68", convolutions)]
    assert shapes[-1] == (14, 14, 16)
    assert math.prod(shapes[-1]) == 3_136
    # Or one more convolution with its pooling before the layers there are.
    assert explain("68x68", ["conv5:1", "maxpool2"])[-1].shape[:2] == (32, 32)


def test_three_3x3_see_as_much_as_one_7x7_with_fewer_weights():
    three = explain("32x32x64", ["conv3,p1,nobias:64"] * 3)
    one = explain("32x32x64", ["conv7,p3,nobias:64"])
    assert three[-1].fields == one[-1].fields
    assert [sum(step.parameters for step in steps) for steps in (three, one)] == [
        3 * 9 * 64**2,
        49 * 64**2,
    ]


def test_inception_module_costs_854_million_naive_and_271_million_reduced():
    """The lecture's 358 million for the second counts its 3x3 convolution twice."""

    def cost(size, *layers):
        return sum(step.multiply_adds for step in explain(size, layers))

    size = "28x28x256"
    branches = [["conv1:128"], ["conv3,p1:192"], ["conv5,p2:96"], ["maxpool3,s1,p1"]]
    shapes = [explain(size, branch)[-1].shape for branch in branches]
    assert {shape[:2] for shape in shapes} == {(28, 28)}
    assert sum(shape[2] for shape in shapes) == 672
    naive = [cost(size, layer) for layer in ("conv1:128", "conv3,p1:192", "conv5,p2:96")]
    assert sum(naive) == 854_196_224
    reduced = [
        cost(size, "conv1:128"),
        cost(size, "conv1:64", "conv3,p1:192"),
        cost(size, "conv1:64", "conv5,p2:96"),
        cost(size, "maxpool3,s1,p1", "conv1:64"),
    ]
    assert sum(reduced) == 271_351_808
    assert sum(reduced) + 28 * 28 * 192 * 9 * 64 == 358_055_936


def test_quiz_27_has_12_132_352_multiplications():
    steps = explain("32x32x128", ["conv1:16", "conv5:32"])
    assert steps[-1].shape == (28, 28, 32)
    assert sum(step.multiply_adds for step in steps) == 12_132_352


def test_quiz_19_has_87_655_parameters():
    layers = ["conv3:15", "maxpool2", "conv3:10", "fc:50", "fc:25"]
    steps = explain("32x32x3", layers)
    assert [step.shape for step in steps[:3]] == [(30, 30, 15), (15, 15, 15), (13, 13, 10)]
    norms = 2 * 15 + 2 * 10  # scales and shifts; as many running statistics are no parameters
    assert sum(step.parameters for step in steps) + norms == 87_655


def test_quiz_17_is_1_250_iterations():
    assert explain("10000x8", ["maxpool8x8"])[0].shape[0] == 10_000 // 8 == 1_250


def test_the_explanation_shows_the_sum():
    told = format_steps(explain("256x256x3", ["conv11,s4,p5:96", "maxpool3,s2,ceil", "fc:10"]))
    assert "floor((256 - 11 + 2 x 5) / 4) + 1 = 64" in told
    assert "ceil((64 - 3 + 2 x 0) / 2) + 1 = 32" in told
    assert "98304 inputs to 10 outputs" in told
    assert "parameters 34,944, multiply-adds 142,737,408" in told


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("cnv3:4", "expected conv"),
        ("conv3", "how many outputs"),
        ("conv:3", "there is no kernel"),
        ("fc3:3", "fc has no kernel"),
        ("maxpool2:3", "keeps its channels"),
        ("conv3,q1:3", "what is q1"),
        ("conv3,s0:3", "begin at 1"),
        ("conv3:0", "begin at 1"),
    ],
)
def test_a_layer_that_means_nothing_is_refused(text, complaint):
    with pytest.raises(TrainingError, match=complaint):
        read_layer(text)


@pytest.mark.parametrize(
    ("size", "layer", "complaint"),
    [
        ("5", "conv3:1", "expected HEIGHTxWIDTH"),
        ("0x5", "conv3:1", "expected HEIGHTxWIDTH"),
        ("5x5", "conv7:1", "does not fit into 5"),
        ("5x5x3", "conv3,g2:4", "2 groups do not divide 3 and 4"),
    ],
)
def test_what_does_not_fit_is_refused(size, layer, complaint):
    with pytest.raises(TrainingError, match=complaint):
        explain(size, [layer])


@settings(deadline=None)
@given(st.text(alphabet="convmaxpl0123456789,spdgx:", max_size=20))
def test_no_text_of_a_layer_breaks_the_reader(text):
    with contextlib.suppress(TrainingError):
        read_layer(text)


windows = st.builds(
    Window,
    kernel=st.integers(1, 7),
    stride=st.integers(1, 4),
    padding=st.integers(0, 3),
    dilation=st.integers(1, 3),
    is_rounded_up=st.booleans(),
)


@settings(deadline=None)
@given(windows, st.integers(1, 40))
def test_sizes_are_those_of_pytorch(window, size):
    pooling = window.is_rounded_up
    if pooling and (window.padding > window.kernel // 2 or window.stride > window.extent):
        return  # PyTorch refuses the first; the second leaves windows wholly in the padding
    make = (
        nn.MaxPool1d(window.kernel, window.stride, window.padding, window.dilation, ceil_mode=True)
        if pooling
        else nn.Conv1d(1, 1, window.kernel, window.stride, window.padding, window.dilation)
    ).to("meta")
    try:
        found = window.output_size(size)
    except TrainingError:
        with pytest.raises(RuntimeError):
            make(torch.empty(1, 1, size, device="meta"))
        return
    assert make(torch.empty(1, 1, size, device="meta")).shape[-1] == found


@settings(deadline=None)
@given(
    channels_in=st.integers(1, 6),
    channels_out=st.integers(1, 6),
    kernel=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    has_bias=st.booleans(),
)
def test_parameters_are_those_of_pytorch(channels_in, channels_out, kernel, has_bias):
    from training.models.locally_connected import LocallyConnected2d

    def count(layer):
        return sum(parameter.numel() for parameter in layer.parameters())

    conv = nn.Conv2d(channels_in, channels_out, kernel, bias=has_bias)
    assert count(conv) == convolution_parameters(
        channels_in, channels_out, kernel, has_bias=has_bias
    )
    linear = nn.Linear(channels_in, channels_out, bias=has_bias)
    assert count(linear) == linear_parameters(channels_in, channels_out, has_bias=has_bias)
    local = LocallyConnected2d(channels_in, channels_out, (5, 6), kernel[0], has_bias=has_bias)
    places = local.out_size[0] * local.out_size[1]
    square = (kernel[0], kernel[0])
    assert count(local) == local_parameters(
        channels_in, channels_out, square, places, has_bias=has_bias
    )
    assert convolution_multiply_adds(channels_in, channels_out, kernel) == count(
        nn.Conv2d(channels_in, channels_out, kernel, bias=False)
    )


@settings(deadline=None)
@given(st.lists(windows, max_size=4))
def test_fields_can_be_joined_in_any_order(stack):
    field = Field()
    for window in stack:
        field = field.through(window)
    other = field.through(Window(kernel=3, padding=1))
    assert field.joined(other) == other.joined(field)
    assert field.joined(field) == field
