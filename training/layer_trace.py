"""What every layer of a network sees and costs, found by running it on shapes alone.

    rows = trace_layers(net, (224, 224))

The network runs once on PyTorch's meta device: nothing is computed and no weight is needed, so the
largest nets take a second. One row a convolution, pooling, linear layer, normalisation, sum,
product of maps or concatenation; activation functions and reshapings are no rows, and are taken to
work in place.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, MutableMapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakIdKeyDictionary

from training.arithmetic import Field, Window, convolution_multiply_adds
from training.errors import TrainingError
from training.field_tracking import Seen, follow, window_of_call, windows_of
from training.models.lenet import NearestCode
from training.models.locally_connected import LocallyConnected2d
from training.shapes_alone import run_for_shapes

aten = torch.ops.aten

_KINDS = {
    aten.max_pool2d_with_indices: "max-pool",
    aten.avg_pool2d: "average-pool",
    aten._adaptive_avg_pool2d: "average-pool",
    aten.adaptive_max_pool2d: "max-pool",
    aten.cat: "concatenation",
    aten.mm: "linear",
    aten.addmm: "linear",
    aten.bmm: "linear",
    aten.baddbmm: "linear",
}
# Which of their arguments are multiplied.
_PRODUCTS = {aten.mm: (0, 1), aten.bmm: (0, 1), aten.addmm: (1, 2), aten.baddbmm: (1, 2)}


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerRow:
    """One layer. Everything is for one image.

    Attributes:
        path: of the module that it is in.
        kind: what it does.
        windows: of its height and width, where it has any.
        shape: of its output, without the batch.
        fields: what an output sees of the image, down and along; `stride` 0 where all see the same.
        parameters: its own; of shared ones, the first layer has them.
        multiply_adds: of convolutions and matrix products.
    """

    path: str
    kind: str
    windows: tuple[Window, Window] | None
    shape: tuple[int, ...]
    fields: tuple[Field, Field]
    parameters: int
    multiply_adds: int

    @property
    def values(self) -> int:
        """How many numbers it puts out."""
        return math.prod(self.shape)


def trace_layers(net: nn.Module, size: tuple[int, int], channels: int = 3) -> list[LayerRow]:
    """Return the layers in the order they run, the input first.

    Args:
        net: on the meta device, in evaluation mode.
        size: height and width of the image, pixels.
        channels: of the image.

    Raises:
        TrainingError: the network cannot take an image of this size.
    """
    with torch.device("meta"):
        image = torch.empty(1, channels, *size)
    trace = _Trace(net, image)
    try:
        with torch.no_grad(), trace.hooked(net), trace:
            net(image)
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise TrainingError(f"images of {size[0]} x {size[1]} do not fit: {reason}") from error
    return trace.rows


class _Trace(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Follows every operator that runs: where it is, what it sees, what it costs."""

    def __init__(self, net: nn.Module, image: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        height, width = image.shape[2:]
        self.image = (height, width)
        start = Seen(axes=(2, 3), fields=(Field(), Field()))
        self.seen: MutableMapping[Tensor, Seen] = WeakIdKeyDictionary()
        self.seen[image] = start
        # The parameters that a tensor which depends on no image is made of.
        self.origins: MutableMapping[Tensor, frozenset[Tensor]] = WeakIdKeyDictionary()
        for parameter in net.parameters():
            self.origins[parameter] = frozenset([parameter])
        self.counted: set[Tensor] = set()
        self.path = [""]
        # Costs of the operators in a module that is a row as a whole; None outside of one.
        self.whole: list[int] | None = None
        self.rows = [
            LayerRow(
                path="",
                kind="input",
                windows=None,
                shape=tuple(image.shape[1:]),
                fields=start.fields,
                parameters=0,
                multiply_adds=0,
            )
        ]

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Say no: to keep the compiler from what this does would begin with loading it."""
        return False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        """Run the operator and note what came out."""
        out = run_for_shapes(func, args, kwargs or {})
        results = [one for one in _flat([out]) if isinstance(one, Tensor)]
        inputs = [one for one in _flat(args) if isinstance(one, Tensor)]
        origins = frozenset().union(*(self.origins.get(one, frozenset()) for one in inputs))
        sources = [one for one in inputs if one in self.seen]
        if not sources:
            for result in results:
                self.origins[result] = origins
            return out
        seen = {id(one): self.seen[one] for one in sources}
        for result in results:
            self.seen[result] = follow(func, args, seen, result, self.image)
        self._note(func, args, results[0], origins, sources)
        return out

    def _note(
        self,
        func: Any,
        args: Sequence[Any],
        result: Tensor,
        origins: frozenset[Tensor],
        sources: list[Tensor],
    ) -> None:
        parameters = sum(one.numel() for one in origins - self.counted)
        self.counted |= origins
        cost = _multiply_adds(func, args, result)
        if self.whole is not None:
            self.whole[0] += parameters
            self.whole[1] += cost
            return
        kind = _kind(func, args, result, parameters, sources)
        if kind is not None:
            windows = window_of_call(func, args)
            self._add(kind, windows, result, self.seen[result], parameters, cost)

    def _add(
        self,
        kind: str,
        windows: tuple[Window, Window] | None,
        result: Tensor,
        seen: Seen,
        parameters: int,
        multiply_adds: int,
    ) -> None:
        self.rows.append(
            LayerRow(
                path=self.path[-1],
                kind=kind,
                windows=windows,
                shape=tuple(result.shape[1:]),
                fields=seen.fields,
                parameters=parameters,
                multiply_adds=multiply_adds,
            )
        )

    @contextmanager
    def hooked(self, net: nn.Module) -> Iterator[None]:
        """Keeps account of which module runs."""
        handles = []
        for path, module in net.named_modules():
            handles.append(module.register_forward_pre_hook(self._entering(path)))
            handles.append(module.register_forward_hook(self._left))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _entering(self, path: str) -> Any:
        def enter(module: nn.Module, inputs: tuple[Any, ...]) -> None:
            self.path.append(path)
            if _is_whole(module, inputs):
                self.whole = [0, 0]

        return enter

    def _left(self, module: nn.Module, inputs: tuple[Any, ...], out: Any) -> None:
        if self.whole is not None and _is_whole(module, inputs):
            seen = self.seen[inputs[0]]
            kind, windows = "norm", None
            if isinstance(module, LocallyConnected2d):
                one = ([module.kernel_size], [module.stride], [module.padding])
                kind, windows = "locally connected", windows_of(*one)
                seen = seen.through(windows)
            elif isinstance(module, nn.Linear | NearestCode):
                kind = "linear" if isinstance(module, nn.Linear) else "distance to codes"
            self.seen[out] = seen
            parameters, cost = self.whole
            self.whole = None
            self._add(kind, windows, out, seen, parameters, cost)
        self.path.pop()


def _is_whole(module: nn.Module, inputs: tuple[Any, ...]) -> bool:
    """Whether a module is followed as one: its operators hide where the picture is."""
    # A linear layer over the channels of a picture, which lie last.
    is_pointwise = isinstance(module, nn.Linear) and inputs[0].ndim == 4
    return is_pointwise or isinstance(
        module, nn.LocalResponseNorm | LocallyConnected2d | NearestCode
    )


def _kind(
    func: Any, args: Sequence[Any], result: Tensor, parameters: int, sources: list[Tensor]
) -> str | None:
    """Return the name of a row for an operator, or None if it is none."""
    packet = func.overloadpacket
    if packet is aten.convolution:
        if args[6]:
            return "transposed convolution"
        is_depthwise = args[8] > 1 and args[8] == args[0].shape[1]
        return "depthwise convolution" if is_depthwise else "convolution"
    if "pool" in packet.__name__ and result.shape == args[0].shape:
        return None if packet is aten._adaptive_avg_pool2d else _KINDS.get(packet)
    if packet in _KINDS:
        return _KINDS[packet]
    if "_norm" in packet.__name__:
        return "norm"
    if packet in (aten.mean, aten.amax) and result.numel() < args[0].numel() and args[0].ndim == 4:
        is_over_places = {dim % 4 for dim in args[1]} >= {2, 3}
        name = "average-pool" if packet is aten.mean else "max-pool"
        return f"global {name}" if is_over_places else None
    if len(sources) > 1 and packet in (aten.add, aten.add_):
        return "sum"
    if len(sources) > 1 and packet in (aten.mul, aten.mul_):
        return "product"
    return "scale or shift" if parameters else None


def _multiply_adds(func: Any, args: Sequence[Any], result: Tensor) -> int:
    packet = func.overloadpacket
    if packet is aten.convolution:
        weight, is_transposed, groups = args[1], args[6], args[8]
        kernel = math.prod(weight.shape[2:])
        if is_transposed:
            return int(args[0].numel() * weight.shape[1] * kernel)
        return convolution_multiply_adds(
            args[0].shape[1], result.numel(), (kernel, 1), groups=groups
        )
    if packet in _PRODUCTS:
        first, _ = (args[place] for place in _PRODUCTS[packet])
        return result.numel() * int(first.shape[-1])
    return 0


def _flat(values: Sequence[Any]) -> list[Any]:
    found: list[Any] = []
    for one in values:
        found.extend(one if isinstance(one, list | tuple) else [one])
    return found
