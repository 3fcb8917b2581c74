"""NASNet-A (4 @ 1056), the mobile one (Zoph et al., arXiv 1707.07012), from timm's cells.

timm has the large net alone (`timm:nasnetalarge`) and fixes its six cells a stage; the cells
themselves are the same.
"""

from timm.models.nasnet import (
    CellStem0,
    CellStem1,
    FirstCell,
    NormalCell,
    ReductionCell0,
    ReductionCell1,
)
from torch import Tensor, nn
from torch.nn import functional

from training.models.classifier import Classifier

_PADDING = "same"


class NASNetAMobile(Classifier):
    """Normal cells in three stages; each cell sees the two before it. 564 M multiply-adds at 224.

    Args:
        classes: number of outputs.
        channels: of the images.
        cells: normal cells a stage (N of the paper).
        features: of the last stage; a multiple of 96.
        stem: channels of the first convolution.
        dropout: before the classifier.
    """

    def __init__(
        self,
        classes: int,
        channels: int = 3,
        cells: int = 4,
        features: int = 1056,
        stem: int = 32,
        dropout: float = 0.5,
    ) -> None:
        super().__init__(channels)
        if features < 96 or features % 96:
            raise ValueError(f"features must be a multiple of 96, got {features}")
        width = features // 24
        self.stem = nn.Sequential(
            nn.Conv2d(channels, stem, kernel_size=3, stride=2, bias=False),
            nn.BatchNorm2d(stem, eps=0.001),
        )
        self.stem_cell_0 = CellStem0(stem, num_channels=width // 4, pad_type=_PADDING)
        self.stem_cell_1 = CellStem1(stem, num_channels=width // 2, pad_type=_PADDING)
        self.stages = nn.ModuleList()
        self.reductions = nn.ModuleList()
        # Channels of the last cell and of the one before it.
        right, left = 2 * width, width
        for stage, reduce in enumerate((None, ReductionCell0, ReductionCell1)):
            inner = width * 2**stage
            if reduce is not None:
                self.reductions.append(reduce(left, inner, right, inner, pad_type=_PADDING))
                right = 4 * inner
            stage_cells: list[nn.Module] = [
                FirstCell(left, inner // 2, right, inner, pad_type=_PADDING)
            ]
            right, left = 6 * inner, right
            for _ in range(cells - 1):
                stage_cells.append(NormalCell(left, inner, right, inner, pad_type=_PADDING))
                right, left = 6 * inner, right
            self.stages.append(nn.ModuleList(stage_cells))
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(features, classes)

    def embed(self, images: Tensor) -> Tensor:
        """Return the averaged maps [N, features] of images of 32 pixels or more a side."""
        stem = self.stem(images)
        before = self.stem_cell_0(stem)
        x = self.stem_cell_1(stem, before)
        for stage, cells in enumerate(self.stages):
            assert isinstance(cells, nn.ModuleList)
            if stage > 0:
                # The cell after a reduction still sees the one before it, in the larger picture.
                x = self.reductions[stage - 1](x, before)
            for cell in cells:
                x, before = cell(x, before), x
        maps: Tensor = functional.relu(x)
        averaged: Tensor = self.dropout(maps.mean(dim=(2, 3)))
        return averaged
