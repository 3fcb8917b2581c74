import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from training.config import TrainRecipe
from training.objective import Objective
from training.validation import evaluate_views

LABELS = np.array([0] * 6 + [1] * 3 + [2] * 1)


def make(**options):
    return Objective(TrainRecipe(epochs=1, batch_size=1, **options), LABELS, 3)


def logits():
    return torch.randn(4, 3, generator=torch.Generator().manual_seed(0))


def test_plain_is_cross_entropy_with_smoothing():
    targets = torch.tensor([0, 1, 2, 0])
    expected = functional.cross_entropy(logits(), targets, label_smoothing=0.1)
    assert torch.equal(make(label_smoothing=0.1)(logits(), targets), expected)
    # A smoothed target is a mixture with the uniform distribution.
    mixed = 0.9 * functional.one_hot(targets, 3) + 0.1 / 3
    assert torch.allclose(make()(logits(), mixed), expected)


def test_class_weights_make_each_class_count_the_same():
    objective = make(imbalance="class_weights")
    labels = torch.from_numpy(LABELS)
    scores = torch.randn(10, 3, generator=torch.Generator().manual_seed(1))
    losses = functional.cross_entropy(scores, labels, reduction="none")
    by_class = torch.stack([losses[labels == one].mean() for one in range(3)])
    assert torch.allclose(objective(scores, labels), by_class.mean())


def test_class_weights_take_shares_of_classes_too():
    objective = make(imbalance="class_weights")
    labels = torch.tensor([0, 1, 2, 0])
    shares = functional.one_hot(labels, 3).float()
    assert torch.allclose(objective(logits(), labels), objective(logits(), shares))


def test_adjusted_logits_are_least_at_what_the_priors_leave_unexplained():
    # A network that knows nothing and answers level scores is right under adjustment: the gradient
    # of the prior is gone from the mean over the data.
    level = torch.zeros(10, 3, requires_grad=True)
    labels = torch.from_numpy(LABELS)
    make(imbalance="logit_adjustment")(level, labels).backward()
    assert torch.allclose(level.grad.sum(dim=0), torch.zeros(3), atol=1e-7)
    plain = torch.zeros(10, 3, requires_grad=True)
    make()(plain, labels).backward()
    assert plain.grad.sum(dim=0).abs().max() > 0.1


@pytest.mark.parametrize("imbalance", ["none", "class_weights", "logit_adjustment"])
def test_the_parts_of_a_batch_add_up_to_the_whole(imbalance):
    objective = make(imbalance=imbalance)
    labels = torch.tensor([0, 1, 2, 0])
    halves = [objective(logits()[part], labels[part]) for part in (slice(0, 2), slice(2, 4))]
    assert torch.allclose(sum(halves) / 2, objective(logits(), labels))


def test_a_class_without_images_stays_finite():
    objective = Objective(TrainRecipe(epochs=1, batch_size=1, imbalance="class_weights"), LABELS, 4)
    assert torch.isfinite(objective(torch.zeros(4, 4), torch.tensor([0, 1, 2, 3])))


def test_a_sure_and_wrong_answer_has_a_finite_validation_loss():
    """A share below the least float32 has a logarithm all the same; without flips and with."""

    class Sure(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.tensor(1.0))

        def forward(self, images):
            return self.scale * torch.tensor([[0.0, 300.0]]).expand(len(images), 2)

    batches = [(torch.zeros(4, 3, 8, 8), torch.tensor([0, 0, 1, 1]))]
    for is_flipped in (False, True):
        found = evaluate_views(Sure(), nn.Identity(), batches, is_flip_averaged=is_flipped)
        assert found.loss == pytest.approx(150.0)
        assert found.top1 == 0.5
