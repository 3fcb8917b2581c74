"""Adds the class activation map to a graph that ends in global pooling and a linear classifier.

Zhou 2016, "Learning Deep Features for Discriminative Localization": what the classifier makes of
the features of one cell says how much that cell speaks for a class. No gradients are needed, so the
served graph can answer it. The pattern is looked for in the exported graph, because there every
library's network looks alike, and what was found is proved by running it.

    features [N, D, h, w] -> mean or max -> linear -> scalars -> Softmax -> probabilities
             `-> linear on each cell -> scalars -> cam float32 [N, C, h, w]

The mean of `cam` over its cells is the calibrated logit of each class.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from training.errors import TrainingError
from training.session import CAM, CAM_SWITCH, INPUT, PROBABILITIES, open_session

# What keeps the order of the features between the pooling and the classifier; the proof decides.
_PASSING = frozenset({"Reshape", "Flatten", "Squeeze", "Gather", "Cast", "Dropout", "Identity"})
_MEANS = frozenset({"ReduceMean", "GlobalAveragePool"})
_MAXIMA = frozenset({"ReduceMax", "GlobalMaxPool"})
_GEMM_DEFAULTS = {"alpha": 1.0, "beta": 1.0, "transA": 0, "transB": 0}
_TOLERANCE: dict[int, float] = {TensorProto.FLOAT: 1e-4, TensorProto.FLOAT16: 2e-2}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Tail:
    """How the probabilities come from the feature map; `linear` is None when it holds logits."""

    features: str
    pooling: str
    linear: onnx.NodeProto | None
    scalars: tuple[onnx.NodeProto, ...]
    shape: tuple[int, int, int]
    kind: int


def add_activation_map(model: onnx.ModelProto) -> onnx.ModelProto:
    """Returns the model with the output `cam`, or as it is where there is no such map."""
    tail = _find_tail(model)
    if tail is None:
        return model
    extended = onnx.ModelProto()
    extended.CopyFrom(model)
    _append(extended, tail)
    try:
        onnx.checker.check_model(extended, full_check=True)
        return extended if _adds_up(extended, tail.kind) else model
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError, TrainingError):
        return model


def _find_tail(model: onnx.ModelProto) -> _Tail | None:
    producers = {name: node for node in model.graph.node for name in node.output}
    constants = {one.name: one for one in model.graph.initializer}
    softmax = producers.get(PROBABILITIES)
    if softmax is None or softmax.op_type != "Softmax":
        return None
    scalars, node = [], producers.get(softmax.input[0])
    while node is not None and _is_scalar_step(node, constants):
        scalars.append(node)
        node = producers.get(node.input[0])
    linear = None
    if node is not None and _is_linear(node, constants):
        linear, node = node, producers.get(node.input[0])
    while node is not None and node.op_type in _PASSING:
        node = producers.get(node.input[0])
    if node is None or not _pools_the_picture(node, constants):
        return None
    found = _shape(model, node.input[0])
    if found is None:
        return None
    shape, kind = found
    return _Tail(
        features=node.input[0],
        pooling=node.op_type,
        linear=linear,
        scalars=tuple(reversed(scalars)),
        shape=shape,
        kind=kind,
    )


def _is_scalar_step(node: onnx.NodeProto, constants: dict[str, TensorProto]) -> bool:
    if node.op_type == "Cast":
        return True
    if node.op_type not in ("Mul", "Div"):
        return False
    factor = constants.get(node.input[1])
    return factor is not None and int(np.prod(factor.dims)) == 1


def _is_linear(node: onnx.NodeProto, constants: dict[str, TensorProto]) -> bool:
    if node.op_type != "Gemm" or not all(name in constants for name in node.input[1:]):
        return False
    settings = {one.name: helper.get_attribute_value(one) for one in node.attribute}
    return {**_GEMM_DEFAULTS, **settings} == {**_GEMM_DEFAULTS, "transB": 1}


def _pools_the_picture(node: onnx.NodeProto, constants: dict[str, TensorProto]) -> bool:
    if node.op_type in ("GlobalAveragePool", "GlobalMaxPool"):
        return True
    if node.op_type not in _MEANS | _MAXIMA or len(node.input) < 2:
        return False
    axes = constants.get(node.input[1])
    return axes is not None and set(numpy_helper.to_array(axes).ravel() % 4) == {2, 3}


def _shape(model: onnx.ModelProto, name: str) -> tuple[tuple[int, int, int], int] | None:
    """Returns (D, h, w) and the element type of a tensor [N, D, h, w] with fixed D, h and w."""
    inferred = onnx.shape_inference.infer_shapes(model)
    for value in inferred.graph.value_info:
        dims = value.type.tensor_type.shape.dim
        if value.name == name and len(dims) == 4 and all(dim.dim_value for dim in dims[1:]):
            depth, height, width = (dim.dim_value for dim in dims[1:])
            kind = value.type.tensor_type.elem_type
            return ((depth, height, width), kind) if kind in _TOLERANCE else None
    return None


def _append(model: onnx.ModelProto, tail: _Tail) -> None:
    """Adds the nodes, constants and output of the map."""
    depth, height, width = tail.shape
    classes = model.graph.output[0].type.tensor_type.shape.dim[1].dim_value
    nodes: list[onnx.NodeProto] = []

    def then(kind: str, inputs: Iterable[str], **attributes: Any) -> str:
        name = f"{CAM}_{len(nodes)}"
        nodes.append(helper.make_node(kind, list(inputs), [name], **attributes))
        return name

    def constant(name: str, values: list[int]) -> str:
        array = np.array(values, np.int64)
        model.graph.initializer.append(numpy_helper.from_array(array, f"{CAM}_{name}"))
        return f"{CAM}_{name}"

    at = tail.features
    if tail.pooling in _MAXIMA:
        # All of a maximum belongs to the cell that has it: the mean over cells is then the maximum.
        picture = constant("picture", [2, 3])
        largest = then("ReduceMax", [at, picture], keepdims=1)
        is_largest = then("Cast", [then("Equal", [at, largest])], to=tail.kind)
        ties = then("ReduceMean", [is_largest, picture], keepdims=1)
        at = then("Div", [then("Mul", [at, is_largest]), ties])
    if tail.linear is not None:
        weight, *bias = tail.linear.input[1:]
        cells = then("Reshape", [at, constant("cells", [-1, depth, height * width])])
        scores = then("MatMul", [weight, cells])
        if bias:
            column = then("Reshape", [bias[0], constant("column", [classes, 1])])
            scores = then("Add", [scores, column])
        at = then("Reshape", [scores, constant("grid", [-1, classes, height, width])])
    for step in tail.scalars:
        copy = onnx.NodeProto()
        copy.CopyFrom(step)
        copy.input[0], copy.output[0], copy.name = at, f"{CAM}_{len(nodes)}", ""
        nodes.append(copy)
        at = copy.output[0]
    # A branch may not return what lies outside of it as it is.
    at = then("Identity", [at])
    _switch(model, nodes, at, (classes, height, width))


def _switch(
    model: onnx.ModelProto, nodes: list[onnx.NodeProto], result: str, shape: tuple[int, int, int]
) -> None:
    """Adds the output, whose nodes run only when the input `with_cam` is true; it need not be fed.

    ONNX Runtime computes all outputs, whichever are asked for, and this one takes MobileNetV2 a
    fifth of its time.
    """
    nothing = numpy_helper.from_array(np.zeros((0, *shape), np.float32))
    off = helper.make_node("Constant", [], [f"{CAM}_off"], value=nothing)
    on_output = helper.make_tensor_value_info(result, TensorProto.FLOAT, [None, *shape])
    off_output = helper.make_tensor_value_info(f"{CAM}_off", TensorProto.FLOAT, [0, *shape])
    model.graph.node.append(
        helper.make_node(
            "If",
            [CAM_SWITCH],
            [CAM],
            then_branch=helper.make_graph(nodes, f"{CAM}_map", [], [on_output]),
            else_branch=helper.make_graph([off], f"{CAM}_nothing", [], [off_output]),
        )
    )
    # An input that an initializer gives a default (ONNX IR, "Graph inputs").
    model.graph.input.append(helper.make_tensor_value_info(CAM_SWITCH, TensorProto.BOOL, []))
    model.graph.initializer.append(numpy_helper.from_array(np.array(False), CAM_SWITCH))
    model.graph.output.append(
        helper.make_tensor_value_info(CAM, TensorProto.FLOAT, [f"{CAM}_batch", *shape])
    )


def _adds_up(model: onnx.ModelProto, kind: int) -> bool:
    """Whether the mean of the map over its cells gives the probabilities, on noise."""
    height, width = (dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim[1:3])
    noise = np.random.default_rng(0).integers(0, 256, (3, height, width, 3), dtype=np.uint8)
    session = open_session(model.SerializeToString())
    feeds = {INPUT: noise, CAM_SWITCH: np.array(True)}
    probabilities, maps = session.run([PROBABILITIES, CAM], feeds)
    logits = maps.mean(axis=(2, 3), dtype=np.float64)
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    difference = np.abs(weights / weights.sum(axis=1, keepdims=True) - probabilities).max()
    return bool(difference <= _TOLERANCE[kind])
