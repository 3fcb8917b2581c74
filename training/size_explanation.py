"""What comes out of a stack of layers, worked out by hand: `fivecrop arch explain-size`.

    explain("256x256x3", ["conv11,s4,p5:96", "maxpool3,s2,p1", "conv5,p2:256"])

A layer is KIND KERNEL[,sSTRIDE][,pPADDING][,dDILATION][,gGROUPS][,ceil][,nobias][:CHANNELS], as
`conv3,p1:64`, `conv1x7,p0x3:128`, `maxpool2,s2`, `deconv4,s2,p1:5`, `local10,s5:1` or `fc:120`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from training.arithmetic import (
    Field,
    Window,
    convolution_multiply_adds,
    convolution_parameters,
    linear_parameters,
    local_parameters,
)
from training.errors import TrainingError

_KINDS = ("conv", "deconv", "local", "maxpool", "avgpool", "fc")
_LAYER = re.compile(
    rf"(?P<kind>{'|'.join(_KINDS)})(?P<kernel>\d+(x\d+)?)?(?P<rest>(,[a-z0-9]+)*)(:(?P<out>\d+))?"
)
_PAIR = r"(\d+)(?:x(\d+))?"


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerSpec:
    """A layer as it was asked for; pairs are height and width."""

    text: str
    kind: str
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int
    is_rounded_up: bool
    has_bias: bool
    channels: int | None

    def windows(self) -> tuple[Window, Window]:
        """Return its window along the height and along the width."""
        height, width = (
            Window(
                kernel=self.kernel[axis],
                stride=self.stride[axis],
                padding=self.padding[axis],
                dilation=self.dilation[axis],
                is_rounded_up=self.is_rounded_up,
            )
            for axis in (0, 1)
        )
        return height, width


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What one layer makes: shape (height, width, channels), its sum in words, and what it costs.

    The fields are those of the height and the width, in pixels of the first input.
    """

    layer: str
    shape: tuple[int, int, int]
    sums: tuple[str, ...]
    parameters: int
    multiply_adds: int
    fields: tuple[Field, Field]


def explain(size: str, layers: Sequence[str]) -> list[Step]:
    """Return a step for each layer.

    Args:
        size: HEIGHTxWIDTH or HEIGHTxWIDTHxCHANNELS (else 1) of the input.
        layers: see the head of this module.

    Raises:
        TrainingError: a text is not understood, or a window does not fit.
    """
    shape = _read_size(size)
    image, fields, steps = shape[:2], (Field(), Field()), []
    for text in layers:
        spec = read_layer(text)
        step = (
            _fully_connected(spec, shape, fields, image)
            if spec.kind == "fc"
            else _windowed(spec, shape, fields)
        )
        shape, fields = step.shape, step.fields
        steps.append(step)
    return steps


def format_steps(steps: Sequence[Step]) -> str:
    """Return the steps as text, each with the sum that its size comes from."""
    lines = []
    for step in steps:
        height, width, channels = step.shape
        lines.append(f"{step.layer}: {height} x {width} x {channels}")
        lines.extend(f"  {one}" for one in step.sums)
        lines.append(f"  parameters {step.parameters:,}, multiply-adds {step.multiply_adds:,}")
        rows, columns = step.fields
        lines.append(
            f"  each output sees {rows.size:g} x {columns.size:g} pixels of the input, "
            f"{rows.stride:g} x {columns.stride:g} apart"
        )
    total = sum(step.parameters for step in steps), sum(step.multiply_adds for step in steps)
    lines.append(f"together: parameters {total[0]:,}, multiply-adds {total[1]:,}")
    return "\n".join(lines)


def read_layer(text: str) -> LayerSpec:
    """Return what a layer's text means.

    Raises:
        TrainingError: it is not understood.
    """
    match = _LAYER.fullmatch(text)
    if match is None:
        raise TrainingError(f"{text}: expected {', '.join(_KINDS)}, as conv3,s2,p1:64")
    kind, out = match["kind"], match["out"]
    if (match["kernel"] is None) != (kind == "fc"):
        raise TrainingError(f"{text}: {'fc has no' if kind == 'fc' else 'there is no'} kernel")
    if out is None and kind not in ("maxpool", "avgpool"):
        raise TrainingError(f"{text}: how many outputs? As {text}:64")
    if out is not None and kind in ("maxpool", "avgpool"):
        raise TrainingError(f"{text}: a pooling keeps its channels")
    kernel = _read_pair(match["kernel"] or "1")
    # Pools step by their own size unless told, as PyTorch's do.
    found = {"s": kernel if "pool" in kind else (1, 1), "p": (0, 0), "d": (1, 1), "g": (1, 1)}
    flags = {"ceil": False, "nobias": False}
    for part in filter(None, match["rest"].split(",")):
        if part in flags:
            flags[part] = True
        elif part[0] in found and re.fullmatch(_PAIR, part[1:]):
            found[part[0]] = _read_pair(part[1:])
        else:
            raise TrainingError(f"{text}: what is {part}?")
    if min(*kernel, *found["s"], *found["d"], *found["g"]) < 1 or out == "0":
        raise TrainingError(f"{text}: sizes, strides, dilations and groups begin at 1")
    return LayerSpec(
        text=text,
        kind=kind,
        kernel=kernel,
        stride=found["s"],
        padding=found["p"],
        dilation=found["d"],
        groups=found["g"][0],
        is_rounded_up=flags["ceil"],
        has_bias=not flags["nobias"],
        channels=None if out is None else int(out),
    )


def _windowed(spec: LayerSpec, shape: tuple[int, int, int], fields: tuple[Field, Field]) -> Step:
    windows = spec.windows()
    before = shape[2]
    after = before if spec.channels is None else spec.channels
    if before % spec.groups or after % spec.groups:
        raise TrainingError(f"{spec.text}: {spec.groups} groups do not divide {before} and {after}")
    if spec.kind == "deconv":
        sizes = [window.transposed_size(size) for window, size in zip(windows, shape, strict=False)]
        sums = [_transposed_sum(window, size) for window, size in zip(windows, shape, strict=False)]
        # What a transposed convolution sees is left as it was: it depends on the place.
        seen = fields
    else:
        sizes = [window.output_size(size) for window, size in zip(windows, shape, strict=False)]
        sums = [_sum(window, size) for window, size in zip(windows, shape, strict=False)]
        seen = (fields[0].through(windows[0]), fields[1].through(windows[1]))
    height, width = sizes
    parameters, multiply_adds = _cost(spec, (before, after), (height, width), shape)
    return Step(
        layer=spec.text,
        shape=(height, width, after),
        sums=tuple(dict.fromkeys(sums)),
        parameters=parameters,
        multiply_adds=multiply_adds,
        fields=seen,
    )


def _cost(
    spec: LayerSpec,
    channels: tuple[int, int],
    size: tuple[int, int],
    shape: tuple[int, int, int],
) -> tuple[int, int]:
    """Return parameters and multiply-adds."""
    if "pool" in spec.kind:
        return 0, 0
    before, after = channels
    places = size[0] * size[1]
    if spec.kind == "local":
        parameters = local_parameters(before, after, spec.kernel, places, has_bias=spec.has_bias)
        return parameters, convolution_multiply_adds(before, after * places, spec.kernel)
    parameters = convolution_parameters(
        before, after, spec.kernel, groups=spec.groups, has_bias=spec.has_bias
    )
    # A transposed convolution multiplies at each of its inputs, a plain one at each output.
    if spec.kind == "deconv":
        after, before, places = before, after, shape[0] * shape[1]
    outputs = after * places
    return parameters, convolution_multiply_adds(before, outputs, spec.kernel, groups=spec.groups)


def _fully_connected(
    spec: LayerSpec,
    shape: tuple[int, int, int],
    fields: tuple[Field, Field],
    image: tuple[int, int],
) -> Step:
    assert spec.channels is not None
    inputs = shape[0] * shape[1] * shape[2]
    seen = [fields[axis].over_all(shape[axis], image[axis]) for axis in (0, 1)]
    return Step(
        layer=spec.text,
        shape=(1, 1, spec.channels),
        sums=(f"{inputs} inputs to {spec.channels} outputs",),
        parameters=linear_parameters(inputs, spec.channels, has_bias=spec.has_bias),
        multiply_adds=inputs * spec.channels,
        fields=(seen[0], seen[1]),
    )


def _sum(window: Window, size: int) -> str:
    up_or_down = "ceil" if window.is_rounded_up else "floor"
    return (
        f"{up_or_down}(({size} - {window.extent} + 2 x {window.padding}) / {window.stride}) + 1"
        f" = {window.output_size(size)}"
    )


def _transposed_sum(window: Window, size: int) -> str:
    return (
        f"({size} - 1) x {window.stride} - 2 x {window.padding} + {window.extent}"
        f" = {window.transposed_size(size)}"
    )


def _read_size(text: str) -> tuple[int, int, int]:
    if not re.fullmatch(r"[1-9]\d*x[1-9]\d*(x[1-9]\d*)?", text):
        raise TrainingError(f"{text}: expected HEIGHTxWIDTH or HEIGHTxWIDTHxCHANNELS")
    height, width, *channels = (int(part) for part in text.split("x"))
    return height, width, channels[0] if channels else 1


def _read_pair(text: str) -> tuple[int, int]:
    first, _, second = text.partition("x")
    return int(first), int(second or first)
