import copy

import pytest
import torch
from torch import nn

from training.errors import TrainingError
from training.gradient_checkpointing import checkpoint_gradients
from training.hardware import cpu_threads
from training.models.registry import build_model

NETS = {"seed:cifar_resnet20": 0.7, "timm:test_resnet": 0.8}


@pytest.fixture(autouse=True)
def single_thread():
    # Threads of tiny operations mostly wait for each other.
    with cpu_threads(1):
        yield


def trained(net, steps=2):
    """Returns the state after some steps, and the bytes that a forward pass keeps."""
    torch.manual_seed(0)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9)
    kept = {}

    def pack(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    for step in range(steps):
        images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(step))
        kept.clear()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            logits = net(images)
        optimizer.zero_grad()
        nn.functional.cross_entropy(logits, torch.tensor([0, 1, 2, 0])).backward()
        optimizer.step()
    return net.state_dict(), sum(kept.values())


@pytest.mark.parametrize("name", NETS)
def test_less_is_kept_and_the_very_same_is_learned(name):
    torch.manual_seed(0)
    plain = build_model(name, classes=3)
    saving = copy.deepcopy(plain)
    checkpoint_gradients(saving)
    expected, much = trained(plain)
    state, little = trained(saving)
    weights = sum(one.numel() * 4 for one in plain.parameters())
    assert little - weights < NETS[name] * (much - weights)
    assert state.keys() == expected.keys()
    assert all(torch.allclose(state[key], expected[key], atol=1e-6) for key in expected)


def test_evaluation_goes_on_as_before():
    net = build_model("timm:test_resnet", classes=3).eval()
    images = torch.randn(2, 3, 64, 64)
    expected = net(images)
    checkpoint_gradients(net)
    assert torch.equal(net(images), expected)


def test_a_network_without_a_chain_is_refused():
    with pytest.raises(TrainingError, match="LeNet5: has no"):
        checkpoint_gradients(build_model("seed:lenet5", classes=3))
