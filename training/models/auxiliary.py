"""Auxiliary classifiers: heads in the middle of a network that only its training uses."""

from typing import Protocol, runtime_checkable

from torch import Tensor, nn

from training.models.with_head import WithHead


@runtime_checkable
class AuxiliaryModel(Protocol):
    """A network with classifiers in its middle."""

    # What their losses count beside that of the last classifier.
    auxiliary_weight: float

    def forward_with_auxiliary(self, images: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return logits [N, C] and those of the auxiliary classifiers, each [N, C]."""


class WithAuxiliary(WithHead):
    """A network of torchvision's, which in training mode returns a tuple, the main part first."""

    def __init__(self, backbone: nn.Module, head: nn.Linear, auxiliary_weight: float) -> None:
        super().__init__(backbone, head)
        self.auxiliary_weight = auxiliary_weight

    def forward_with_embedding(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits [N, C] and the features [N, D] that they are read from."""
        found = self.backbone(images)
        embedding = found[0] if isinstance(found, tuple) else found
        return self.head(embedding), embedding

    def forward_with_auxiliary(self, images: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return logits [N, C] and, in training mode, those of the auxiliary classifiers."""
        found = self.backbone(images)
        if not isinstance(found, tuple):
            return self.head(found), ()
        return self.head(found[0]), tuple(found[1:])


def logits_for_training(
    net: nn.Module, images: Tensor
) -> tuple[Tensor, list[tuple[float, Tensor]]]:
    """Return logits [N, C], and a weight with the logits of each auxiliary classifier."""
    if not isinstance(net, AuxiliaryModel):
        return net(images), []
    logits, others = net.forward_with_auxiliary(images)
    return logits, [(net.auxiliary_weight, other) for other in others]
