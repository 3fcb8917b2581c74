import pytest
from torch import nn

from training.config import TrainRecipe
from training.errors import TrainingError
from training.freezing import freeze
from training.models.registry import build_model


def recipe(**options):
    return TrainRecipe(epochs=4, batch_size=1, **options)


@pytest.fixture
def net():
    return build_model("seed:cifar_resnet20", classes=3)


def trained(module):
    return {one.requires_grad for one in module.parameters()}


def norm_modes(module):
    return {one.training for one in module.modules() if isinstance(one, nn.BatchNorm2d)}


def test_stages_wake_one_after_the_other(net):
    stages = recipe(unfreeze_after_epochs={"stem": 3, "stages": 2, "stages.2": 1})
    expected = {0: "fff", 1: "fft", 2: "ftt", 3: "ttt"}
    for epoch, awake in expected.items():
        net.train()
        freeze(net, stages, epochs=epoch)
        found = [trained(part) for part in (net.stem, net.stages[1], net.stages[2])]
        assert found == [{letter == "t"} for letter in awake]
        assert trained(net.head) == {True}
        assert norm_modes(net.stages[1]) == {awake[1] == "t"}


def test_norms_of_resting_modules_may_go_on_measuring(net):
    net.train()
    freeze(net, recipe(unfreeze_after_epochs={"stages": 2}, frozen_norm="train"), epochs=0)
    assert trained(net.stages) == {False}
    assert norm_modes(net.stages) == {True}


def test_evaluation_mode_is_never_left(net):
    net.eval()
    freeze(net, recipe(unfreeze_after_epochs={"stages": 2}), epochs=3)
    assert norm_modes(net.stages) == {False}


def test_a_module_to_unfreeze_must_exist(net):
    with pytest.raises(TrainingError, match="no module layer4"):
        freeze(net, recipe(unfreeze_after_epochs={"layer4": 2}), epochs=0)
