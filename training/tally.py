"""What one epoch of training amounts to."""

import time

import numpy as np

_LOSS_PARTS = 16


class EpochTally:
    """Running means over an epoch, and its duration."""

    def __init__(self) -> None:
        self._started = time.perf_counter()
        self._losses: list[float] = []
        self._loss = 0.0
        self._right = 0
        self.images = 0

    def add(self, loss: float, right: int, images: int) -> None:
        """Count a batch: its mean loss in nats, and its images, `right` of them told right."""
        self._losses.append(loss)
        self._loss += loss * images
        self._right += right
        self.images += images

    @property
    def loss(self) -> float:
        """Mean loss of an image, in nats."""
        return self._loss / self.images

    @property
    def loss_parts(self) -> list[float]:
        """Mean losses of up to 16 equal parts of the epoch, in order."""
        parts = np.array_split(self._losses, min(_LOSS_PARTS, len(self._losses)))
        return [float(part.mean()) for part in parts]

    @property
    def top1(self) -> float:
        """Share of right answers."""
        return self._right / self.images

    @property
    def seconds(self) -> float:
        """Since the epoch began."""
        return time.perf_counter() - self._started
