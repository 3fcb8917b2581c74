"""Receptive fields through PyTorch's operators: what an operator's output sees, given its input.

Works on the operators that networks come down to (`torch.ops.aten`), so that functional calls,
branches, sums and concatenations are followed without knowing the modules that they are written in.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from training.arithmetic import Field, Window

aten = torch.ops.aten


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What the values of one tensor see of the image.

    Attributes:
        axes: its dimensions that run down and along the picture; None where it has none left.
        fields: along the height and along the width.
    """

    axes: tuple[int, int] | None
    fields: tuple[Field, Field]

    def joined(self, other: Seen) -> Seen:
        """Return what a mixture of two tensors of one shape sees."""
        axes = self.axes if other.axes is None else other.axes
        return Seen(axes=axes, fields=_both(Field.joined, self.fields, other.fields))

    def through(self, windows: Sequence[Window]) -> Seen:
        """Return what windows over these values see."""
        return replace(self, fields=_both(Field.through, self.fields, windows))


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One call of an operator: its first seen input, all arguments, the shape of what came out."""

    seen: Seen
    shape: torch.Size
    arguments: Sequence[Any]
    out_shape: torch.Size
    image: tuple[int, int]

    def argument(self, place: int, default: Any = None) -> Any:
        """Return a positional argument, which operators leave out when it is the default."""
        return self.arguments[place] if len(self.arguments) > place else default

    def over_all(self) -> Seen:
        """Return what something that mixes all places sees."""
        seen = self.seen
        if seen.axes is None:
            return seen
        counts = [self.shape[axis] for axis in seen.axes]
        rows, columns = (
            seen.fields[axis].over_all(counts[axis], self.image[axis]) for axis in (0, 1)
        )
        return Seen(axes=None, fields=(rows, columns))

    def moved(self, axes: Sequence[int | None]) -> Seen:
        """Return the same with the axes elsewhere; None is an axis that is no more."""
        if axes[0] is None or axes[1] is None:
            return self.over_all()
        return replace(self.seen, axes=(axes[0], axes[1]))


def follow(
    operator: Any, arguments: Sequence[Any], seen: Mapping[int, Seen], out: Tensor, image: Any
) -> Seen:
    """Return what `out` sees.

    Args:
        operator: of `torch.ops.aten`, as a dispatch mode is given it.
        arguments: positional ones.
        seen: what the tensors among them see, by `id`.
        out: one of its results.
        image: height and width of the image, pixels.
    """
    sources = [one for one in _tensors(arguments) if id(one) in seen]
    rule = _RULES.get(operator.overloadpacket, _keep_shape)
    found: Seen | None = None
    for source in sources:
        call = Call(
            seen=seen[id(source)],
            shape=source.shape,
            arguments=arguments,
            out_shape=out.shape,
            image=image,
        )
        one = call.seen if call.seen.axes is None and rule is not _keep_shape else rule(call)
        found = one if found is None else found.joined(one)
    assert found is not None
    return found


def windows_of(
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int] = (1, 1),
    is_rounded_up: bool = False,
) -> tuple[Window, Window]:
    """Return windows of the height and the width; one number stands for both."""
    pairs = [(*one, *one)[:2] for one in (kernel, stride or kernel, padding, dilation)]
    rows, columns = (
        Window(
            kernel=pairs[0][axis],
            stride=pairs[1][axis],
            padding=pairs[2][axis],
            dilation=pairs[3][axis],
            is_rounded_up=is_rounded_up,
        )
        for axis in (0, 1)
    )
    return rows, columns


def window_of_call(operator: Any, arguments: Sequence[Any]) -> tuple[Window, Window] | None:
    """Return the windows of a convolution or a pooling of pictures, else None."""
    packet = operator.overloadpacket
    if packet is aten.convolution and arguments[1].ndim == 4:
        return windows_of(arguments[1].shape[2:], arguments[3], arguments[4], arguments[5])
    if packet is aten.max_pool2d_with_indices:
        values = [*arguments[1:], *([], (0, 0), (1, 1), False)[len(arguments) - 2 :]]
        return windows_of(values[0], values[1], values[2], values[3], values[4])
    if packet is aten.avg_pool2d:
        values = [*arguments[1:5], *([], (0, 0), False)[max(0, len(arguments) - 2) :]]
        return windows_of(values[0], values[1], values[2], is_rounded_up=values[3])
    return None


def _windowed(operator: Any) -> Callable[[Call], Seen]:
    def rule(call: Call) -> Seen:
        windows = window_of_call(operator, call.arguments)
        if windows is None:
            return call.over_all()
        if operator.overloadpacket is aten.convolution and call.arguments[6]:
            return _resized(call)
        return call.seen.through(windows)

    return rule


def _adaptive(call: Call) -> Seen:
    """Adaptive pooling: windows of differing sizes, of which the widest is told."""
    fields = []
    for axis, field in enumerate(call.seen.fields):
        before, after = call.shape[axis - 2], call.out_shape[axis - 2]
        if after == 1 and before > 1:
            fields.append(field.over_all(before, call.image[axis]))
            continue
        widest = max(
            math.ceil((place + 1) * before / after) - place * before // after
            for place in range(after)
        )
        fields.append(
            Field(
                size=field.size + (widest - 1) * field.stride,
                stride=field.stride * before / after,
                offset=field.offset,
            )
        )
    return replace(call.seen, fields=(fields[0], fields[1]))


def _resized(call: Call) -> Seen:
    """Enlarging: an output sees its nearest inputs, two in a row at most."""
    fields = []
    for axis, field in enumerate(call.seen.fields):
        factor = call.shape[axis - 2] / call.out_shape[axis - 2]
        fields.append(replace(field, size=field.size + field.stride, stride=field.stride * factor))
    return replace(call.seen, fields=(fields[0], fields[1]))


def _reduced(call: Call) -> Seen:
    """Mean, sum, maximum over some dimensions."""
    rank = len(call.shape)
    dims = {dim % rank for dim in _as_list(call.argument(1), rank)}
    has_kept = bool(call.argument(2, False))
    assert call.seen.axes is not None
    if dims & set(call.seen.axes):
        return call.over_all()
    if has_kept:
        return call.seen
    return call.moved([axis - sum(dim < axis for dim in dims) for axis in call.seen.axes])


def _viewed(call: Call) -> Seen:
    """A dimension is still there when as many values lie before it and it is as long."""
    assert call.seen.axes is not None
    places: list[int | None] = []
    for axis in call.seen.axes:
        before = math.prod(call.shape[:axis])
        fitting = [
            place
            for place, size in enumerate(call.out_shape)
            if size == call.shape[axis] and math.prod(call.out_shape[:place]) == before
        ]
        places.append(fitting[-1] if fitting else None)
    if places[0] == places[1]:  # both of size 1
        places = [None, None] if places[0] is None or places[0] == 0 else [places[0] - 1, places[0]]
    return call.moved(places)


def _permuted(call: Call) -> Seen:
    assert call.seen.axes is not None
    order = [dim % len(call.shape) for dim in call.argument(1)]
    return call.moved([order.index(axis) for axis in call.seen.axes])


def _transposed(call: Call) -> Seen:
    assert call.seen.axes is not None
    rank = len(call.shape)
    first, second = (dim % rank for dim in (call.argument(1, 0), call.argument(2, 1)))
    swap = {first: second, second: first}
    return call.moved([swap.get(axis, axis) for axis in call.seen.axes])


def _unsqueezed(call: Call) -> Seen:
    assert call.seen.axes is not None
    at = call.argument(1) % len(call.out_shape)
    return call.moved([axis + (axis >= at) for axis in call.seen.axes])


def _sliced(call: Call) -> Seen:
    """x[start:end:step] along one dimension."""
    assert call.seen.axes is not None
    dim = call.argument(1, 0) % len(call.shape)
    if dim not in call.seen.axes:
        return call.seen
    start, step = call.argument(2) or 0, call.argument(4, 1)
    start += call.shape[dim] if start < 0 else 0
    which = call.seen.axes.index(dim)
    field = call.seen.fields[which]
    fields = list(call.seen.fields)
    fields[which] = replace(
        field, offset=field.offset + start * field.stride, stride=field.stride * step
    )
    return replace(call.seen, fields=(fields[0], fields[1]))


def _padded(call: Call) -> Seen:
    """Pairs of paddings, of the last dimension first."""
    assert call.seen.axes is not None
    pairs, fields = call.argument(1), []
    for axis, field in zip(call.seen.axes, call.seen.fields, strict=True):
        at = 2 * (len(call.shape) - 1 - axis)
        before = pairs[at] if at < len(pairs) else 0
        fields.append(replace(field, offset=field.offset - before * field.stride))
    return replace(call.seen, fields=(fields[0], fields[1]))


def _keep_shape(call: Call) -> Seen:
    """Elementwise operators, norms, concatenations: the picture stays where it is."""
    axes = call.seen.axes
    if axes is None:
        # A vector spread over a picture: each place sees what the vector sees.
        is_picture = len(call.out_shape) == 4
        return replace(call.seen, axes=(2, 3)) if is_picture else call.seen
    shift = len(call.out_shape) - len(call.shape)
    moved = [axis + shift for axis in axes]
    is_kept = shift >= 0 and all(
        call.out_shape[now] == call.shape[axis] or call.shape[axis] == 1
        for now, axis in zip(moved, axes, strict=True)
    )
    return call.moved(moved) if is_kept else call.over_all()


def _mixed(call: Call) -> Seen:
    return call.over_all()


_RULES: Mapping[Any, Callable[[Call], Seen]] = {
    aten.convolution: _windowed(aten.convolution.default),
    aten.max_pool2d_with_indices: _windowed(aten.max_pool2d_with_indices.default),
    aten.avg_pool2d: _windowed(aten.avg_pool2d.default),
    aten._adaptive_avg_pool2d: _adaptive,
    aten.adaptive_max_pool2d: _adaptive,
    aten.upsample_bilinear2d: _resized,
    aten.upsample_bicubic2d: _resized,
    aten.upsample_nearest2d: _resized,
    aten.mean: _reduced,
    aten.sum: _reduced,
    aten.amax: _reduced,
    aten.view: _viewed,
    aten._unsafe_view: _viewed,
    aten.squeeze: _viewed,
    aten.permute: _permuted,
    aten.transpose: _transposed,
    aten.t: _transposed,
    aten.unsqueeze: _unsqueezed,
    aten.slice: _sliced,
    aten.constant_pad_nd: _padded,
    aten.mm: _mixed,
    aten.addmm: _mixed,
    aten.bmm: _mixed,
    aten.baddbmm: _mixed,
    aten.im2col: _mixed,
}


def _both(make: Callable[..., Field], *pairs: Sequence[Any]) -> tuple[Field, Field]:
    rows, columns = (make(*(pair[axis] for pair in pairs)) for axis in (0, 1))
    return rows, columns


def _tensors(arguments: Sequence[Any]) -> list[Tensor]:
    found: list[Tensor] = []
    for one in arguments:
        many = one if isinstance(one, list | tuple) else [one]
        found.extend(item for item in many if isinstance(item, Tensor))
    return found


def _as_list(dims: int | Sequence[int] | None, rank: int) -> list[int]:
    if dims is None or dims == []:
        return list(range(rank))
    return [dims] if isinstance(dims, int) else list(dims)
