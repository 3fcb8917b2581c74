"""Classifiers that others exported: wrapped so that they answer as they did."""

from __future__ import annotations

import warnings

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from service.bundle.manifest import Normalisation, Size
from service.bundle.repository import read_bundle, verify_files
from service.cli import main
from training.data import load_digits_images
from training.errors import TrainingError
from training.evaluate import image_views
from training.foreign import answer, find_what_it_emits, read_classifier, wrap
from training.session import open_session, run_views

SIZE = Size(height=16, width=16)
NORMALISATION = Normalisation(mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3))
PREPROCESS = ("resize=16", "crop=16", "mean=0.4,0.5,0.6", "std=0.2,0.25,0.3")
CLASSES = 10


def torch_file(path, *, has_softmax=False):
    """As PyTorch's older exporter writes it: NCHW, the tensors named as in a bundle."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(392, CLASSES)
    )
    if has_softmax:
        network.append(nn.Softmax(dim=1))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network.eval(),
            (torch.zeros(2, 3, 16, 16),),
            path,
            dynamo=False,
            input_names=["image"],
            output_names=["probabilities"],
            dynamic_axes={"image": {0: "n"}},
        )
    return path


def graph_file(path, shape, *, outputs=((None, CLASSES),), kind=TensorProto.FLOAT, nodes=None):
    """A mean over the pixels and a product, in the layout of `shape`."""
    weights = numpy_helper.from_array(
        np.random.default_rng(0).normal(size=(3, CLASSES)).astype(np.float32), "w"
    )
    axes = numpy_helper.from_array(np.array([1, 2] if shape[-1] == 3 else [2, 3]), "axes")
    made = nodes or [
        helper.make_node("ReduceMean", ["in", "axes"], ["mean"], keepdims=0),
        helper.make_node("MatMul", ["mean", "w"], ["out0"]),
        *(helper.make_node("Neg", ["out0"], [f"out{n}"]) for n in range(1, len(outputs))),
    ]
    graph = helper.make_graph(
        made,
        "foreign",
        [helper.make_tensor_value_info("in", kind, shape)],
        [
            helper.make_tensor_value_info(f"out{n}", TensorProto.FLOAT, shape)
            for n, shape in enumerate(outputs)
        ],
        [weights, axes],
    )
    opset = [helper.make_opsetid("", 18)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=10), path)
    return path


@pytest.fixture(scope="module")
def views():
    from service.bundle.manifest import Preprocess, Resize

    preprocess = Preprocess(
        resize=Resize(policy="shorter_side", size=16, interpolation="bilinear"),
        crop=SIZE,
        background=(0, 0, 0),
    )
    digits = load_digits_images()
    return np.concatenate([image_views(digits, index, preprocess) for index in range(12)])


def compare(path, views, tmp_path):
    """(what the wrapped graph answers in one batch, what the file answers one by one)."""
    classifier = read_classifier(path, SIZE)
    given = answer(classifier, NORMALISATION, views)
    emits = find_what_it_emits(given)
    onnx.save(wrap(classifier, NORMALISATION, SIZE, emits), tmp_path / "wrapped.onnx")
    (found,) = run_views(open_session(tmp_path / "wrapped.onnx"), views)
    if emits == "logits":
        given = np.exp(given) / np.exp(given).sum(axis=1, keepdims=True)
    return found, given, emits


@pytest.mark.parametrize("has_softmax", [False, True])
def test_a_file_of_pytorch_answers_as_before(tmp_path, views, has_softmax):
    path = torch_file(tmp_path / "net.onnx", has_softmax=has_softmax)
    found, given, emits = compare(path, views, tmp_path)
    assert emits == ("probabilities" if has_softmax else "logits")
    assert np.abs(found - given).max() < 1e-5


@pytest.mark.parametrize("shape", [[1, 3, 16, 16], ["n", 3, None, None], [None, 16, 16, 3]])
def test_any_layout_and_a_fixed_batch_of_one_are_taken(tmp_path, views, shape):
    found, given, _ = compare(graph_file(tmp_path / "net.onnx", shape), views, tmp_path)
    assert np.abs(found - given).max() < 1e-5
    assert found.std(axis=0).max() > 0.01  # it looks at the image


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: p.write_bytes(b"not a model") and p, "no ONNX model"),
        (lambda p: graph_file(p, [1, 1, 28, 28]), r"takes in: float \[1, 1, 28, 28\], not float32"),
        (lambda p: graph_file(p, [1, 3, 16, 16], kind=TensorProto.UINT8), "takes in: uint8"),
        (lambda p: graph_file(p, [1, 3, 16, 16], outputs=[(1, 10), (1, 10)]), "; name one"),
    ],
    ids=["bytes", "grey", "uint8", "two outputs"],
)
def test_what_is_no_classifier_of_such_images_is_refused(tmp_path, make, message):
    with pytest.raises(TrainingError, match=message):
        read_classifier(make(tmp_path / "net.onnx"), SIZE)


def test_one_of_several_outputs_can_be_named(tmp_path):
    path = graph_file(tmp_path / "net.onnx", [1, 3, 16, 16], outputs=[(1, 10), (1, 10)])
    assert read_classifier(path, SIZE, "out1").output_name == "out1"
    with pytest.raises(TrainingError, match="has no output out2; there are out0, out1"):
        read_classifier(path, SIZE, "out2")


@pytest.fixture
def labels(tmp_path):
    path = tmp_path / "labels.txt"
    path.write_text("\n".join(f"class {n}" for n in range(CLASSES)))
    return path


def run_import(tmp_path, *arguments):
    command = ["import", *arguments, "--name", "foreign", "--repository", tmp_path / "models"]
    command += [part for value in PREPROCESS for part in ("--preprocess", value)]
    return CliRunner().invoke(main, [str(part) for part in command], catch_exceptions=False)


def test_the_command_publishes_a_bundle_that_proves_itself(tmp_path, labels):
    path = torch_file(tmp_path / "net.onnx")
    done = run_import(tmp_path, "--onnx", path, "--labels", labels)
    assert done.exit_code == 0, done.stderr
    bundle = read_bundle(tmp_path / "models" / "foreign" / "1")
    verify_files(bundle)
    assert bundle.manifest.architecture == "onnx:net"
    assert bundle.manifest.variants[0].parity.top1_agreement == 1.0
    assert bundle.manifest.provenance.recipe["import"]["onnx"]["emits"] == "logits"


def test_a_graph_that_holds_for_one_image_only_is_not_published(tmp_path, labels):
    reshape = [
        helper.make_node("ReduceMean", ["in", "axes"], ["mean"], keepdims=0),
        helper.make_node("Constant", [], ["one"], value_ints=[1, 3]),
        helper.make_node("Reshape", ["mean", "one"], ["row"]),
        helper.make_node("MatMul", ["row", "w"], ["out0"]),
    ]
    path = graph_file(tmp_path / "net.onnx", [1, 3, 16, 16], nodes=reshape)
    done = run_import(tmp_path, "--onnx", path, "--labels", labels)
    assert done.exit_code == 2
    assert done.stderr.splitlines()[-1].startswith("fivecrop: error: the graph fails on a batch")
    assert not (tmp_path / "models" / "foreign").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give --arch or --onnx"),
        (["--arch", "seed:lenet5", "--onnx", "x.onnx"], "give --arch or --onnx"),
        (["--onnx", "x.onnx", "--fp16"], "imported as it is"),
        (["--onnx", "x.onnx", "--half-weights"], "imported as it is"),
        (["--onnx", "x.onnx"], "names of the classes are needed"),
    ],
)
def test_contradictions_are_refused(tmp_path, arguments, message):
    done = run_import(tmp_path, *arguments)
    assert done.exit_code == 2
    assert message in done.stderr
