"""What our networks share: an embedding, a head that reads logits from it, grey input at will."""

from typing import Protocol, runtime_checkable

from torch import Tensor, nn


@runtime_checkable
class EmbeddingModel(Protocol):
    """A network that also gives the features that its classifier reads."""

    def forward_with_embedding(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits [N, C] and the embedding [N, D], in one pass."""


class Classifier(nn.Module):
    """A network whose `head` reads the logits from what `embed` returns.

    Args:
        channels: of the images it is shown. With 1 it also takes colour, and sees its mean.
    """

    head: nn.Module

    def __init__(self, channels: int) -> None:
        super().__init__()
        if channels < 1:
            raise ValueError(f"channels must be 1 or more, got {channels}")
        self.channels = channels

    def embed(self, images: Tensor) -> Tensor:
        """Return the embedding [N, D] of normalised images, float [N, channels, H, W]."""
        raise NotImplementedError

    def forward(self, images: Tensor) -> Tensor:
        """Return logits [N, C] of normalised images, float [N, channels, H, W]."""
        return self.forward_with_embedding(images)[0]

    def forward_with_embedding(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits [N, C] and the embedding [N, D] that they are read from."""
        embedding = self.embed(self.seen(images))
        return self.head(embedding), embedding

    def seen(self, images: Tensor) -> Tensor:
        """Return the images as the first layer takes them: colour averaged for a grey network."""
        is_colour = self.channels == 1 and images.shape[1] > 1
        return images.mean(dim=1, keepdim=True) if is_colour else images
