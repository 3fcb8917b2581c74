"""A quick look at accuracy inside the training process."""

import contextlib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from training.loading import Batch
from training.probe import ReluWatch


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """Mean cross-entropy (nats), share of right answers, and of ReLUs that never fire."""

    images: int
    loss: float
    top1: float
    dead_relus: float | None


@torch.no_grad()
def evaluate_views(
    net: nn.Module,
    normalise: nn.Module,
    batches: Iterable[Batch],
    *,
    weights: Mapping[str, Tensor] | None = None,
    is_flip_averaged: bool = False,
) -> Evaluation:
    """Measure a network in evaluation mode; the mode it was in comes back.

    A quick look inside the training process: what a bundle states is measured by `evaluate.py`.

    Args:
        net: normalised [N, 3, H, W] -> logits [N, C].
        normalise: on the network's device.
        batches: uint8 [N, H, W, 3] and int64 [N].
        weights: a state dict to use in place of the network's own.
        is_flip_averaged: average the probabilities of each view and its mirror image.
    """
    state = net.state_dict() if weights is None else dict(weights)
    was_training = net.training
    net.eval()
    device = next(net.parameters()).device
    images, loss, right = 0, 0.0, 0
    watch = ReluWatch()
    for views, labels in batches:
        shown = [normalise(views.to(device))]
        if is_flip_averaged:
            shown.append(shown[0].flip(3))
        with contextlib.nullcontext() if images else watch:
            logits = [functional_call(net, state, (view,)).float() for view in shown]
        # Logarithms throughout: a probability that is too small for a float32 has one all the same.
        log_shares = torch.stack([one.log_softmax(dim=1) for one in logits])
        log_mean = (log_shares.logsumexp(dim=0) - math.log(len(logits))).cpu()
        images += len(labels)
        loss += float(functional.nll_loss(log_mean, labels, reduction="sum"))
        right += int((log_mean.argmax(dim=1) == labels).sum())
    net.train(was_training)
    return Evaluation(
        images=images, loss=loss / images, top1=right / images, dead_relus=watch.dead_share
    )
