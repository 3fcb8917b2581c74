"""Our own networks by name; each takes the number of classes, and options by keyword."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from torch import nn

from training.models.airbench import Airbench
from training.models.alexnet import AlexNet2012, ZFNet
from training.models.bipyramid import Bipyramid
from training.models.bn_inception import BNInception
from training.models.densenet import DENSENETS
from training.models.googlenet import GoogLeNet2014
from training.models.lenet import LeNet5, LeNet5Of1998
from training.models.locally_connected import ConvLocalNet
from training.models.network_in_network import NetworkInNetwork
from training.models.preactivation import PREACTIVATION_NETS
from training.models.resnet import RESNETS
from training.models.resnet9 import ResNet9
from training.models.shufflenet import SHUFFLENETS
from training.models.squeezenet import SqueezeNet11


def _nasnet_mobile(classes: int, **options: Any) -> nn.Module:
    from training.models.nasnet import (
        NASNetAMobile,  # of timm's cells, which take seconds to import
    )

    return NASNetAMobile(classes, **options)


SEED_MODELS: Mapping[str, Callable[..., nn.Module]] = {
    "airbench": Airbench,
    "airbench96": partial(Airbench, widths=(128, 512, 512), is_deep=True),
    # As deep, at the cost of the first and in a file of less than 10 MB.
    "airbench_deep": partial(Airbench, widths=(64, 192, 240), is_deep=True),
    # Twice the multiply-adds of that, in a file of less than 10 MB with weights of 16 bits.
    "airbench_wide": partial(Airbench, widths=(96, 288, 320), is_deep=True),
    "alexnet_2012": AlexNet2012,
    "bipyramid": Bipyramid,
    "bn_inception": BNInception,
    **DENSENETS,
    "conv_local": ConvLocalNet,
    "googlenet_2014": GoogLeNet2014,
    "lenet5": LeNet5,
    "lenet5_1998": LeNet5Of1998,
    "nasnet_a_mobile": _nasnet_mobile,
    "nin_cifar": NetworkInNetwork,
    "nin_imagenet": partial(NetworkInNetwork, is_for_imagenet=True),
    **PREACTIVATION_NETS,
    **RESNETS,
    "resnet9": ResNet9,
    **SHUFFLENETS,
    "squeezenet1_1": SqueezeNet11,
    "zfnet": ZFNet,
    "zfnet_wide": partial(ZFNet, is_wide=True),
}
