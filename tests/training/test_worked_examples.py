"""The small sums that lectures do by hand, done by the code that trains."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from training.models.resnet import Residual


def convolve(image, kernel):
    image, kernel = (torch.as_tensor(one, dtype=torch.float64) for one in (image, kernel))
    return functional.conv2d(image[None, None], kernel[None, None])[0, 0]


def test_box_kernel_blurs():
    spot = torch.zeros(5, 5)
    spot[2, 2] = 9.0
    spread = convolve(spot, torch.full((3, 3), 1 / 9))
    assert torch.allclose(spread, torch.ones(3, 3).double())
    noise = torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
    blurred = convolve(noise, torch.full((3, 3), 1 / 9))
    assert float(blurred.std()) == pytest.approx(float(noise.std()) / 3, rel=0.1)


@pytest.mark.parametrize(
    "kernel", [[[1, -1], [1, -1]], [[1, 0, -1], [1, 0, -1], [1, 0, -1]]], ids=["2x2", "3x3"]
)
def test_edge_kernel_answers_to_vertical_edges_alone(kernel):
    vertical = torch.zeros(6, 6)
    vertical[:, :3] = 1.0
    found = convolve(vertical, kernel)
    assert found.max() == len(kernel)
    assert found.any(dim=0).sum() == len(kernel[0]) - 1  # at the edge and nowhere else
    assert not convolve(vertical.T, kernel).any()
    assert not convolve(torch.ones(6, 6), kernel).any()


def test_cross_kernel_answers_most_to_a_black_cross():
    """Of all 512 pictures of 3x3, black 0 and white 1, none is answered more strongly."""
    kernel = torch.tensor([[-1, 1, -1], [1, -1, 1], [-1, 1, -1]])
    # Black on the diagonals and in the middle, white between.
    cross = (kernel + 1) / 2
    best = float(convolve(cross, kernel))
    assert best == 4
    pictures = (torch.arange(512)[:, None] >> torch.arange(9) & 1).view(512, 3, 3)
    answers = [float(convolve(picture, kernel)) for picture in pictures]
    assert sum(answer == best for answer in answers) == 1
    assert max(answers) == best


def test_lectured_filters_find_the_diagonal_of_the_6x6_picture():
    picture = [
        [1, 0, 0, 0, 0, 1],
        [0, 1, 0, 0, 1, 0],
        [0, 0, 1, 1, 0, 0],
        [1, 0, 0, 0, 1, 0],
        [0, 1, 0, 0, 1, 0],
        [0, 0, 1, 0, 1, 0],
    ]
    diagonal = [[1, -1, -1], [-1, 1, -1], [-1, -1, 1]]
    found = convolve(picture, diagonal)
    assert found.shape == (4, 4)
    assert found[0, 0] == 3 == found.max()
    vertical = [[-1, 1, -1], [-1, 1, -1], [-1, 1, -1]]
    found = convolve(picture, vertical)
    assert found.max() == 3
    assert (found == 3).nonzero().tolist() == [[3, 3]]  # of the line at the lower right


def test_a_kernel_of_a_single_one_passes_its_maps_on():
    """With padding that keeps the size, so a deep network can hold a shallower one."""
    identity = torch.zeros(1, 1, 3, 3)
    identity[..., 1, 1] = 1
    image = torch.randn(1, 1, 7, 9)
    assert torch.equal(functional.conv2d(image, identity, padding="same"), image)


def test_update_through_1x1_convolution_max_pool_and_cross_entropy():
    x = torch.tensor([[[1, -0.5], [2, -2]], [[-2, 1], [-1.5, 1]], [[1, 0], [0, 0]]])[None]
    target = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    layer = nn.Conv2d(3, 1, kernel_size=1, bias=False)
    nn.init.ones_(layer.weight)
    convolved = layer(x)
    assert torch.equal(convolved[0, 0], torch.tensor([[0, 0.5], [0.5, -1]]))
    # The padding of the lecture is zeros; PyTorch's pooling pads with minus infinity.
    pooled = functional.max_pool2d(functional.pad(convolved, (1, 1, 1, 1)), 2, stride=2)[0, 0]
    assert torch.equal(pooled, torch.tensor([[0, 0.5], [0.5, 0]]))
    # Where the target is 0 the pooled value is 0 as well, whose term the lecture leaves out.
    loss = -(target * pooled.clamp_min(1e-9).log()).sum()
    assert float(loss.detach()) == pytest.approx(2 * math.log(2))
    loss.backward()
    assert layer.weight.grad.flatten().tolist() == [-3, 1, 0]
    torch.optim.SGD(layer.parameters(), lr=1.0).step()
    assert layer.weight.flatten().tolist() == [4, 0, 1]


def test_gradient_of_a_residual_block_is_one_more_than_that_of_its_body():
    body = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False), nn.Conv2d(1, 1, 1, bias=False))
    nn.init.constant_(body[0].weight, 0.3)
    nn.init.constant_(body[1].weight, -0.7)
    r = 0.3 * -0.7
    x = torch.ones(1, 1, 1, 1, requires_grad=True)
    for kind, expected in (("B", 1 + r), ("plain", r)):
        block = Residual(body, 1, 1, stride=1, kind=kind)
        # Past the block's last ReLU, which is the identity where it is alive.
        out = block(x) if kind == "B" else body(x)
        (gradient,) = torch.autograd.grad(out.sum(), x)
        assert float(gradient) == pytest.approx(expected)


def test_gradient_through_two_residual_blocks_keeps_a_highway():
    w0, w1, w2, w3 = (torch.tensor(w, dtype=torch.double) for w in (0.5, 0.25, 0.125, 2.0))
    w0.requires_grad_()
    x = torch.tensor(3.0, dtype=torch.double)
    y = torch.relu(w1 * torch.relu(w0 * x) + x)
    with_skip = torch.relu(torch.relu(w2 * y) * w3 + y)
    without = torch.relu(torch.relu(w2 * torch.relu(w1 * torch.relu(w0 * x))) * w3)
    assert torch.autograd.grad(with_skip, w0)[0] == (w3 * w2 + 1) * w1 * x
    assert torch.autograd.grad(without, w0)[0] == w3 * w2 * w1 * x


def test_numerical_gradients_agree_with_the_analytic_ones():
    torch.manual_seed(0)
    block = Residual(
        nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.Tanh(), nn.Conv2d(3, 2, 1)), 2, 2, 1, "B"
    ).double()
    x = torch.randn(1, 2, 4, 4, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(block, (x,))

    class WithWrongGradient(torch.autograd.Function):
        @staticmethod
        def forward(_ctx, x):
            return x.square()

        @staticmethod
        def backward(_ctx, *gradients):
            return 3 * gradients[0]

    with pytest.raises(RuntimeError, match="Jacobian mismatch"):
        torch.autograd.gradcheck(WithWrongGradient.apply, (x,))


def test_gradient_of_a_kernel_is_the_sum_over_the_places_it_was_at():
    kernel = torch.randn(1, 1, 2, 2, dtype=torch.double, requires_grad=True)
    image = torch.randn(1, 1, 4, 5, dtype=torch.double)
    above = torch.randn(1, 1, 3, 4, dtype=torch.double)  # of the loss, at each place
    (functional.conv2d(image, kernel) * above).sum().backward()
    windows = functional.unfold(image, kernel_size=2)  # [1, 4, 12]
    assert torch.allclose(kernel.grad.flatten(), (windows * above.flatten()).sum(dim=2)[0])


def test_dropout_does_nothing_when_it_is_no_longer_trained():
    """As what is left in training is divided by the share that is kept."""
    torch.manual_seed(0)
    dropout, ones = nn.Dropout(0.25), torch.ones(100_000)
    kept = dropout(ones)
    assert set(kept.tolist()) == {0.0, float(torch.tensor(1 / 0.75))}
    assert float(kept.mean()) == pytest.approx(1, abs=0.01)
    assert torch.equal(dropout.eval()(ones), ones)


def test_relu_and_max_pool_pass_gradients_as_lectured():
    a = torch.tensor([-1.0, 0.0, 2.0], requires_grad=True)
    a.relu().sum().backward()
    assert a.grad.tolist() == [0, 0, 1]
    window = torch.tensor([[[[1.0, 3.0], [2.0, 0.0]]]], requires_grad=True)
    functional.max_pool2d(window, 2).sum().backward()
    assert window.grad.flatten().tolist() == [0, 1, 0, 0]


def test_weights_lie_output_first_here_and_input_first_when_transposed():
    assert nn.Conv2d(3, 4, kernel_size=5).weight.shape == (4, 3, 5, 5)
    assert nn.ConvTranspose2d(3, 4, kernel_size=5).weight.shape == (3, 4, 5, 5)
