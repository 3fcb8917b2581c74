"""Packing changes how a gradient is computed, not what it is."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from training.models import packed_convolution
from training.models.packed_convolution import Packed, PackedConvolution, pack


@settings(deadline=None, max_examples=40)
@given(
    images=st.integers(1, 40),
    height=st.integers(1, 17),
    width=st.integers(1, 17),
    channels=st.integers(1, 3),
    seed=st.integers(0, 2**31),
)
def test_gradients_are_those_of_the_plain_convolution(images, height, width, channels, seed):
    generator = torch.Generator().manual_seed(seed)
    shape = {"generator": generator, "dtype": torch.float64, "requires_grad": True}
    x = torch.randn(images, channels, height, width, **shape)
    weight = torch.randn(4, channels, 3, 3, **shape)
    plain, packed = functional.conv2d(x, weight, padding=1), Packed.apply(x, weight)
    assert torch.equal(plain, packed)
    gradient = torch.randn(plain.shape, generator=generator, dtype=torch.float64)
    wanted = torch.autograd.grad(plain, (x, weight), gradient)
    found = torch.autograd.grad(packed, (x, weight), gradient)
    for one, other in zip(wanted, found, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-9, atol=1e-9)


def test_a_mosaic_holds_each_image_once_between_zeros():
    x = torch.arange(1.0, 1 + 8 * 2 * 3 * 2).reshape(8, 2, 3, 2)
    mosaics = pack(x, 2)
    assert mosaics.shape == (2, 2, 8, 6)
    assert torch.equal(mosaics[0, :, 4:7, 3:5], x[3])
    assert torch.equal(mosaics[1, :, :3, 3:5], x[5])
    assert not mosaics[:, :, 3::4].any()
    assert not mosaics[:, :, :, 2::3].any()
    assert mosaics.sum() == x.sum()


@pytest.mark.parametrize("has_unit", [True, False])
def test_only_what_learns_in_bf16_on_a_matrix_unit_is_packed(monkeypatch, has_unit):
    monkeypatch.setattr(packed_convolution, "_has_matrix_unit", lambda _: has_unit)
    convolution = PackedConvolution(3, 5)
    x = torch.randn(4, 3, 7, 7)

    def kind(x):
        return convolution(x).grad_fn.name()

    assert "Packed" not in kind(x)  # float32
    with torch.autocast("cpu", torch.bfloat16):
        assert ("Packed" in kind(x.bfloat16())) == has_unit
        convolution.eval()
        assert "Packed" not in kind(x.bfloat16())


def test_it_is_drawn_as_a_plain_convolution_is():
    torch.manual_seed(3)
    packed = PackedConvolution(3, 5)
    torch.manual_seed(3)
    plain = nn.Conv2d(3, 5, kernel_size=3, padding=1, bias=False)
    assert torch.equal(packed.weight, plain.weight)
    assert packed.state_dict().keys() == plain.state_dict().keys()
