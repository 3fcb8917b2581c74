"""What a run computes on: device, precision, and the record of both for the bundle."""

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import torch

from training.errors import TrainingError

Precision = Literal["fp32", "bf16", "fp16"]

AUTOCAST = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
LIBRARIES = ("torch", "torchvision", "timm", "numpy", "pillow")


def choose_device(name: Literal["auto", "cpu", "cuda"]) -> torch.device:
    """Return the device; `auto` is the GPU where there is one.

    Raises:
        TrainingError: a GPU was asked for and there is none.
    """
    has_gpu = torch.cuda.is_available()
    if name == "cuda" and not has_gpu:
        raise TrainingError("device cuda: PyTorch finds no GPU")
    return torch.device("cuda" if has_gpu and name != "cpu" else "cpu")


def choose_precision(
    name: Literal["auto", "fp32", "bf16", "fp16"], device: torch.device
) -> Precision:
    """Return the precision of the forward pass; `auto` is bf16 where it is computed natively.

    Raises:
        TrainingError: fp16 was asked for without a GPU.
    """
    if name == "fp16" and device.type != "cuda":
        raise TrainingError("train.precision fp16 needs a GPU; bf16 does without")
    if name != "auto":
        return name
    if device.type == "cuda":
        return "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp32"
    # oneDNN emulates bf16 on lesser processors, which is slower than fp32.
    able = torch.cpu.get_capabilities()
    return "bf16" if able.get("avx512_bf16") or able.get("amx_bf16") else "fp32"


@contextmanager
def cpu_threads(count: int | None) -> Iterator[None]:
    """Let PyTorch compute with `count` threads inside the block; None leaves it as it is."""
    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def describe_hardware(device: torch.device) -> str:
    """Return one line such as `AMD EPYC, 2 threads`."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{_cpu_name()}, {torch.get_num_threads()} of {os.cpu_count()} cores"


def library_versions() -> dict[str, str]:
    """Return the versions that decide what a training run yields."""
    return {"python": platform.python_version(), **{name: version(name) for name in LIBRARIES}}


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
