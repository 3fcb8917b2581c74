"""The class activation map in exported graphs: it adds up, and is computed only when asked for."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from onnx import helper

from service.bundle.manifest import Normalisation, Size
from training.activation_map import add_activation_map
from training.graph import ServedGraph, export_onnx, half_network
from training.models.registry import build_model
from training.session import open_session

NORMALISATION = Normalisation(mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))


def export(architecture, side=64, *, is_half=False, temperature=1.3):
    torch.manual_seed(0)
    network = build_model(architecture, classes=10).eval()
    graph = ServedGraph(
        half_network(network) if is_half else network,
        NORMALISATION,
        temperature=temperature,
        is_half=is_half,
    )
    return export_onnx(graph, Size(height=side, width=side))


def run(model, count=3):
    """Returns probabilities and maps of noise."""
    height, width = (one.dim_value for one in model.graph.input[0].type.tensor_type.shape.dim[1:3])
    noise = np.random.default_rng(2).integers(0, 256, (count, height, width, 3), dtype=np.uint8)
    session = open_session(model.SerializeToString())
    feeds = {"image": noise, "with_cam": np.array(True)}
    return session.run(["probabilities", "cam"], feeds)


@pytest.mark.parametrize(
    ("architecture", "side", "is_half", "cells"),
    [
        ("seed:airbench", 32, False, (3, 3)),  # pools by the maximum
        ("seed:squeezenet1_1", 67, False, (4, 4)),  # classifies each cell, then pools
        ("torchvision:mobilenet_v2", 96, True, (3, 3)),
    ],
)
def test_the_mean_of_the_map_over_its_cells_gives_the_probabilities(
    architecture, side, is_half, cells
):
    probabilities, maps = run(export(architecture, side, is_half=is_half))
    assert maps.shape == (3, 10, *cells)
    weights = np.exp(maps.mean(axis=(2, 3), dtype=np.float64))
    expected = weights / weights.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(probabilities, expected, atol=1e-2 if is_half else 1e-5)


def test_a_map_may_be_the_last_thing_before_the_softmax():
    """SqueezeNet pools scores, and imported weights have no temperature."""
    model = export("seed:squeezenet1_1", 67, temperature=1.0)
    assert run(model)[1].shape == (3, 10, 4, 4)


def test_a_map_that_is_not_asked_for_is_not_computed():
    model = export("seed:airbench", 32)
    session = open_session(model.SerializeToString())
    assert [one.name for one in session.get_inputs()] == ["image"]
    views = np.zeros((2, 32, 32, 3), np.uint8)
    probabilities, maps = session.run(["probabilities", "cam"], {"image": views})
    assert probabilities.shape == (2, 10)
    assert maps.shape == (0, 10, 3, 3)


def test_networks_that_do_not_end_in_pooling_have_none():
    for architecture in ("seed:lenet5", "torchvision:mobilenet_v3_small"):
        model = export(architecture, 32)
        assert "cam" not in [one.name for one in model.graph.output]


def test_a_graph_whose_map_would_not_add_up_gets_none():
    """Something nonlinear between the pooling and the classifier, behind a name that may pass."""
    model = export("seed:airbench", 32)
    plain = onnx.ModelProto()
    plain.CopyFrom(model)
    for kind, names in (("output", {"cam"}), ("input", {"with_cam"})):
        kept = [one for one in getattr(plain.graph, kind) if one.name not in names]
        plain.graph.ClearField(kind)
        getattr(plain.graph, kind).extend(kept)
    nodes = [node for node in plain.graph.node if node.op_type != "If"]
    linear = next(node for node in nodes if node.op_type == "Gemm")
    at = nodes.index(linear)
    shuffle = helper.make_node("Gather", [linear.input[0], "shuffled"], ["mixed"], axis=1)
    linear.input[0] = "mixed"
    plain.graph.ClearField("node")
    plain.graph.node.extend([*nodes[:at], shuffle, *nodes[at:]])
    order = np.random.default_rng(0).permutation(256).astype(np.int64)
    plain.graph.initializer.append(onnx.numpy_helper.from_array(order, "shuffled"))
    onnx.checker.check_model(plain, full_check=True)
    assert add_activation_map(plain) is plain
