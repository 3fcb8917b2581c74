"""Other normalisations in the place of batch normalisation."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from training.errors import TrainingError

_GROUPS = 32
# Bounds of the correction and when they are reached, as in section 4 of the paper.
_WARM_UP, _R_FULL, _D_FULL = 5_000, 40_000, 25_000
_R_MAX, _D_MAX = 3.0, 5.0


class BatchRenorm2d(nn.BatchNorm2d):
    """Batch renormalisation (Ioffe, arXiv 1702.03275): trains with nearly what it is served with.

    The statistics of a batch are corrected towards the running ones, by no more than bounds that
    widen over the first 40,000 batches. In evaluation it is batch normalisation.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Return float [N, C, H, W]."""
        if not self.training:
            return super().forward(input)
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        values = input.float()
        mean = values.mean(dim=(0, 2, 3))
        variance = values.var(dim=(0, 2, 3), unbiased=False)
        deviation = (variance + self.eps).sqrt()
        running = (self.running_var + self.eps).sqrt()
        r_max, d_max = self._bounds(int(self.num_batches_tracked))
        with torch.no_grad():
            r = (deviation / running).clamp(1 / r_max, r_max)
            d = ((mean - self.running_mean) / running).clamp(-d_max, d_max)
            count = values.numel() / values.shape[1]
            share = 0.1 if self.momentum is None else self.momentum
            self.running_mean.lerp_(mean, share)
            self.running_var.lerp_(variance * count / max(1.0, count - 1), share)
            self.num_batches_tracked.add_(1)
        scale = self.weight * r / deviation
        shift = self.bias + self.weight * (d - mean * r / deviation)
        result = values * scale[:, None, None] + shift[:, None, None]
        return result.to(input.dtype)

    @staticmethod
    def _bounds(batches: int) -> tuple[float, float]:
        def rise(full: int) -> float:
            return min(1.0, max(0.0, (batches - _WARM_UP) / (full - _WARM_UP)))

        return 1 + (_R_MAX - 1) * rise(_R_FULL), _D_MAX * rise(_D_FULL)


class SynchronisedBatchNorm2d(nn.BatchNorm2d):
    """Batch normalisation by the statistics of the whole batch, all processes' parts together.

    PyTorch's own works on GPUs only; this one wherever the processes do, through sums that the
    gradient flows back through as well. In one process, and in evaluation, it is what it replaces.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Return float [N, C, H, W]."""
        if not (self.training and dist.is_available() and dist.is_initialized()):
            return super().forward(input)
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        values = input.float()
        total = _all_processes(values.new_tensor(values.numel() / values.shape[1]))
        mean = _all_processes(values.sum(dim=(0, 2, 3))) / total
        centred = values - mean[:, None, None]
        variance = _all_processes(centred.square().sum(dim=(0, 2, 3))) / total
        with torch.no_grad():
            self.num_batches_tracked.add_(1)
            share = 1 / self.num_batches_tracked if self.momentum is None else self.momentum
            self.running_mean.lerp_(mean, share)
            self.running_var.lerp_(variance * total / (total - 1).clamp(min=1), share)
        scale = self.weight / (variance + self.eps).sqrt()
        return (centred * scale[:, None, None] + self.bias[:, None, None]).to(input.dtype)


def replace_norms(net: nn.Module, kind: str) -> None:
    """Put `kind`, a key of `NORMS`, in the place of every `nn.BatchNorm2d`; scales are kept.

    Raises:
        TrainingError: the network has no batch normalisation.
    """
    found = [(path, one) for path, one in net.named_modules() if isinstance(one, nn.BatchNorm2d)]
    if not found:
        raise TrainingError(f"model.norm: {type(net).__name__} has no batch normalisation")
    for path, norm in found:
        fresh = NORMS[kind](norm)
        # timm's also drops and activates.
        rest = [getattr(norm, name) for name in ("drop", "act") if hasattr(norm, name)]
        net.set_submodule(path, nn.Sequential(fresh, *rest) if rest else fresh)


class _SumOverProcesses(torch.autograd.Function):
    """Everybody's sum depends on everybody's part, so the gradients are summed as well."""

    @staticmethod
    def forward(_: Any, own: Tensor) -> Tensor:
        """Return the sum over all processes."""
        total = own.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(_: Any, *gradients: Tensor) -> Tensor:
        """Return the sum of the gradients over all processes."""
        total = gradients[0].clone()
        dist.all_reduce(total)
        return total


def _all_processes(own: Tensor) -> Tensor:
    total: Tensor = _SumOverProcesses.apply(own)
    return total


def _with_scale(fresh: nn.Module, norm: nn.BatchNorm2d) -> nn.Module:
    own = {key: value for key, value in norm.state_dict().items() if key in fresh.state_dict()}
    fresh.load_state_dict(own)
    return fresh


def _group(norm: nn.BatchNorm2d) -> nn.Module:
    channels = norm.num_features
    groups = next(count for count in range(min(_GROUPS, channels), 0, -1) if channels % count == 0)
    return _with_scale(nn.GroupNorm(groups, channels, eps=norm.eps), norm)


NORMS: Mapping[str, Callable[[nn.BatchNorm2d], nn.Module]] = {
    # Over channels and places, as a group of all channels.
    "layer": lambda norm: _with_scale(nn.GroupNorm(1, norm.num_features, eps=norm.eps), norm),
    "group": _group,
    "instance": lambda norm: _with_scale(
        nn.InstanceNorm2d(norm.num_features, eps=norm.eps, affine=True), norm
    ),
    "batch_renorm": lambda norm: _with_scale(
        BatchRenorm2d(norm.num_features, eps=norm.eps, momentum=norm.momentum), norm
    ),
    "synchronised": lambda norm: _with_scale(
        SynchronisedBatchNorm2d(norm.num_features, eps=norm.eps, momentum=norm.momentum), norm
    ),
    "none": lambda _: nn.Identity(),
}
