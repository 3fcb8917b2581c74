from __future__ import annotations

import json

from click.testing import CliRunner

from training.arch_cli import arch
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
