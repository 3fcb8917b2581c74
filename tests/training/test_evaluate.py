from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from click.testing import CliRunner

from service.bundle.decode import Limits
from service.bundle.postprocess import average_views
from service.bundle.preprocess import TTA_POLICIES, prepare
from service.bundle.repository import read_bundle, resolve
from service.cli import main
from training.data import load_digits_images, split_stratified
from training.errors import TrainingError
from training.evaluate import evaluate_bundle, score_images
from training.session import open_session, run_views


@pytest.fixture(scope="module")
def bundle(tiny_bundle_repository):
    return read_bundle(resolve(tiny_bundle_repository, "digits-linear"))


@pytest.fixture(scope="module")
def validation():
    """The images that `digits-linear` was measured on when it was published."""
    return split_stratified(load_digits_images(), 0.3, seed=0).validation


@pytest.fixture(scope="module")
def session(bundle):
    return open_session(bundle.folder / "model.onnx")


def test_evaluation_repeats_what_the_manifest_states(bundle, validation):
    (stated,) = bundle.manifest.metrics
    assert evaluate_bundle(bundle, validation).metrics("fp32") == stated


@pytest.mark.parametrize("tta", TTA_POLICIES)
@pytest.mark.parametrize("average", ["arithmetic", "geometric"])
def test_every_policy_answers_as_the_service_would(bundle, validation, session, tta, average):
    some = validation.subset(range(9))
    preprocess = bundle.manifest.preprocess
    scored = score_images(session, some, preprocess, tta=tta, average=average)
    for index, found in enumerate(scored.probabilities):
        views = prepare(some.image_bytes(index), preprocess, tta=tta, limits=Limits()).views
        expected = average_views(run_views(session, views)[0], average)
        np.testing.assert_allclose(found, expected, atol=1e-6)


def test_progress_counts_every_image_once(bundle, validation, session):
    done = []
    some = validation.subset(range(37))
    score_images(session, some, bundle.manifest.preprocess, on_progress=done.append)
    assert sum(done) == 37


def test_the_order_of_answers_is_that_of_the_images(bundle, validation, session):
    preprocess = bundle.manifest.preprocess
    some = validation.subset(range(50))
    forward = score_images(session, some, preprocess)
    backward = score_images(session, some.subset(range(49, -1, -1)), preprocess)
    np.testing.assert_allclose(forward.probabilities, backward.probabilities[::-1], atol=1e-6)
    np.testing.assert_allclose(forward.embedding, backward.embedding[::-1], atol=1e-6)


def test_a_damaged_image_is_told_by_its_number(bundle, validation):
    images = [*validation.images[:3], validation.image_bytes(3)[:-40]]
    damaged = replace(validation, images=images, labels=validation.labels[:4])
    with pytest.raises(TrainingError, match=r"digits: image 3: damaged png image"):
        evaluate_bundle(bundle, damaged)


def test_an_answer_that_is_no_number_stops_the_evaluation(bundle, validation, monkeypatch):
    class Broken:
        def get_outputs(self):
            return []

        def run(self, names, inputs):
            return [np.full((len(inputs["image"]), 10), np.nan, np.float32)]

    with pytest.raises(TrainingError, match="not a number"):
        score_images(Broken(), validation.subset(range(3)), bundle.manifest.preprocess)


def test_images_without_labels_have_no_accuracy(bundle, validation):
    unlabelled = replace(validation, labels=np.full(len(validation), -1))
    with pytest.raises(TrainingError, match="digits: its images have no labels"):
        evaluate_bundle(bundle, unlabelled)


def test_an_absent_variant_is_refused(bundle, validation):
    with pytest.raises(TrainingError, match="has no fp16 variant"):
        evaluate_bundle(bundle, validation, precision="fp16")


@pytest.fixture
def data_folder(tmp_path, validation):
    for index in range(80):
        folder = tmp_path / "data" / validation.class_names[validation.labels[index]]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{index}.png").write_bytes(validation.image_bytes(index))
    return tmp_path / "data"


def test_the_command_prints_data_on_stdout_alone(tiny_bundle_repository, data_folder):
    arguments = ["digits-linear", "--repository", str(tiny_bundle_repository)]
    arguments += ["--data", str(data_folder), "--tta", "hflip", "--json"]
    result = CliRunner().invoke(main, ["evaluate", *arguments], catch_exceptions=False)
    assert result.exit_code == 0
    document = json.loads(result.stdout)
    assert (document["bundle"], document["tta"], document["images"]) == (
        "digits-linear@1",
        "hflip",
        80,
    )
    assert sum(map(sum, document["matrix"])) == 80


def test_the_command_takes_a_folder_and_prints_a_table(bundle, data_folder):
    result = CliRunner().invoke(main, ["evaluate", str(bundle.folder), "--data", str(data_folder)])
    assert result.exit_code == 0
    assert "top-1   9" in result.stdout
    assert "95 %" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing"], "no bundle 'nothing'"),
        (["digits-linear@9"], "has no version '9'"),
        (["digits-linear"], "was not trained by a recipe; give --data"),
        (["digits-linear", "--data", "/nowhere"], "no such file or folder"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(tiny_bundle_repository, arguments, message):
    command = [*arguments, "--repository", str(tiny_bundle_repository)]
    result = CliRunner().invoke(main, ["evaluate", *command])
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.startswith("fivecrop: error: ")
    assert message in result.stderr
    assert result.stderr.count("\n") == 1


def test_finding_the_commands_imports_nothing_heavy():
    heavy = {"torch", "torchvision", "timm", "sklearn", "onnx", "numpy", "matplotlib"}
    code = f"import sys, training.cli; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_evaluating_needs_no_pytorch():
    code = "import sys, training.evaluate, training.images; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
