"""ONNX Runtime as the service runs it; training may not import `service.engine`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from service.bundle.preprocess import Views
from training.errors import TrainingError

INPUT = "image"
PROBABILITIES = "probabilities"
EMBEDDING = "embedding"
CAM, CAM_SWITCH = "cam", "with_cam"


def open_session(model: Path | bytes) -> ort.InferenceSession:
    """Returns a CPU session with the options of `service.engine` for a file or what it holds.

    Raises:
        TrainingError: ONNX Runtime cannot load the file.
    """
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    # It would warn that the switch of the class activation map is no constant.
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    source = model if isinstance(model, bytes) else str(model)
    try:
        return ort.InferenceSession(
            source, sess_options=options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # ONNX Runtime's exceptions have no common base
        name = "the graph" if isinstance(model, bytes) else model.name
        raise TrainingError(f"ONNX Runtime cannot load {name}: {error}") from error


def run_views(session: ort.InferenceSession, views: Views) -> list[NDArray[np.float32]]:
    """Returns probabilities [N, C] and, if the graph has one, the embedding [N, D] of the views.

    Raises:
        TrainingError: The graph does not run on so many views.
    """
    names = [output.name for output in session.get_outputs()]
    wanted = [name for name in (PROBABILITIES, EMBEDDING) if name in names]
    try:
        outputs: list[NDArray[np.float32]] = session.run(wanted, {INPUT: views})
    except Exception as error:  # as above
        reason = str(error).splitlines()[0]
        raise TrainingError(f"the graph fails on a batch of {len(views)}: {reason}") from error
    return outputs


def output_shapes(session: ort.InferenceSession) -> dict[str, tuple[int, ...]]:
    """Returns the shape of every output, without the batch dimension."""
    return {output.name: tuple(output.shape[1:]) for output in session.get_outputs()}
