"""Every architecture of the catalogue, counted on the meta device: no weight is ever made."""

from __future__ import annotations

import math
import re

import pytest
import torch
import torchvision
from torch.utils.flop_counter import FlopCounterMode

from training.models.catalogue import ARCHITECTURES
from training.models.registry import JOINED, build_model
from training.models.seeds import SEED_MODELS
from training.shapes_alone import on_meta_device

# What papers, their authors' code or the libraries state: parameters, and multiply-adds to the
# digits that are given. Written down apart from the catalogue, which was counted.
STATED = {
    "seed:lenet5": (61_706, "0.42 M"),
    "seed:lenet5_1998": (60_000, None),
    "seed:alexnet_2012": (60_965_224, "724 M"),
    "seed:alexnet_2012 towers=1": (62_378_344, "1.135 G"),
    "torchvision:alexnet": (61_100_840, "714 M"),
    "seed:zfnet": (62_357_608, "1.17 G"),
    "seed:zfnet_wide": (107_627_624, "2.48 G"),
    "torchvision:vgg11": (132_863_336, "7.61 G"),
    "torchvision:vgg13": (133_047_848, "11.31 G"),
    "torchvision:vgg16": (138_357_544, "15.47 G"),
    "torchvision:vgg19": (143_667_240, "19.63 G"),
    "seed:nin_cifar": (966_986, "222 M"),
    "seed:nin_imagenet": (7_595_176, "0.97 G"),
    "seed:googlenet_2014": (13_378_280, "1.58 G"),
    "seed:googlenet_2014 has_auxiliary=False": (6_998_552, "1.58 G"),
    "torchvision:googlenet": (6_624_904, "1.50 G"),
    "torchvision:googlenet aux_logits=True": (13_004_888, "1.50 G"),
    "seed:bn_inception": (11_194_984, "2.02 G"),
    "torchvision:inception_v3": (23_834_568, "5.71 G"),
    "torchvision:inception_v3 aux_logits=True": (27_161_264, "5.71 G"),
    "timm:inception_v4": (42_679_816, "12.3 G"),
    "timm:inception_resnet_v2": (55_843_464, "13.2 G"),
    "timm:legacy_xception": (22_855_952, "8.36 G"),
    "seed:resnet34_v1 shortcut=A": (21_623_848, "3.64 G"),
    "seed:resnet34_v1 shortcut=B": (21_797_672, "3.66 G"),
    "seed:resnet34_v1 shortcut=C": (22_716_840, "3.83 G"),
    "seed:resnet34_v1 shortcut=plain": (21_623_848, "3.64 G"),
    "seed:resnet50_v1 shortcut=A": (22_780_456, "3.50 G"),
    "seed:resnet50_v1 shortcut=B": (25_557_032, "3.86 G"),
    "seed:resnet50_v1 shortcut=C": (40_128_552, "6.32 G"),
    "torchvision:resnet18": (11_689_512, "1.81 G"),
    "torchvision:resnet34": (21_797_672, "3.66 G"),
    "torchvision:resnet50": (25_557_032, "4.09 G"),
    "torchvision:resnet101": (44_549_160, "7.80 G"),
    "torchvision:resnet152": (60_192_808, "11.51 G"),
    "seed:cifar_resnet20": (269_722, "40.6 M"),
    "seed:cifar_resnet32": (464_154, "68.9 M"),
    "seed:cifar_resnet44": (658_586, "97.2 M"),
    "seed:cifar_resnet56": (853_018, "125 M"),
    "seed:cifar_resnet110": (1_727_962, "253 M"),
    "seed:cifar_resnet1202": (19_421_274, "2829 M"),
    "seed:cifar_preresnet164": (1_703_258, "248 M"),
    "seed:cifar_preresnet1001": (10_327_706, "1.49 G"),
    "timm:resnetv2_50": (25_549_352, "4.09 G"),
    "torchvision:wide_resnet50_2": (68_883_240, "11.4 G"),
    "torchvision:wide_resnet101_2": (126_886_696, "22.8 G"),
    "seed:wrn28_10": (36_479_194, "5.24 G"),
    "seed:wrn16_8": (10_961_370, "1.55 G"),
    "torchvision:resnext50_32x4d": (25_028_904, "4.23 G"),
    "torchvision:resnext101_32x8d": (88_791_336, "16.4 G"),
    "torchvision:resnext101_64x4d": (83_455_272, "15.5 G"),
    "timm:seresnet50": (28_088_024, "4.09 G"),
    "timm:seresnext50_32x4d": (27_559_896, "4.23 G"),
    "timm:legacy_senet154": (115_088_984, "20.7 G"),
    "seed:cifar_densenet_bc100_12": (769_162, "288 M"),
    "torchvision:densenet121": (7_978_856, "2.83 G"),
    "torchvision:densenet161": (28_681_000, "7.73 G"),
    "torchvision:densenet169": (14_149_480, "3.36 G"),
    "torchvision:densenet201": (20_013_928, "4.29 G"),
    "torchvision:squeezenet1_0": (1_248_424, "819 M"),
    "torchvision:squeezenet1_1": (1_235_496, "349 M"),
    "timm:mobilenetv1_100": (4_231_976, "569 M"),
    "torchvision:mobilenet_v2": (3_504_872, "301 M"),
    "seed:shufflenet_v1_x1_0": (1_865_728, "137 M"),
    "seed:shufflenet_v1_x2_0": (5_448_208, "508 M"),
    "torchvision:shufflenet_v2_x1_0": (2_278_604, "145 M"),
    "seed:nasnet_a_mobile": (5_289_978, "564 M"),
    "timm:nasnetalarge": (88_753_150, "23.8 G"),
    "torchvision:efficientnet_b0": (5_288_548, "0.386 G"),
    "torchvision:efficientnet_b7": (66_347_960, "37.7 G"),
    "seed:bipyramid": (4_609_190, "245 M"),
    "seed:airbench": (1_972_792, "118 M"),
    # 7.38 PFLOP for 40 epochs, three passes each; airbench96.py says 7.46.
    "seed:airbench96": (12_721_208, "615 M"),
    # As in Page's code, whose classifier has no bias.
    "seed:resnet9": (6_573_120, "379 M"),
    "timm:mobilenetv4_conv_small": (3_774_024, "186 M"),
    "timm:convnext_atto": (3_695_520, "547 M"),
    "timm:regnety_004": (4_344_144, "402 M"),
    "timm:repvgg_a0": (9_108_968, "1.51 G"),
    "timm:resnet10t": (5_435_488, None),
}
BY_TITLE = {row.title: row for row in ARCHITECTURES}
# Thousands of layers take seconds to build, even without weights.
SLOW = ("resnet1202", "preresnet1001", "bc250", "bc190", "inception_v4", "nasnetalarge", "senet154")


def build_on_meta(row):
    with on_meta_device():
        return build_model(row.name, classes=row.classes, options=row.options).eval()


@pytest.mark.parametrize(
    "title",
    [
        pytest.param(title, marks=[pytest.mark.e2e] * any(slow in title for slow in SLOW))
        for title in BY_TITLE
    ],
)
def test_the_catalogue_tells_what_the_network_counts(title):
    row = BY_TITLE[title]
    net = build_on_meta(row)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        logits = net(torch.empty(2, 3, row.size, row.size, device="meta"))
    assert logits.shape == (2, row.classes)
    assert sum(parameter.numel() for parameter in net.parameters()) == row.parameters
    # Two operations a multiply-add, two images.
    assert counter.get_total_flops() == 2 * 2 * row.multiply_adds


@pytest.mark.parametrize("title", STATED)
def test_the_catalogue_tells_what_the_literature_states(title):
    parameters, stated = STATED[title]
    row = BY_TITLE[title]
    assert row.parameters == parameters
    if stated is not None:
        number, unit = stated.split()
        digits = len(number.partition(".")[2])
        found = row.multiply_adds / {"M": 1e6, "G": 1e9}[unit]
        # Some state the rounded number, some the one cut off.
        assert float(number) in (round(found, digits), math.floor(found * 10**digits) / 10**digits)


@pytest.mark.parametrize(
    "title", [title for title in BY_TITLE if re.fullmatch(r"torchvision:\w+", title)]
)
def test_the_catalogue_tells_what_torchvision_states(title):
    weights = torchvision.models.get_model_weights(title.partition(":")[2]).DEFAULT
    # Its weights for this one come with the auxiliary head.
    row = BY_TITLE[f"{title} aux_logits=True" if "inception_v3" in title else title]
    assert row.parameters == weights.meta["num_params"]
    if weights.transforms().crop_size == [row.size]:
        assert row.multiply_adds / 1e9 == pytest.approx(weights.meta["_ops"], abs=6e-4)


def test_every_network_of_ours_is_in_the_catalogue():
    assert {f"seed:{name}" for name in SEED_MODELS} == {
        row.name for row in ARCHITECTURES if row.name.startswith("seed:")
    }
    assert not set(JOINED) & set(SEED_MODELS)
