"""The int8 variant: as good as fp32 or not there at all."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from service.bundle.manifest import Label, Normalisation, Preprocess, Resize, Size
from service.bundle.repository import read_bundle, verify_files
from training import quantize as quantisation
from training.bundle_writer import BundleFacts
from training.data import load_digits_images
from training.errors import TrainingError
from training.evaluate import evaluate_bundle, image_views
from training.export import ExportOptions, export_network
from training.graph import ServedGraph, export_onnx
from training.provenance import describe_provenance
from training.quantize import quantize

SIZE = Size(height=16, width=16)
PREPROCESS = Preprocess(
    resize=Resize(policy="shorter_side", size=16, interpolation="bilinear"),
    crop=SIZE,
    background=(0, 0, 0),
)
NORMALISATION = Normalisation(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))


class Features(nn.Module):
    """Random convolutions under a linear classifier that is solved, not trained.

    `outlier` makes one channel of the first layer so large that 8 bits for all channels leave
    nothing of the others; the second layer does not look at it.
    """

    def __init__(self, outlier: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(
            nn.Conv2d(3, 17, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(17, 32, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(32, 32, 1),
            nn.ReLU(),
            nn.Conv2d(32, 32, 1),
            nn.ReLU(),
            nn.Flatten(),
        )
        self.head = nn.Linear(512, 10)
        with torch.no_grad():
            self.body[0].weight[16] = outlier
            self.body[0].bias[16] = outlier * 30
            self.body[2].weight[:, 16] = 0

    def forward(self, x):
        return self.head(self.body(x))

    def solve(self, dataset):
        graph = ServedGraph(self, NORMALISATION)
        views = np.concatenate([image_views(dataset, i, PREPROCESS) for i in range(len(dataset))])
        with torch.no_grad():
            features = self.body(graph.normalise(torch.from_numpy(views))).double()
            wanted = nn.functional.one_hot(torch.from_numpy(dataset.labels), 10).double()
            square = features.T @ features
            solved = torch.linalg.solve(
                square + 1e-3 * square.diagonal().mean() * torch.eye(512), features.T @ wanted
            )
            self.head.weight.copy_(20 * solved.T)
            self.head.bias.zero_()
        return self.eval()


@pytest.fixture(scope="module")
def digits():
    everything = load_digits_images()
    return everything.subset(range(600)), everything.subset(range(600, 1797), split="validation")


@pytest.fixture
def stages():
    return []


@pytest.fixture(autouse=True)
def speed_does_not_matter(monkeypatch):
    monkeypatch.setattr(quantisation, "MIN_SPEEDUP", 0.0)


@pytest.fixture(scope="module")
def model(digits):
    return export_onnx(ServedGraph(Features().solve(digits[0]), NORMALISATION), SIZE)


def attempt(model, digits, stages):
    return quantize(model, *digits, PREPROCESS, stages.append)


def count_quantised(model):
    made = {o: n for n in model.graph.node for o in n.output}
    return sum(
        node.op_type in ("Conv", "Gemm", "MatMul")
        and made[node.input[0]].op_type == "DequantizeLinear"
        for node in model.graph.node
    )


def test_an_easy_net_is_quantised_whole(model, digits, stages):
    done = attempt(model, digits, stages)
    onnx.checker.check_model(done.model, full_check=True)
    assert count_quantised(done.model) == 5
    assert stages == ["int8 with 0 of 5 layers in float"]
    assert done.verdict.startswith("int8: top-1 9")
    assert "times as fast" in done.verdict


def test_layers_that_do_not_bear_8_bits_stay_in_float(digits, stages):
    network = Features(outlier=300.0).solve(digits[0])
    done = attempt(export_onnx(ServedGraph(network, NORMALISATION), SIZE), digits, stages)
    assert count_quantised(done.model) == 3
    assert stages == [f"int8 with {n} of 5 layers in float" for n in (0, 1, 2)]
    assert "2 of 5 layers in float" in done.verdict


def test_a_net_that_loses_too_much_has_no_variant_and_says_so(model, digits, stages, monkeypatch):
    monkeypatch.setattr(quantisation, "MAX_TOP1_LOSS", -1.0)
    done = attempt(model, digits, stages)
    assert done.model is None
    assert "No int8 variant: with 2 of 5 layers in float top-1 is still" in done.verdict


def test_a_variant_that_is_not_faster_is_left_out(model, digits, stages, monkeypatch):
    monkeypatch.setattr(quantisation, "MIN_SPEEDUP", 1e9)
    done = attempt(model, digits, stages)
    assert done.model is None
    assert "times as fast as fp32, not" in done.verdict


def test_too_few_images_to_judge_it_are_refused(model, digits, stages):
    train, _ = digits
    with pytest.raises(TrainingError, match="1,000 labelled images or more, digits has 600"):
        attempt(model, (train, train), stages)


def test_the_bundle_holds_both_variants_with_their_accuracy(digits, tmp_path):
    train, validation = digits
    facts = BundleFacts(
        name="digits",
        architecture="test",
        licence="cc0-1.0",
        preprocess=PREPROCESS,
        normalisation=NORMALISATION,
        labels=tuple(Label(name=one) for one in validation.class_names),
        provenance=describe_provenance({}, dataset_fingerprint="", seed=0, hardware="any"),
    )
    options = ExportOptions(has_int8=True, is_calibrated=False)
    folder = export_network(
        Features().solve(train), facts, validation, tmp_path, options, None, train
    )
    bundle = read_bundle(folder)
    verify_files(bundle)
    plain, eight = bundle.manifest.metrics
    assert (plain.variant, eight.variant) == ("fp32", "int8")
    assert eight.top1 >= plain.top1 - 0.005
    assert evaluate_bundle(bundle, validation, precision="int8").top1 == eight.top1
    assert "int8: top-1" in (folder / "MODEL_CARD.md").read_text()
    sizes = {variant.precision: variant.bytes for variant in bundle.manifest.variants}
    assert sizes["int8"] < sizes["fp32"]
