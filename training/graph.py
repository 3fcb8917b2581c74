"""The served graph: pixels in, calibrated probabilities out, as one ONNX file.

    image uint8 [batch, H, W, 3] -> Transpose -> Cast -> Mul -> Add -> network -> / temperature
        -> Softmax -> probabilities float32 [batch, C]
                   -> embedding float32 [batch, D], when the network offers one
                   -> cam float32 [batch, C, h, w], see `training.activation_map`

The transpose comes first because moving bytes is a quarter of the work of moving floats: casting
and scaling before it costs 5-18 % of the whole inference.
"""

from __future__ import annotations

import contextlib
import copy
import logging
import warnings
from collections.abc import Iterable, Iterator
from typing import Any

import onnx
import torch
from torch import Tensor, nn

from service.bundle.manifest import Normalisation, Size
from training.activation_map import add_activation_map
from training.errors import TrainingError
from training.models.classifier import EmbeddingModel
from training.models.normalise import Normalise
from training.session import EMBEDDING, INPUT, PROBABILITIES


class ServedGraph(nn.Module):
    """What is exported: the network between its normalisation and its calibrated softmax.

    Args:
        network: Maps float images [N, 3, H, W] to logits [N, C]; it is used as it stands.
        normalisation: Mean and standard deviation of pixels scaled to 0..1.
        temperature: What the logits are divided by.
        is_half: The network's weights are float16; everything around it stays float32.
    """

    def __init__(
        self,
        network: nn.Module,
        normalisation: Normalisation,
        *,
        temperature: float = 1.0,
        is_half: bool = False,
    ) -> None:
        super().__init__()
        self.network = network
        self.temperature = temperature
        self.is_half = is_half
        self.normalise = Normalise(normalisation)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Returns probabilities [N, C] and, if offered, the embedding [N, D], of uint8 NHWC."""
        logits, embedding = self.logits_and_embedding(image)
        probabilities = torch.softmax(logits / self.temperature, dim=1)
        return (probabilities,) if embedding is None else (probabilities, embedding)

    def logits_and_embedding(self, image: Tensor) -> tuple[Tensor, Tensor | None]:
        """Returns uncalibrated float32 logits [N, C], and the embedding [N, D] or None."""
        x = self.normalise(image)
        if self.is_half:
            x = x.half()
        if isinstance(self.network, EmbeddingModel):
            logits, embedding = self.network.forward_with_embedding(x)
            return logits.float(), embedding.float()
        return self.network(x).float(), None


def half_network(network: nn.Module) -> nn.Module:
    """Returns a float16 copy of the network, for the graph of the fp16 variant."""
    return copy.deepcopy(network).half()


def export_onnx(graph: ServedGraph, size: Size) -> onnx.ModelProto:
    """Returns the checked ONNX model: dynamic batch, weights inside, nothing about this machine.

    The same weights and library versions give the same bytes.

    Raises:
        TrainingError: The network cannot be exported, or the checker refuses what came out.
    """
    graph.eval()
    example = torch.zeros(2, size.height, size.width, 3, dtype=torch.uint8)
    with torch.no_grad():
        outputs = [PROBABILITIES, EMBEDDING][: len(graph(example))]
    try:
        with _quiet_exporter():
            program = torch.onnx.export(
                graph,
                (example,),
                input_names=[INPUT],
                output_names=outputs,
                dynamo=True,
                external_data=False,
                dynamic_shapes={INPUT: {0: "batch"}},
                verbose=False,
            )
        assert program is not None
        model = program.model_proto
        strip_metadata(model)
        onnx.checker.check_model(model, full_check=True)
    except (torch.onnx.OnnxExporterError, onnx.checker.ValidationError, RuntimeError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise TrainingError(f"the network cannot be exported: {lines[0]}") from error
    return add_activation_map(model)


def strip_metadata(model: onnx.ModelProto) -> None:
    """Removes doc strings and metadata everywhere: they hold source paths of this machine."""
    _strip(model)
    _strip_graph(model.graph)
    for function in model.functions:
        _strip(function)
        _strip_nodes(function.node)


def _strip(message: Any) -> None:
    message.ClearField("doc_string")
    message.ClearField("metadata_props")


def _strip_graph(graph: onnx.GraphProto) -> None:
    _strip(graph)
    for message in (*graph.input, *graph.output, *graph.value_info, *graph.initializer):
        _strip(message)
    _strip_nodes(graph.node)


def _strip_nodes(nodes: Iterable[onnx.NodeProto]) -> None:
    for node in nodes:
        _strip(node)
        for attribute in node.attribute:
            attribute.ClearField("doc_string")
            if attribute.type == onnx.AttributeProto.GRAPH:
                _strip_graph(attribute.g)
            for graph in attribute.graphs:
                _strip_graph(graph)


@contextlib.contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Keeps the exporter's notes about its own internals off the user's screen."""
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)
