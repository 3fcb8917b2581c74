"""A classifier that someone else exported to ONNX, made into the graph of a bundle.

Normalisation goes in front of it, as in a graph of our own, and a softmax behind it where it gives
logits. The network in between is left as it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, compose, helper, numpy_helper

from service.bundle.manifest import Normalisation, Size
from service.bundle.preprocess import Views
from training.errors import TrainingError
from training.graph import strip_metadata
from training.session import INPUT, PROBABILITIES, open_session

_PREFIX = "network/"
_OURS = "fivecrop/"
_BATCH = "batch"

Emits = Literal["logits", "probabilities"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ForeignClassifier:
    """An ONNX file and how to ask it.

    Attributes:
        path: The file.
        model: What it holds, weights included.
        input_name: Of its one input, float32 [N, 3, H, W] or [N, H, W, 3].
        output_name: Of the output with a value a class, float32 [N, C].
        is_channels_last: Whether the input is [N, H, W, 3].
    """

    path: Path
    model: onnx.ModelProto
    input_name: str
    output_name: str
    is_channels_last: bool


def read_classifier(path: Path, size: Size, output_name: str | None = None) -> ForeignClassifier:
    """Returns the classifier in an ONNX file, which must take images of `size`.

    Raises:
        TrainingError: The file is no ONNX model, or its input or output is not a classifier's.
    """
    try:
        model = onnx.load(path)
        onnx.checker.check_model(model)
    except Exception as error:  # protobuf's, the checker's, the file's
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise TrainingError(f"{path}: no ONNX model: {reason[0]}") from error
    weights = {one.name for one in model.graph.initializer}
    inputs = [one for one in model.graph.input if one.name not in weights]
    if len(inputs) != 1:
        raise TrainingError(f"{path}: has {len(inputs)} inputs; a classifier has one, the image")
    shape = _shape(inputs[0])
    is_channels_last = len(shape) == 4 and shape[3] == 3 and shape[1] != 3
    wanted = (size.height, size.width, 3) if is_channels_last else (3, size.height, size.width)
    fits = len(shape) == 4 and all(
        have in (None, want) for have, want in zip(shape[1:], wanted, strict=True)
    )
    if not fits or inputs[0].type.tensor_type.elem_type != TensorProto.FLOAT:
        raise TrainingError(
            f"{path}: takes {_describe(inputs[0])}, not float32 images of "
            f"{size.height} x {size.width}"
        )
    return ForeignClassifier(
        path=path,
        model=model,
        input_name=inputs[0].name,
        output_name=_choose_output(path, model, output_name),
        is_channels_last=is_channels_last,
    )


def answer(
    classifier: ForeignClassifier, normalisation: Normalisation, views: Views
) -> NDArray[np.float32]:
    """Returns what the file itself gives for views uint8 [N, H, W, 3], one at a time: [N, C].

    Nothing of the bundle's graph is used, so that this can be compared with it.

    Raises:
        TrainingError: ONNX Runtime cannot run it.
    """
    session = open_session(classifier.path)
    mean = np.asarray(normalisation.mean, np.float32)
    std = np.asarray(normalisation.std, np.float32)
    rows = []
    for view in views:
        pixels = (view.astype(np.float32) / np.float32(255) - mean) / std
        image = pixels if classifier.is_channels_last else pixels.transpose(2, 0, 1)
        try:
            rows.append(
                session.run([classifier.output_name], {classifier.input_name: image[None]})[0]
            )
        except Exception as error:  # ONNX Runtime's exceptions have no common base
            raise TrainingError(f"{classifier.path}: cannot be run: {error}") from error
    return np.concatenate(rows)


def find_what_it_emits(answers: NDArray[np.float32]) -> Emits:
    """Returns whether rows [N, C] are distributions already."""
    sums_to_one = np.abs(answers.sum(axis=1) - 1).max() < 1e-3
    return "probabilities" if sums_to_one and answers.min() >= 0 else "logits"


def wrap(
    classifier: ForeignClassifier, normalisation: Normalisation, size: Size, emits: Emits
) -> onnx.ModelProto:
    """Returns the graph of a bundle: image uint8 [batch, H, W, 3] -> probabilities [batch, C].

    Raises:
        TrainingError: The checker refuses what came out.
    """
    model = compose.add_prefix(classifier.model, _PREFIX)
    graph = model.graph
    before = _normalise(normalisation, _PREFIX + classifier.input_name, classifier.is_channels_last)
    given, name = [_PREFIX + classifier.output_name], _OURS + "answer"
    if emits == "logits":
        after = helper.make_node("Softmax", given, [PROBABILITIES], name, axis=1)
    else:
        after = helper.make_node("Identity", given, [PROBABILITIES], name)
    nodes = [*before, *graph.node, after]
    weights = {one.name for one in graph.initializer}
    del graph.node[:], graph.input[:], graph.output[:]
    # Shapes that were worked out for the batch it was exported with.
    del graph.value_info[:]
    graph.node.extend(nodes)
    graph.input.append(
        helper.make_tensor_value_info(
            INPUT, TensorProto.UINT8, [_BATCH, size.height, size.width, 3]
        )
    )
    classes = _shape(_find(classifier.model, classifier.output_name))[-1]
    graph.output.append(
        helper.make_tensor_value_info(PROBABILITIES, TensorProto.FLOAT, [_BATCH, classes])
    )
    assert not weights & {INPUT, PROBABILITIES}
    strip_metadata(model)
    try:
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError as error:
        raise TrainingError(f"{classifier.path}: {str(error).splitlines()[0]}") from error
    return model


def _normalise(
    normalisation: Normalisation, result: str, is_channels_last: bool
) -> list[onnx.NodeProto]:
    """Returns the nodes from `image` to `result`; see `training.models.normalise`."""
    shape = (1, 1, 1, 3) if is_channels_last else (1, 3, 1, 1)
    mean, std = np.asarray(normalisation.mean), np.asarray(normalisation.std)
    numbers = {"scale": 1 / (255 * std), "shift": -mean / std}
    constants = [
        helper.make_node(
            "Constant",
            [],
            [_OURS + name],
            _OURS + name,
            value=numpy_helper.from_array(value.astype(np.float32).reshape(shape)),
        )
        for name, value in numbers.items()
    ]
    turned = INPUT if is_channels_last else _OURS + "turned"
    turn = [helper.make_node("Transpose", [INPUT], [turned], turned, perm=[0, 3, 1, 2])]
    cast, scaled = _OURS + "cast", _OURS + "scaled"
    return [
        *constants,
        *([] if is_channels_last else turn),
        helper.make_node("Cast", [turned], [cast], cast, to=TensorProto.FLOAT),
        helper.make_node("Mul", [cast, _OURS + "scale"], [scaled], scaled),
        helper.make_node("Add", [scaled, _OURS + "shift"], [result], _OURS + "normalised"),
    ]


def _choose_output(path: Path, model: onnx.ModelProto, name: str | None) -> str:
    names = [one.name for one in model.graph.output]
    if name is not None and name not in names:
        raise TrainingError(f"{path}: has no output {name}; there are {', '.join(names)}")
    fitting = [
        one.name
        for one in model.graph.output
        if name in (None, one.name)
        and one.type.tensor_type.elem_type == TensorProto.FLOAT
        and len(_shape(one)) == 2
        and _shape(one)[1] is not None
    ]
    if len(fitting) != 1:
        shown = "; ".join(map(_describe, model.graph.output))
        raise TrainingError(
            f"{path}: needs one output float32 [batch, classes]; it has {shown}"
            + ("; name one" if fitting else "")
        )
    return fitting[0]


def _find(model: onnx.ModelProto, output: str) -> onnx.ValueInfoProto:
    return next(one for one in model.graph.output if one.name == output)


def _shape(value: onnx.ValueInfoProto) -> tuple[int | None, ...]:
    """Returns the dimensions; None for one that is only known when it runs."""
    return tuple(
        one.dim_value if one.HasField("dim_value") else None
        for one in value.type.tensor_type.shape.dim
    )


def _describe(value: onnx.ValueInfoProto) -> str:
    kind = TensorProto.DataType.Name(value.type.tensor_type.elem_type).lower()
    shape = ", ".join("?" if one is None else str(one) for one in _shape(value))
    return f"{value.name}: {kind} [{shape}]"
