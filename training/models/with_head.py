"""A library's network, parted before its last linear layer to export what that layer reads."""

from torch import Tensor, nn


class WithHead(nn.Module):
    """A backbone that yields features [N, D], and the linear layer that reads logits from them."""

    def __init__(self, backbone: nn.Module, head: nn.Linear) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head

    def forward(self, images: Tensor) -> Tensor:
        """Return logits [N, C] of normalised images, float [N, 3, H, W]."""
        return self.forward_with_embedding(images)[0]

    def forward_with_embedding(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits [N, C] and the features [N, D] that they are read from."""
        embedding = self.backbone(images)
        return self.head(embedding), embedding


def split_head(net: nn.Module, head_path: str) -> WithHead:
    """Take the linear layer at `head_path` (`fc`, `classifier.1`) out of `net`, which changes."""
    head = net.get_submodule(head_path)
    if not isinstance(head, nn.Linear):
        raise TypeError(f"{head_path} is a {type(head).__name__}, not a linear layer")
    parent_path, _, name = head_path.rpartition(".")
    setattr(net.get_submodule(parent_path), name, nn.Identity())
    return WithHead(net, head)
