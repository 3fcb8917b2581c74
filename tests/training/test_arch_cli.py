from __future__ import annotations

import csv
import io
import json

import pytest
from click.testing import CliRunner

from training.arch_cli import arch
from training.errors import TrainingError
from training.models.catalogue import ARCHITECTURES


def run(*arguments):
    result = CliRunner().invoke(arch, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_list_tells_every_architecture_under_its_family():
    printed = run("list")
    assert all(row.title in printed for row in ARCHITECTURES)
    line = next(line for line in printed.splitlines() if "torchvision:vgg16 " in line)
    assert "138,357,544 params" in line
    assert "15,470.3 M mult-adds" in line
    assert printed.index("\nSqueezeNet\n") < printed.index("torchvision:squeezenet1_1")


def test_list_can_be_read_by_programs_and_narrowed_to_a_family():
    rows = json.loads(run("list", "--json", "--family", "cifar"))
    assert {row["family"] for row in rows} == {"ResNet for CIFAR", "Fast on CIFAR"}
    resnet20 = next(row for row in rows if row["name"] == "seed:cifar_resnet20")
    assert resnet20["parameters"] == 269_722
    assert (resnet20["size"], resnet20["classes"]) == (32, 10)


def test_show_tells_each_layer_and_what_they_come_to():
    printed = run("show", "lenet5").splitlines()
    assert len(printed) == 1 + 8 + 3
    conv = next(line for line in printed if line.startswith("c3"))
    assert conv.split() == [
        "c3",
        "convolution",
        "5",
        "1",
        "0",
        "16x10x10",
        "14",
        "2",
        "0",
        "2,416",
        "240,000",
        "1,600",
    ]
    assert printed[-3:-1] == ["parameters 61,706", "multiply-adds 416,520"]


def test_show_takes_size_classes_options_and_other_forms():
    arguments = ("seed:resnet50_v1", "--input", "64x96", "--classes", "7")
    document = json.loads(run("show", *arguments, "--set", "shortcut=C", "--format", "json"))
    assert document["layers"][0]["output_shape"] == [3, 64, 96]
    assert document["layers"][-1]["output_shape"] == [7]
    assert document["total"]["parameters"] == 40_128_552 - 993 * 2049
    lines = list(csv.DictReader(io.StringIO(run("show", *arguments, "--format", "csv"))))
    assert lines[1]["layer"] == "stem.0"
    assert (lines[1]["kernel"], lines[1]["output_shape"]) == ("7x7", "64x32x48")


def test_show_tells_what_only_training_uses():
    printed = run("show", "seed:googlenet_2014")
    assert "parameters 6,998,552 (6,379,728 more in training)" in printed


def test_explain_size_tells_the_sum():
    printed = run("explain-size", "256x256x3", "conv11,s4,p5:96")
    assert "floor((256 - 11 + 2 x 5) / 4) + 1 = 64" in printed


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("show", "lenet6"), "expected one of seed, torchvision, timm and a name"),
        (("show", "lenet5", "--input", "32x"), "expected SIDE or HEIGHTxWIDTH"),
        (("show", "zfnet", "--input", "16"), "images of 16 x 16 do not fit"),
        (("show", "lenet5", "--set", "channels"), "expected KEY=VALUE"),
        (("show", "lenet5", "--set", "chanels=1"), "unexpected keyword argument 'chanels'"),
        (("explain-size", "32", "conv3:1"), "expected HEIGHTxWIDTH"),
    ],
)
def test_what_cannot_be_shown_is_refused_in_one_line(arguments, complaint):
    with pytest.raises(TrainingError, match=complaint):
        CliRunner().invoke(arch, arguments, catch_exceptions=False)
