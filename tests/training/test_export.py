"""Exports of untrained networks: what the gates prove does not depend on what was learnt."""

from __future__ import annotations

import copy
import getpass
import json
import socket
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper

from service.bundle.decode import Limits
from service.bundle.manifest import Label, Normalisation, Preprocess, Resize, Size
from service.bundle.preprocess import prepare
from service.bundle.repository import list_versions, read_bundle, read_golden, verify_files
from service.errors import BundleError
from training.bundle_writer import BundleFacts, BundleWriter
from training.config import load_recipe
from training.data import load_digits_images
from training.errors import TrainingError
from training.export import ExportOptions, export_network, export_run, network_probabilities
from training.graph import ServedGraph, export_onnx
from training.half_weights import round_to_half
from training.models.airbench import Airbench
from training.models.lenet import LeNet5
from training.parity import parity_views
from training.provenance import describe_provenance, forget_folders
from training.session import open_session, run_views
from training.train import train

NAME = "untrained"
REPOSITORY_ROOT = Path(__file__).parents[2]


def make_network(seed: int = 0) -> LeNet5:
    torch.manual_seed(seed)
    network = LeNet5(10).eval()
    with torch.no_grad():  # clear answers, as those of a trained network
        network.head.weight.mul_(20)
    return network


@pytest.fixture(scope="module")
def images():
    return load_digits_images().subset(range(0, 1797, 18), split="validation")


@pytest.fixture(scope="module")
def facts(images):
    return BundleFacts(
        name=NAME,
        architecture="seed:lenet5",
        licence="cc0-1.0",
        preprocess=Preprocess(
            resize=Resize(policy="shorter_side", size=32, interpolation="bilinear"),
            crop=Size(height=32, width=32),
            background=(0, 0, 0),
        ),
        normalisation=Normalisation(mean=(0.3, 0.31, 0.32), std=(0.37, 0.36, 0.35)),
        labels=tuple(Label(name=name) for name in images.class_names),
        provenance=describe_provenance(
            {"data": {"train": str(REPOSITORY_ROOT / "secret" / "train.parquet")}},
            dataset_fingerprint="none",
            seed=0,
            hardware="test",
        ),
    )


@pytest.fixture(scope="module")
def network():
    return make_network()


@pytest.fixture(scope="module")
def published(network, facts, images, tmp_path_factory):
    """A bundle with both variants, calibrated."""
    repository = tmp_path_factory.mktemp("published")
    folder = export_network(
        network,
        facts,
        images,
        repository,
        ExportOptions(has_fp16=True, tta_policies=("hflip", "ten_crop")),
    )
    return read_bundle(folder)


@pytest.fixture(scope="module")
def graph(network, facts):
    return ServedGraph(network, facts.normalisation)


@pytest.fixture(scope="module")
def model(graph, facts):
    return export_onnx(graph, facts.preprocess.crop)


@pytest.fixture
def writer(facts, model, graph, images):
    """Publishes without complaint until a test breaks one part of it."""
    return BundleWriter(
        facts=facts,
        graphs={"fp32": model},
        images=images,
        expected=lambda views: network_probabilities(graph, views),
    )


def assert_nothing_published(repository: Path) -> None:
    assert not repository.is_dir() or list_versions(repository) == {}
    left = list(repository.iterdir()) if repository.is_dir() else []
    assert left == []


def test_a_published_bundle_proves_itself(published):
    verify_files(published)
    manifest = published.manifest
    assert [output.name for output in manifest.outputs] == ["probabilities", "embedding"]
    assert {variant.precision for variant in manifest.variants} == {"fp32", "fp16"}
    assert {(one.variant, one.tta) for one in manifest.metrics} == {
        ("fp32", "none"),
        ("fp32", "hflip"),
        ("fp32", "ten_crop"),
        ("fp16", "none"),
    }
    assert sum(manifest.reference.predicted_classes) == 100
    assert sum(manifest.reference.confidence_histogram) == 100
    assert len(manifest.reference.embedding_mean) == 84
    session = open_session(published.folder / "model.onnx")
    for sample in read_golden(published).samples:
        data = (published.folder / sample.file).read_bytes()
        views = prepare(data, manifest.preprocess, limits=Limits()).views
        answer = run_views(session, views)[0][0]
        np.testing.assert_allclose(answer, sample.probabilities, atol=1e-5)
        assert int(answer.argmax()) == sample.top[0]


def test_probabilities_are_the_network_behind_its_normalisation_and_temperature(
    published, network, images
):
    """Written out once more, from the definition, in float64."""
    manifest = published.manifest
    data = images.image_bytes(5)
    view = prepare(data, manifest.preprocess, limits=Limits()).views
    mean, std = map(np.array, (manifest.normalisation.mean, manifest.normalisation.std))
    pixels = torch.from_numpy(((view / 255 - mean) / std).transpose(0, 3, 1, 2))
    with torch.no_grad():
        logits = make_network().double()(pixels).numpy()[0] / manifest.calibration.temperature
    expected = np.exp(logits - logits.max())
    expected /= expected.sum()
    found = run_views(open_session(published.folder / "model.onnx"), view)[0][0]
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_bytes_are_transposed_before_they_are_floats(model):
    steps = [node.op_type for node in model.graph.node]
    assert steps[:4] == ["Transpose", "Cast", "Mul", "Add"]
    assert steps[-1] == "Softmax"
    # The embedding is on the way to the probabilities, not a second pass through the network.
    assert steps.count("Conv") == 2
    assert model.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.UINT8
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param


def test_the_same_weights_give_the_same_bytes(model, facts):
    again = export_onnx(ServedGraph(make_network(), facts.normalisation), facts.preprocess.crop)
    assert again.SerializeToString() == model.SerializeToString()


def test_no_published_file_tells_about_this_machine(published, tmp_path):
    private = [
        str(REPOSITORY_ROOT),
        str(Path.home()) + "/",
        str(tmp_path.parent),
        torch.__file__.rpartition("/")[0],
        "site-packages",
        "secret",
    ]
    # A short name may be any three bytes of the weights.
    private += [name for name in (getpass.getuser(), socket.gethostname()) if len(name) > 5]
    for path in published.folder.rglob("*"):
        content = path.read_bytes() if path.is_file() else b""
        found = [text for text in private if text.encode() in content]
        assert not found, f"{path.name} holds {found}"


def test_paths_lose_their_folders_and_nothing_else_changes():
    recipe = {"a": ["/srv/x/train.parquet", 3], "b": {"c": "C:\\x\\y.toml", "d": "../z/w.json"}}
    assert forget_folders(recipe) == {
        "a": ["train.parquet", 3],
        "b": {"c": "y.toml", "d": "../z/w.json"},
    }


def test_publishing_again_makes_the_next_version(writer, tmp_path):
    assert [writer.publish(tmp_path).name for _ in range(2)] == ["1", "2"]


def test_calibration_lowers_the_likelihood_of_the_bundle(published, writer, tmp_path):
    plain = read_bundle(writer.publish(tmp_path)).manifest
    assert plain.calibration is None
    assert published.manifest.metrics[0].nll < plain.metrics[0].nll
    assert published.manifest.metrics[0].top1 == plain.metrics[0].top1


def test_unlabelled_images_gate_a_bundle_but_give_no_accuracy(writer, images, tmp_path):
    unlabelled = replace(images, labels=np.full(len(images), -1))
    manifest = read_bundle(replace(writer, images=unlabelled).publish(tmp_path)).manifest
    assert manifest.metrics == ()
    assert manifest.decision.abstain_below is None
    assert manifest.variants[0].parity.images == 100


# ---- gates: each fails with its numbers, and nothing is published


def test_a_graph_with_other_weights_is_refused(writer, facts, tmp_path):
    other = export_onnx(ServedGraph(make_network(1), facts.normalisation), facts.preprocess.crop)
    with pytest.raises(TrainingError, match=r"parity of fp32 failed on 100 images: .* differ by"):
        replace(writer, graphs={"fp32": other}).publish(tmp_path)
    assert_nothing_published(tmp_path)


def test_one_wrong_number_in_the_weights_is_refused(writer, model, tmp_path):
    damaged = onnx.ModelProto()
    damaged.CopyFrom(model)
    (bias,) = (one for one in damaged.graph.initializer if one.name == "network.head.bias")
    values = numpy_helper.to_array(bias).copy()
    values[3] += 0.05
    bias.CopyFrom(numpy_helper.from_array(values, bias.name))
    with pytest.raises(TrainingError, match="parity of fp32 failed"):
        replace(writer, graphs={"fp32": damaged}).publish(tmp_path)
    assert_nothing_published(tmp_path)


@pytest.mark.parametrize("is_calibrated", [True, False])
def test_weights_that_are_no_number_are_refused(facts, images, tmp_path, is_calibrated):
    network = make_network()
    with torch.no_grad():
        network.c3.weight[0, 0, 0, 0] = float("nan")
    options = ExportOptions(is_calibrated=is_calibrated)
    with pytest.raises(TrainingError, match="not a number on 100 of 100 images"):
        export_network(network, facts, images, tmp_path, options)
    assert_nothing_published(tmp_path)


def test_a_graph_that_answers_no_number_is_refused(writer, model, tmp_path):
    damaged = onnx.ModelProto()
    damaged.CopyFrom(model)
    (bias,) = (one for one in damaged.graph.initializer if one.name == "network.head.bias")
    bias.CopyFrom(numpy_helper.from_array(np.full(10, np.nan, np.float32), bias.name))
    with pytest.raises(TrainingError, match="differ by nan"):
        replace(writer, graphs={"fp32": damaged}).publish(tmp_path)
    assert_nothing_published(tmp_path)


def test_one_other_best_class_is_refused_however_small_the_difference(facts, images, tmp_path):
    """All answers lie within 1e-4 of each other, but the order of two classes is turned round."""
    network = make_network()
    with torch.no_grad():
        network.head.weight.mul_(1e-9)
        network.head.bias.zero_()
        network.head.bias[:2] = torch.tensor([2e-5, 1e-5])
    graph = ServedGraph(network, facts.normalisation)

    def expected(views):
        probabilities = network_probabilities(graph, views).copy()
        probabilities[7, [0, 1]] = probabilities[7, [1, 0]]
        return probabilities

    writer = BundleWriter(
        facts=facts,
        graphs={"fp32": export_onnx(graph, facts.preprocess.crop)},
        images=images,
        expected=expected,
    )
    with pytest.raises(TrainingError, match=r"top-1 agrees on 98\.\d\d% \(at least 100%\)"):
        writer.publish(tmp_path)
    assert_nothing_published(tmp_path)


def test_half_precision_that_strays_is_refused(writer, model, tmp_path):
    other = make_network(1).half()
    half = ServedGraph(other, writer.facts.normalisation, is_half=True)
    graphs = {"fp32": model, "fp16": export_onnx(half, writer.facts.preprocess.crop)}
    with pytest.raises(TrainingError, match="parity of fp16 failed"):
        replace(writer, graphs=graphs).publish(tmp_path)
    assert_nothing_published(tmp_path)


def test_the_gate_runs_at_the_optimisation_level_that_serves(published):
    options = open_session(published.folder / "model.onnx").get_session_options()
    level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    assert options.graph_optimization_level == level
    assert options.intra_op_num_threads == 1


def test_too_few_images_prove_nothing(writer, images, tmp_path):
    with pytest.raises(TrainingError, match="parity needs 64 images or more, digits has 63"):
        replace(writer, images=images.subset(range(63))).publish(tmp_path)
    assert_nothing_published(tmp_path)


def test_a_number_of_labels_that_is_not_that_of_the_classes_is_refused(writer, facts, tmp_path):
    short = replace(facts, labels=facts.labels[:9])
    with pytest.raises(TrainingError, match="tells 10 classes apart, there are 9 labels"):
        replace(writer, facts=short).publish(tmp_path)
    assert_nothing_published(tmp_path)


def test_a_network_that_cannot_be_traced_is_told_in_one_line(facts, images, tmp_path):
    class Untraceable(torch.nn.Module):
        def forward(self, x):
            return x.mean((2, 3)) if float(x.sum().item()) > 0 else x.amax((2, 3))

    options = ExportOptions(is_calibrated=False)
    with pytest.raises(TrainingError, match="the network cannot be exported") as caught:
        export_network(Untraceable(), facts, images, tmp_path, options)
    assert "\n" not in str(caught.value)
    assert_nothing_published(tmp_path)


def test_a_repository_that_cannot_be_written_is_told(writer, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(TrainingError, match="file/models cannot be written: Not a directory"):
        writer.publish(tmp_path / "file" / "models")


def test_a_name_that_is_no_model_name_is_refused(writer, facts, tmp_path):
    with pytest.raises(BundleError, match="is not a model name"):
        replace(writer, facts=replace(facts, name="../up")).publish(tmp_path)
    assert_nothing_published(tmp_path)


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    recipe = load_recipe(
        REPOSITORY_ROOT / "training/recipes/digits-lenet5.toml", ["train.epochs=1"]
    )
    folder = tmp_path_factory.mktemp("run") / "run"
    return train(recipe, run_dir=folder, is_progress_shown=False)


def test_a_run_is_exported_with_its_recipe_and_curves(run_dir, tmp_path):
    bundle = read_bundle(export_run(run_dir, name="digits", repository=tmp_path))
    manifest = bundle.manifest
    assert manifest.provenance.recipe["train"]["epochs"] == 1
    assert manifest.provenance.seed == 0
    assert manifest.metrics[0].images == 360
    assert manifest.calibration is not None
    assert "report/learning_curves.png" in manifest.files
    assert "learning_curves.png" in (bundle.folder / "MODEL_CARD.md").read_text()


def test_an_export_calibrates_label_sets_and_knows_the_groups_it_is_given(run_dir, tmp_path):
    parents = {str(digit): ("odd" if digit % 2 else "even") for digit in range(10)}
    hierarchy = tmp_path / "hierarchy.json"
    hierarchy.write_text(json.dumps(parents))
    options = ExportOptions(has_class_thresholds=True, tta_policies=("hflip",))
    bundle = read_bundle(
        export_run(
            run_dir,
            name="digits",
            repository=tmp_path / "models",
            hierarchy=hierarchy,
            options=options,
        )
    )
    manifest = bundle.manifest
    assert [group.name for group in manifest.groups] == ["even", "odd"]
    assert [label.parent for label in manifest.labels] == [0, 1] * 5
    assert [one.tta for one in manifest.decision.conformal] == ["none", "hflip"]
    assert all(one.images == 360 for one in manifest.decision.conformal)
    assert len(manifest.decision.abstain_below_by_class) == 10
    assert "Sets of labels" in (bundle.folder / "MODEL_CARD.md").read_text()


def test_a_run_whose_data_has_changed_is_refused(run_dir, tmp_path):
    facts_file = run_dir / "run.json"
    original = facts_file.read_text()
    facts = json.loads(original)
    facts["data"]["validation"]["fingerprint"] = "0" * 64
    facts_file.write_text(json.dumps(facts))
    try:
        with pytest.raises(TrainingError, match="validation images are not those"):
            export_run(run_dir, name="digits", repository=tmp_path)
    finally:
        facts_file.write_text(original)
    assert_nothing_published(tmp_path)


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(TrainingError, match="is this a run folder"):
        export_run(tmp_path, name="digits", repository=tmp_path / "models")
    assert_nothing_published(tmp_path / "models")


@pytest.fixture(scope="module")
def convolutional():
    """Convolutions of 864 to 20,736 weights, with the statistics of noise behind them."""
    torch.manual_seed(0)
    network = Airbench(10, (16, 40, 48), is_deep=True)
    with torch.no_grad():
        network(torch.randn(64, 3, 32, 32))
    return network.eval()


def publish_halved(network, facts, images, repository):
    options = ExportOptions(has_half_weights=True, has_fp16=True)
    return read_bundle(export_network(network, facts, images, repository, options))


def test_weights_of_16_bits_answer_as_the_network_that_was_rounded(
    convolutional, facts, images, tmp_path
):
    bundle = publish_halved(convolutional, facts, images, tmp_path)
    verify_files(bundle)
    assert "stored in 16 bits" in (bundle.folder / "MODEL_CARD.md").read_text()
    model = onnx.load(bundle.folder / "model.onnx")
    kinds = {one.name: one.data_type for one in model.graph.initializer if len(one.dims) == 4}
    halves = [name for name, kind in kinds.items() if kind == onnx.TensorProto.FLOAT16]
    assert len(halves) == 5  # 16-40 has 5,760 weights; 40-40 twice, 40-48, 48-48 twice have more
    rounded = round_to_half(convolutional)
    changes = (rounded.blocks[2].conv1.weight - convolutional.blocks[2].conv1.weight).abs()
    assert 0 < changes.max() <= convolutional.blocks[2].conv1.weight.abs().max() * 2**-11
    views = parity_views(images, facts.preprocess)
    temperature = bundle.manifest.calibration.temperature
    graph = ServedGraph(rounded, facts.normalisation, temperature=temperature)
    session = open_session(bundle.folder / "model.onnx")
    answer = run_views(session, views)[0]
    np.testing.assert_allclose(answer, network_probabilities(graph, views), atol=2e-6)


def test_weights_of_16_bits_are_constants_of_32_once_loaded(convolutional, facts, images, tmp_path):
    bundle = publish_halved(convolutional, facts, images, tmp_path)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(tmp_path / "loaded.onnx")
    onnxruntime.InferenceSession(bundle.folder / "model.onnx", options)
    loaded = onnx.load(tmp_path / "loaded.onnx").graph
    assert onnx.TensorProto.FLOAT16 not in {one.data_type for one in loaded.initializer}
    assert [node.op_type for node in loaded.node].count("Cast") == 1  # of the pixels


def test_a_weight_that_16_bits_cannot_hold_is_refused(convolutional, facts, images, tmp_path):
    network = copy.deepcopy(convolutional)
    with torch.no_grad():
        network.blocks[1].conv2.weight[0, 0] = 7e4
    with pytest.raises(TrainingError, match=r"blocks\.1\.conv2\.weight is too large for 16 bits"):
        publish_halved(network, facts, images, tmp_path)
    assert_nothing_published(tmp_path)
