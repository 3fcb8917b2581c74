"""Shapes without the compiler are PyTorch's own, and the compiler stays unloaded."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from training.models.registry import build_model
from training.shapes_alone import on_meta_device, run_for_shapes

aten = torch.ops.aten


def meta(*shape, dtype=torch.float32):
    return torch.empty(shape, device="meta", dtype=dtype)


def convolution(image, weight, stride, padding, dilation, groups, *, is_transposed=False):
    spread = ([stride] * 2, [padding] * 2, [dilation] * 2, is_transposed, [0, 0], groups)
    return aten.convolution.default, (image, weight, None, *spread)


CALLS = {
    "convolution": convolution(meta(2, 3, 25, 31), meta(8, 3, 7, 7), 2, 3, 1, 1),
    "depthwise": convolution(meta(1, 8, 9, 9), meta(8, 1, 3, 3), 1, 0, 2, 8),
    "transposed": convolution(meta(1, 8, 9, 9), meta(8, 4, 3, 3), 2, 1, 1, 1, is_transposed=True),
    "one dimension": (
        aten.convolution.default,
        (meta(2, 1, 9), meta(1, 1, 3), None, [1], [1], [1], False, [0], 1),
    ),
    "normalisation": (
        aten.native_batch_norm.default,
        (meta(1, 3, 5, 5), meta(3), meta(3), meta(3), meta(3), False, 0.1, 1e-5),
    ),
    "max-pool": (
        aten.max_pool2d_with_indices.default,
        (meta(1, 3, 25, 24), [3, 3], [2, 2], [0, 0], [1, 1], True),
    ),
    "average-pool": (aten.avg_pool2d.default, (meta(1, 3, 25, 24), [3, 3], [2, 2])),
    "adaptive": (aten._adaptive_avg_pool2d.default, (meta(2, 3, 25, 24), [6, 6])),
    "mean": (aten.mean.dim, (meta(2, 3, 5, 6), [-1, -2], True)),
    "mean over the images": (aten.mean.dim, (meta(2, 3, 5, 6), [0])),
    "mean of everything": (aten.mean.default, (meta(2, 3),)),
    "linear": (aten.addmm.default, (meta(5), meta(2, 7), meta(7, 5))),
    "product": (aten.mm.default, (meta(2, 7), meta(7, 5))),
    "sum in place": (aten.add_.Tensor, (meta(2, 3, 5), meta(2, 3, 5))),
    "spread sum in place": (aten.add_.Tensor, (meta(2, 3, 5), meta(3, 1))),
    "something else": (aten.relu.default, (meta(2, 3),)),
}


def outcome(run):
    """Shapes and dtypes, or the class of the error."""
    try:
        out = run()
    except RuntimeError as error:
        return type(error)
    # What is saved for the gradient differs between devices.
    first = out if torch.is_tensor(out) else out[0]
    return first.shape, first.dtype, first.device.type


@pytest.mark.parametrize("name", CALLS)
def test_shapes_are_those_of_the_meta_device(name):
    operator, arguments = CALLS[name]
    expected = outcome(lambda: operator(*arguments))
    assert expected is not RuntimeError
    assert outcome(lambda: run_for_shapes(operator, arguments, {})) == expected


@pytest.mark.parametrize(
    "call",
    [
        convolution(meta(1, 3, 5, 5), meta(8, 3, 7, 7), 1, 0, 1, 1),
        convolution(meta(1, 3, 9, 9), meta(8, 4, 3, 3), 1, 0, 1, 1),
        (aten.max_pool2d_with_indices.default, (meta(1, 3, 1, 1), [3, 3], [2, 2])),
        (aten.addmm.default, (meta(5), meta(2, 6), meta(7, 5))),
        (aten.add_.Tensor, (meta(2, 3), meta(2, 4))),
    ],
)
def test_what_does_not_fit_is_refused_as_there(call):
    operator, arguments = call
    assert outcome(lambda: operator(*arguments)) is RuntimeError
    assert outcome(lambda: run_for_shapes(operator, arguments, {})) is RuntimeError


def test_a_network_on_the_meta_device_is_the_same():
    with on_meta_device():
        net = build_model("torchvision:resnet18", classes=3)
    same = build_model("torchvision:resnet18", classes=3)
    assert {key: one.shape for key, one in net.state_dict().items()} == {
        key: one.shape for key, one in same.state_dict().items()
    }
    assert all(parameter.is_meta for parameter in net.parameters())


def test_the_arithmetic_of_resnet152_loads_no_compiler():
    """Its import takes 4 CPU-s, as much as all the rest."""
    program = """
import sys
from training.arch_cli import arch
arch(["show", "resnet152"], standalone_mode=False)
print(*{"torch._dynamo", "sympy"} & set(sys.modules), file=sys.stderr)
import torchvision
detector = sys.modules["torchvision.ops.roi_align"]
print(detector.is_compile_supported("cpu"), file=sys.stderr)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "multiply-adds 11,513,626,624" in done.stdout
    # The detector still gets an answer, of the real compiler.
    assert done.stderr.splitlines() == ["", "True"]
