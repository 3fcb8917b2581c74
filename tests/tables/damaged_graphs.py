"""Graphs that no bundle should hold: each from the bytes of a good one, of the tiny repository."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import onnx
from onnx import helper, numpy_helper


def put_graph(folder, graph):
    """Gives a bundle another graph, and a manifest that says so."""
    manifest = json.loads((folder / "bundle.json").read_text())
    (folder / "model.onnx").write_bytes(graph)
    manifest["variants"][0] |= {"sha256": hashlib.sha256(graph).hexdigest(), "bytes": len(graph)}
    (folder / "bundle.json").write_text(json.dumps(manifest))


def outside_weights(graph):
    model = onnx.load_from_string(graph)
    for tensor in model.graph.initializer:
        tensor.ClearField("raw_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value="../../../etc/passwd")
    return model.SerializeToString()


def unknown_operator(graph):
    model = onnx.load_from_string(graph)
    model.graph.node[0].op_type = "Nothing"
    return model.SerializeToString()


def a_reshape_that_fails(graph):
    model = onnx.load_from_string(graph)
    softmax = model.graph.node[-1]
    softmax.output[0] = "batch_of_any_size"
    seven = numpy_helper.from_array(np.array([7, 10]), "seven")
    model.graph.initializer.append(seven)
    inputs = [softmax.output[0], seven.name]
    model.graph.node.append(helper.make_node("Reshape", inputs, ["probabilities"]))
    return model.SerializeToString()


def another_output_name(graph):
    model = onnx.load_from_string(graph)
    model.graph.node[-1].output[0] = model.graph.output[0].name = "scores"
    return model.SerializeToString()


def another_input_rank(graph):
    model = onnx.load_from_string(graph)
    image = model.graph.input[0]
    del image.type.tensor_type.shape.dim[0]
    axis = numpy_helper.from_array(np.array([0]), "first_axis")
    model.graph.initializer.append(axis)
    model.graph.node[0].input[0] = "batch_of_one"
    unsqueeze = helper.make_node("Unsqueeze", [image.name, axis.name], ["batch_of_one"])
    model.graph.node.insert(0, unsqueeze)
    return model.SerializeToString()


def more_memory_than_there_is(graph):
    """No bad one: on another machine, or at another time, memory may do."""
    model = onnx.load_from_string(graph)
    softmax = model.graph.node[-1]
    softmax.output[0] = "small"
    # No address space holds it, whatever the kernel promises.
    large = numpy_helper.from_array(np.array([2**50, 1, 10]), "large")
    model.graph.initializer.append(large)
    model.graph.node.extend(
        [
            helper.make_node("Expand", ["small", large.name], ["vast"]),
            helper.make_node("ReduceMax", ["vast"], ["greatest"], keepdims=0),
            helper.make_node("Mul", ["small", "greatest"], ["probabilities"]),
        ]
    )
    return model.SerializeToString()


NOT_TO_BE_RUN = {
    "a reshape that fails": a_reshape_that_fails,
    "another output name": another_output_name,
    "another input rank": another_input_rank,
}
GRAPHS = NOT_TO_BE_RUN | {
    "no graph": lambda graph: b"<html>" * 100,
    "half a graph": lambda graph: graph[: len(graph) // 2],
    "weights of another file": outside_weights,
    "an unknown operator": unknown_operator,
}
