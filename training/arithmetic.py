"""The arithmetic of layers, without tensors: output sizes, parameters, multiply-adds, what is seen.

    window = Window(kernel=11, stride=4, padding=5)
    window.output_size(256)                          # 64
    Field().through(window).through(Window(kernel=3, stride=2, padding=1)).size   # 19

Every function is for one axis; pictures have two of them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from training.errors import TrainingError


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """How a convolution or a pooling moves along one axis. All in pixels of what it is given.

    Attributes:
        kernel: taps of the window.
        stride: from one window to the next.
        padding: added on both sides.
        dilation: from one tap to the next.
        is_rounded_up: a last window that begins inside may hang over the end (`ceil_mode`).
    """

    kernel: int
    stride: int = 1
    padding: int = 0
    dilation: int = 1
    is_rounded_up: bool = False

    @property
    def extent(self) -> int:
        """From its first to its last pixel."""
        return self.dilation * (self.kernel - 1) + 1

    def output_size(self, size: int) -> int:
        """Return the number of windows on `size` pixels.

        Raises:
            TrainingError: not even one fits.
        """
        room = size + 2 * self.padding - self.extent
        windows = room // self.stride + 1
        if self.is_rounded_up:
            windows = math.ceil(room / self.stride) + 1
            # PyTorch drops a window that would begin in the padding on the right.
            windows -= (windows - 1) * self.stride >= size + self.padding
        if windows < 1:
            raise TrainingError(
                f"a window of {self.extent} does not fit into {size} + 2 x {self.padding} pixels"
            )
        return windows

    def transposed_size(self, size: int) -> int:
        """Return what a transposed convolution makes of `size` pixels."""
        return (size - 1) * self.stride - 2 * self.padding + self.extent


@dataclass(frozen=True, slots=True, kw_only=True)
class Field:
    """Which pixels of the image an output depends on, along one axis: its receptive field.

    Output i sees the pixels `offset + i stride` to `offset + i stride + size - 1`; those below 0 or
    beyond the image are padding.
    """

    size: float = 1
    stride: float = 1
    offset: float = 0

    def through(self, window: Window) -> Field:
        """Return the field of what the window makes of outputs with this one."""
        return Field(
            size=self.size + (window.extent - 1) * self.stride,
            stride=self.stride * window.stride,
            offset=self.offset - window.padding * self.stride,
        )

    def joined(self, other: Field) -> Field:
        """Return the field of a sum or concatenation: from the first to the last pixel of both.

        A field that is the same for all outputs (stride 0) is what `over_all` gave, and wins.
        """
        if (self.stride == 0) != (other.stride == 0):
            return self if self.stride == 0 else other
        offset = min(self.offset, other.offset)
        end = max(self.offset + self.size, other.offset + other.size)
        return Field(size=end - offset, stride=max(self.stride, other.stride), offset=offset)

    def over_all(self, outputs: int, image: int) -> Field:
        """Return the field of something that reads all `outputs` in a row, cut to the image."""
        first = max(0, self.offset)
        last = min(image, self.offset + (outputs - 1) * self.stride + self.size)
        return Field(size=last - first, stride=0, offset=first)

    def cut(self, index: int, image: int) -> tuple[float, float]:
        """Return the first and the last pixel, inside the image, that output `index` sees."""
        start = self.offset + index * self.stride
        return max(0, start), min(image, start + self.size) - 1


def convolution_parameters(
    channels_in: int,
    channels_out: int,
    kernel: tuple[int, int],
    *,
    groups: int = 1,
    has_bias: bool = True,
) -> int:
    """Return weights and biases of a convolution; with groups, each sees a share of the input."""
    weights = kernel[0] * kernel[1] * (channels_in // groups) * channels_out
    return weights + (channels_out if has_bias else 0)


def local_parameters(
    channels_in: int,
    channels_out: int,
    kernel: tuple[int, int],
    places: int,
    *,
    has_bias: bool = True,
) -> int:
    """Return weights and biases of a locally connected layer: a convolution's at each place."""
    return places * convolution_parameters(channels_in, channels_out, kernel, has_bias=has_bias)


def linear_parameters(inputs: int, outputs: int, *, has_bias: bool = True) -> int:
    """Return weights and biases of a fully connected layer."""
    return inputs * outputs + (outputs if has_bias else 0)


def convolution_multiply_adds(
    channels_in: int,
    outputs: int,
    kernel: tuple[int, int],
    *,
    groups: int = 1,
) -> int:
    """Return those of a convolution that puts out `outputs` numbers: channels times places."""
    return outputs * kernel[0] * kernel[1] * (channels_in // groups)
