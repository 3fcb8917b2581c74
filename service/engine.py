"""One ONNX Runtime session: uint8 views in, probabilities out."""

from __future__ import annotations

import contextlib
import io
import logging
import math
import re
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from service.errors import BundleError, ProviderError, StartError

# The class activation map, and the input that switches it on (training/activation_map.py).
CAM, CAM_SWITCH = "cam", "with_cam"

Provider = Literal["cuda", "openvino", "cpu"]

_EXECUTION_PROVIDERS: dict[Provider, str] = {
    "cuda": "CUDAExecutionProvider",
    "openvino": "OpenVINOExecutionProvider",
    "cpu": "CPUExecutionProvider",
}

# Each doubling of the batch must make a view this much faster to be worth the longer wait of the
# first. On the thread's own clock two starts agree within 2 % (docs/decisions.md).
_GAIN_PER_DOUBLING = 0.03
_CPU_BATCH_CANDIDATES = (1, 2, 4, 8)
_WARM_UP_BUDGET_S = 1.0

# Memory that is short, or a GPU that failed: ONNX Runtime tells them from faults of the graph by
# its text alone (github.com/microsoft/onnxruntime/issues/16307).
_MACHINE_FAULT = re.compile(r"\bCU[A-Z]+ failure \d|allocate memory|bad.alloc")

logger = logging.getLogger(__name__)


class Engine:
    """Runs one ONNX file on one device.

    `run` may be called from several threads at once. On a CPU that is the fast way: as many calling
    threads as cores on one session with `intra_op=1` beat one call that uses all cores (475 against
    304-368 images/s, MobileNetV2 on 2 cores).

    Attributes:
        provider: Where it runs, as ONNX Runtime confirmed after the session was made.
        input_size: (height, width) of the views.
        batch_sizes: On a GPU the only batch sizes that run, smallest first, because each new shape
            costs a search for kernels; smaller batches are padded. Empty on a CPU: any size runs.
    """

    def __init__(
        self,
        model_file: Path,
        *,
        provider: Provider,
        device: int = 0,
        max_batch_views: int = 16,
        intra_op_threads: int = 1,
    ) -> None:
        """Makes the session.

        Args:
            model_file: The ONNX file; its sha256 has been checked.
            provider: The execution provider; it is an error when ONNX Runtime falls back.
            device: Index of the GPU.
            max_batch_views: Largest batch that will be run.
            intra_op_threads: Threads inside one run; 1 is best when several threads call `run`.

        Raises:
            ProviderError: The provider cannot be used on this machine.
            BundleError: The file is not a model that ONNX Runtime can load, or not one of images.
        """
        self.provider = provider
        self._session = _make_session(model_file, provider, device, intra_op_threads)
        with blame(model_file.name):
            image = self._session.get_inputs()[0]
            _, height, width, _ = image.shape
        self.input_size: tuple[int, int] = (height, width)
        self.batch_sizes = _power_sizes(max_batch_views) if provider == "cuda" else ()
        self._input = image.name
        self._device = device

    def run(self, views: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Returns probabilities float32 [N, C] for views uint8 [N, H, W, 3]."""
        (probabilities,) = self.run_outputs(views, ["probabilities"])
        return probabilities

    def run_outputs(
        self, views: NDArray[np.uint8], names: Sequence[str]
    ) -> list[NDArray[np.float32]]:
        """Returns the named outputs, each float32 [N, ...], for views uint8 [N, H, W, 3].

        ONNX Runtime computes every output, asked for or not (only its training builds heed
        `only_execute_path_to_fetches`), so the graph has a switch for the costly one.
        """
        if not self.batch_sizes:
            feeds = {self._input: views}
            if CAM in names:
                feeds[CAM_SWITCH] = np.array(True)
            outputs: list[NDArray[np.float32]] = self._session.run(names, feeds)
            return outputs
        largest = self.batch_sizes[-1]
        parts = [
            self._run_bound(views[start : start + largest], names)
            for start in range(0, len(views), largest)
        ]
        return (
            parts[0]
            if len(parts) == 1
            else [np.concatenate(same) for same in zip(*parts, strict=True)]
        )

    def _run_bound(
        self, views: NDArray[np.uint8], names: Sequence[str]
    ) -> list[NDArray[np.float32]]:
        """As `run_outputs` for at most the largest batch size, padded to the next one."""
        count = len(views)
        size = next(size for size in self.batch_sizes if size >= count)
        if size > count:
            padding = np.zeros((size - count, *views.shape[1:]), np.uint8)
            views = np.concatenate([views, padding])
        binding = self._session.io_binding()
        binding.bind_ortvalue_input(
            self._input, ort.OrtValue.ortvalue_from_numpy(views, "cuda", self._device)
        )
        if CAM in names:
            binding.bind_cpu_input(CAM_SWITCH, np.array(True))
        for name in names:
            binding.bind_output(name, "cpu")
        self._session.run_with_iobinding(binding)
        return [output[:count] for output in binding.copy_outputs_to_cpu()]

    def warm_up(self) -> int:
        """Runs every batch shape that will be served; returns the batch size worth waiting for.

        On a CPU batches pay little (MobileNetV2 is 5 % faster a view at 2 than at 1 or at 8), so a
        few sizes are timed and the smallest good one is returned.
        """
        if self.batch_sizes:
            for size in self.batch_sizes:
                self.run(np.zeros((size, *self.input_size, 3), np.uint8))
            return self.batch_sizes[-1]
        best, best_s = 1, float("inf")
        budget_ends = time.monotonic() + _WARM_UP_BUDGET_S
        for size in _CPU_BATCH_CANDIDATES:
            views = np.zeros((size, *self.input_size, 3), np.uint8)
            a_view_s = min(self._time_run(views) for _ in range(6)) / size
            if a_view_s * (1 + _GAIN_PER_DOUBLING * math.log2(size / best)) < best_s:
                best, best_s = size, a_view_s
            if time.monotonic() + 8 * size * a_view_s > budget_ends:
                break
        return best

    def _time_run(self, views: NDArray[np.uint8]) -> float:
        # A CPU run is work of this thread alone, so its own clock leaves the neighbours out.
        clock = time.thread_time if self.provider == "cpu" else time.perf_counter
        start = clock()
        self.run(views)
        return clock() - start


@contextlib.contextmanager
def blame(graph: str) -> Iterator[None]:
    """Tells what is raised while a graph proves itself as a fault of the graph or of the machine.

    Raises:
        BundleError: The graph cannot be run.
        ProviderError: It may well be good, but the machine cannot run it now.
    """
    try:
        yield
    except (StartError, OSError, MemoryError):
        raise
    except Exception as error:
        # ONNX Runtime's exceptions share no base class.
        if _MACHINE_FAULT.search(str(error)):
            told = f"{graph}: this machine cannot run the graph now"
            raise ProviderError(told, error) from error
        raise BundleError(f"{graph}: the graph cannot be run", error) from error


def has_provider(provider: Provider) -> bool:
    """Whether the installed ONNX Runtime was built with the provider; the device may be absent."""
    return _EXECUTION_PROVIDERS[provider] in ort.get_available_providers()


def _power_sizes(largest: int) -> tuple[int, ...]:
    sizes = [1]
    while sizes[-1] < largest:
        sizes.append(min(sizes[-1] * 2, largest))
    return tuple(sizes)


def _load_cuda() -> None:
    """Loads the CUDA libraries, which come as Python packages; what is missing goes to the log."""
    # It prints, and standard output is for data.
    with contextlib.redirect_stdout(io.StringIO()) as said:
        ort.preload_dlls()
    for line in said.getvalue().splitlines():
        logger.debug("%s", line)


def _make_session(
    model_file: Path, provider: Provider, device: int, intra_op_threads: int
) -> ort.InferenceSession:
    if not has_provider(provider):
        raise ProviderError(f"this onnxruntime has no {provider} provider")
    if not logger.isEnabledFor(logging.DEBUG):
        # It says in its own form, and in several lines, what is an error of ours a moment later.
        ort.set_default_logger_severity(4)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.intra_op_num_threads = intra_op_threads
    options.inter_op_num_threads = 1
    # Spinning threads burn a core while they wait: 40-50 CPU-ms a request against 5-17.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # Errors are ours to report, with the name of the bundle.
    options.log_severity_level = 4
    chosen: list[str | tuple[str, dict[str, str]]] = [_EXECUTION_PROVIDERS[provider]]
    if provider == "cuda":
        _load_cuda()
        # Without TF32, which rounds fp32 weights to 10 bits: the fp16 variant is the fast one.
        chosen = [(_EXECUTION_PROVIDERS[provider], {"device_id": str(device), "use_tf32": "0"})]
    try:
        session = ort.InferenceSession(str(model_file), options, providers=chosen)
    except Exception as error:
        # ONNX Runtime's exceptions share no base class.
        raise BundleError(f"{model_file.name}: the graph cannot be loaded", error) from error
    # ONNX Runtime only warns when it falls back to the CPU.
    if session.get_providers()[0] != _EXECUTION_PROVIDERS[provider]:
        raise ProviderError(f"ONNX Runtime cannot use the {provider} provider on this machine")
    return session
