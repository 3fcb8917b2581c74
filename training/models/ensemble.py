"""Several networks as one: their answers averaged, or their features joined under one classifier.

Joining the averaged last maps of several nets below one linear layer is what won ILSVRC 2016's
classification (Shao et al., "Good Practices for Deep Feature Fusion").
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from training.models.classifier import EmbeddingModel

MEANS = ("probabilities", "logits")


class Ensemble(nn.Module):
    """The weighted mean of what its members answer.

    Args:
        members: networks over the same classes.
        weights: one a member, of any sum; None is the same for all.
        scales: what each member's images are enlarged by; None is 1 for all. One network several
            times, at several scales, is multi-scale evaluation with weights of its own each.
        mean: of probabilities, or of logits (which is the geometric mean of the probabilities).
    """

    def __init__(
        self,
        members: Sequence[nn.Module],
        weights: Sequence[float] | None = None,
        scales: Sequence[float] | None = None,
        mean: str = "probabilities",
    ) -> None:
        super().__init__()
        if mean not in MEANS:
            raise ValueError(f"mean must be one of {', '.join(MEANS)}, got {mean}")
        self.members = nn.ModuleList(members)
        self.mean = mean
        self.scales = _one_a_member(scales, len(members), "scales")
        shares = torch.tensor(_one_a_member(weights, len(members), "weights"))
        self.register_buffer("shares", shares / shares.sum(), persistent=False)
        self.shares: Tensor

    def forward(self, images: Tensor) -> Tensor:
        """Return logits [N, C] whose softmax is the mean, of images [N, channels, H, W]."""
        answers = torch.stack(
            [
                member(_scaled(images, scale))
                for member, scale in zip(self.members, self.scales, strict=True)
            ]
        )  # [members, N, C]
        shares = self.shares.view(-1, 1, 1)
        if self.mean == "logits":
            return (shares * answers).sum(dim=0)
        return (torch.log_softmax(answers, dim=2) + shares.log()).logsumexp(dim=0)


class FeatureFusion(nn.Module):
    """One linear classifier on the embeddings of all members, side by side.

    Args:
        members: networks that give an embedding; their own linear classifiers are taken off.
        classes: number of outputs.
        size: pixels a side that the widths of the embeddings are found with.
        scales: as of `Ensemble`.
    """

    def __init__(
        self,
        members: Sequence[nn.Module],
        classes: int,
        size: int,
        scales: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        for member in members:
            if isinstance(getattr(member, "head", None), nn.Linear):
                member.head = nn.Identity()
        self.members = nn.ModuleList(members)
        self.scales = _one_a_member(scales, len(members), "scales")
        was_training = self.training
        self.eval()
        with torch.no_grad():
            width = self._embed(torch.zeros(1, 3, size, size)).shape[1]
        self.train(was_training)
        self.head = nn.Linear(width, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits [N, C] of images [N, channels, H, W]."""
        return self.forward_with_embedding(images)[0]

    def forward_with_embedding(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits [N, C] and the joined embeddings [N, sum of D]."""
        embedding = self._embed(images)
        return self.head(embedding), embedding

    def _embed(self, images: Tensor) -> Tensor:
        found = []
        for member, scale in zip(self.members, self.scales, strict=True):
            if not isinstance(member, EmbeddingModel):
                raise ValueError(f"{type(member).__name__} gives no embedding to fuse")
            found.append(member.forward_with_embedding(_scaled(images, scale))[1])
        return torch.cat(found, dim=1)


def _scaled(images: Tensor, scale: float) -> Tensor:
    if scale == 1:
        return images
    return functional.interpolate(images, scale_factor=scale, mode="bilinear", align_corners=False)


def _one_a_member(given: Sequence[float] | None, members: int, name: str) -> list[float]:
    found = [1.0] * members if given is None else list(given)
    if len(found) != members or not members or min(found) <= 0:
        raise ValueError(f"{name} must be {members} numbers above 0, got {found}")
    return found
