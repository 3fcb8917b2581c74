"""Networks whose shapes alone matter, without the import of PyTorch's compiler.

    with on_meta_device():
        net = build_model("torchvision:resnet152", classes=1000)

Much of the meta device is written in Python (`torch._meta_registrations`) and loads `torch._dynamo`
and sympy at its first check, which takes longer than everything else that is done with such a
network; so does the import of torchvision.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

aten = torch.ops.aten

_COMPILER = "torch._dynamo.utils"
# Nearly every network has them, and their shapes are reckoned in Python.
_RUN_EMPTY = frozenset(
    {
        aten.convolution,
        aten.native_batch_norm,
        aten.max_pool2d_with_indices,
        aten.avg_pool2d,
        aten._adaptive_avg_pool2d,
        aten.mean,
        aten.addmm,
        aten.mm,
    }
)


@contextmanager
def on_meta_device() -> Iterator[None]:
    """Build networks on the meta device, where no weight needs a random number."""
    with torch.device("meta"), _NoRandomNumbers():
        yield


@contextmanager
def compiler_unloaded() -> Iterator[None]:
    """Import torchvision without the compiler, which one of its detectors asks at each call.

    What else is asked of the compiler meanwhile is answered by the real one.
    """
    if _COMPILER in sys.modules:
        yield
        return
    stand_in = ModuleType(_COMPILER)

    def load(name: str) -> Any:
        if name.startswith("__"):  # `inspect` asks all modules for their file
            raise AttributeError(name)
        if sys.modules.get(_COMPILER) is stand_in:
            del sys.modules[_COMPILER]
        return getattr(importlib.import_module(_COMPILER), name)

    vars(stand_in).update(
        __getattr__=load,
        is_compile_supported=lambda device: load("is_compile_supported")(device),
    )
    sys.modules[_COMPILER] = stand_in
    try:
        yield
    finally:
        if sys.modules.get(_COMPILER) is stand_in:
            del sys.modules[_COMPILER]


def run_for_shapes(operator: Any, arguments: Sequence[Any], options: dict[str, Any]) -> Any:
    """Return what an operator of `torch.ops.aten` puts out for tensors of the meta device.

    Those in question run on the CPU, on no image at all: that checks and reckons shapes as for one.

    Raises:
        RuntimeError: the shapes do not fit.
    """
    packet = operator.overloadpacket
    if packet is aten.add_ and isinstance(arguments[1], Tensor):
        if arguments[0].shape == arguments[1].shape:
            return arguments[0]
    elif packet in _RUN_EMPTY and not (packet is aten.mean and _is_over_images(arguments)):
        batch = arguments[1] if packet is aten.addmm else arguments[0]
        out = operator(*(_without_values(one, is_batch=one is batch) for one in arguments))
        if isinstance(out, tuple):
            return tuple(_with_images(one, batch) for one in out)
        return _with_images(out, batch)
    return operator(*arguments, **options)


def _is_over_images(arguments: Sequence[Any]) -> bool:
    """Whether a mean is taken over all dimensions or over the first."""
    return len(arguments) < 2 or 0 in {dim % arguments[0].ndim for dim in arguments[1]}


def _without_values(argument: Any, *, is_batch: bool) -> Any:
    """Return a tensor of that shape which takes no memory; a batch has no images in it."""
    if not isinstance(argument, Tensor):
        return argument
    shape = (0, *argument.shape[1:]) if is_batch else argument.shape
    return torch.empty((), dtype=argument.dtype).expand(shape)


def _with_images(result: Tensor, batch: Tensor) -> Tensor:
    """Return it on the meta device, as long as the batch if it was as long as none."""
    shape = result.shape if result.ndim == 1 else (*batch.shape[:1], *result.shape[1:])
    return batch.new_empty(shape, dtype=result.dtype)


class _NoRandomNumbers(TorchFunctionMode):
    """Leaves out what fills a tensor with random numbers."""

    FILLING = frozenset({Tensor.normal_, Tensor.uniform_})

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        """Call the function unless it fills."""
        return args[0] if func in self.FILLING else func(*args, **(kwargs or {}))
