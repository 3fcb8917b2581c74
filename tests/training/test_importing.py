from __future__ import annotations

import json
import urllib.error

import numpy as np
import pytest
import torch
import torchvision
from click.testing import CliRunner
from PIL import Image
from safetensors.torch import save_file

from service.bundle.manifest import Label
from service.bundle.repository import list_versions, read_bundle
from service.cli import main
from training.data import load_digits_images
from training.errors import TrainingError
from training.evaluate import score_images
from training.images import load_images, match_classes, sample_photographs
from training.importing import ImportRequest, import_bundle
from training.labels import read_labels
from training.models.lenet import LeNet5
from training.pretrained import build_input, find_weights, read_settings, sure_settings
from training.session import open_session

LENET = ("resize=32", "crop=32", "mean=0.3,0.3,0.3", "std=0.4,0.4,0.4")
TEN = tuple(Label(name=str(index)) for index in range(10))


# ---- labels


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("a.json", '["cat", "dog"]'),
        ("a.json", '[{"name": "cat"}, {"name": "dog"}]'),
        ("a.json", '[{"index": 0, "wnid": "n1", "name": "cat"}, {"index": 1, "name": "dog"}]'),
        ("a.txt", "cat\ndog\n"),
        ("a.txt", "\ufeffcat\r\ndog\r\n"),
        ("a.json", '\ufeff["cat", "dog"]'),
    ],
)
def test_labels_are_read_from_every_layout(tmp_path, file, content):
    (tmp_path / file).write_text(content, encoding="utf-8", newline="")
    labels = read_labels(tmp_path / file)
    assert [label.name for label in labels] == ["cat", "dog"]
    assert labels[0].id == ("n1" if "wnid" in content else None)


def test_a_name_may_hold_any_space_but_a_new_line(tmp_path):
    (tmp_path / "a.txt").write_text("one\u2028cat\ndog\x1cand\n", encoding="utf-8")
    assert [label.name for label in read_labels(tmp_path / "a.txt")] == [
        "one\u2028cat",
        "dog\x1cand",
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{}", "needs a list of two labels or more"),
        ('["one"]', "needs a list of two labels or more"),
        ("[1, 2]", "label 0: Input should be a valid string"),
        ('["cat", ""]', "label 1: String should have at least 1 character"),
        ('[{"name": "a"}, {"id": "b"}]', "label 1 has no name"),
        ('[{"name": "a", "index": 1}, {"name": "b"}]', "label 0 says that it is number 1"),
        ("[", "Expecting value"),
    ],
)
def test_what_is_no_list_of_labels_is_refused(tmp_path, content, message):
    (tmp_path / "labels.json").write_text(content)
    with pytest.raises(TrainingError, match=message):
        read_labels(tmp_path / "labels.json")


# ---- images


@pytest.fixture
def animals():
    return (Label(name="crane", id="n1"), Label(name="crane", id="n2"), Label(name="owl", id="n3"))


def save_image(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8)).save(path)


def test_a_flat_folder_is_labelled_by_the_ids_in_its_names(tmp_path, animals):
    for name in ("n3_owl.png", "n1_crane.jpg", "n2_bird.jpg"):
        save_image(tmp_path / name)
    assert load_images(tmp_path, animals).labels.tolist() == [0, 1, 2]
    save_image(tmp_path / "other.png")
    with pytest.raises(TrainingError, match=r"other\.png: does not start with the id of a class"):
        load_images(tmp_path, animals)


def test_a_flat_folder_without_ids_is_unlabelled(tmp_path, animals):
    save_image(tmp_path / "a.png")
    assert load_images(tmp_path, animals).labels.tolist() == [-1]


def test_folders_are_matched_by_name_or_id(tmp_path, animals):
    for name in ("n2/a.png", "owl/b.png"):
        save_image(tmp_path / name)
    assert load_images(tmp_path, animals).labels.tolist() == [1, 2]


@pytest.mark.parametrize(
    ("name", "message"), [("cat", "'cat' is no class"), ("crane", "names several classes")]
)
def test_a_class_that_cannot_be_told_is_refused(tmp_path, animals, name, message):
    save_image(tmp_path / name / "a.png")
    with pytest.raises(TrainingError, match=message):
        load_images(tmp_path, animals)


def test_classes_are_renumbered_as_the_model_numbers_them():
    digits = load_digits_images().subset(range(20))
    turned = match_classes(digits, TEN[::-1])
    assert (turned.labels == 9 - digits.labels).all()


def test_the_sample_photographs_are_enough_for_the_gates():
    images = sample_photographs(TEN)
    assert len(set(images.images)) == 64
    assert (images.labels == -1).all()


# ---- preprocessing


def test_timm_states_the_preprocessing_of_each_tag():
    (ra4,) = find_weights("timm:resnet34.ra4_e3600_r224_in1k")
    assert ra4.settings["mean"] == (0.5, 0.5, 0.5)
    assert ra4.settings["resize"] == 248  # floor(224 / 0.9)
    (a1,) = find_weights("timm:resnet34.a1_in1k")
    assert a1.settings["mean"] == (0.485, 0.456, 0.406)
    assert a1.settings["interpolation"] == "bicubic"


@pytest.mark.parametrize("tag", ["IMAGENET1K_V1", "IMAGENET1K_V2"])
def test_torchvision_states_the_preprocessing_of_each_tag(tag):
    (found,) = find_weights("torchvision:resnet50", tag)
    transforms = torchvision.models.get_weight(f"ResNet50_Weights.{tag}").transforms()
    assert found.settings["resize"] == transforms.resize_size[0]
    assert found.settings["crop"] == (224, 224)
    assert found.classes == 1000


def test_weights_of_unknown_tag_are_not_guessed_when_it_matters():
    with pytest.raises(TrainingError, match="one of IMAGENET1K_V2, IMAGENET1K_V1"):
        sure_settings("torchvision:resnet50", find_weights("torchvision:resnet50"), {})
    assert sure_settings("torchvision:resnet18", find_weights("torchvision:resnet18"), {})


def test_weights_of_ones_own_need_only_what_published_ones_differ_in():
    published = find_weights("torchvision:resnet50")
    with pytest.raises(TrainingError, match="if it is yours, --preprocess resize="):
        sure_settings("torchvision:resnet50", published, {"mean_255": (0, 0, 0)})
    known = sure_settings("torchvision:resnet50", published, {"resize": 256, "mean_255": (0, 0, 0)})
    assert known["crop"] == (224, 224)
    assert "mean" not in known


def test_a_file_is_not_given_the_licence_of_other_weights(repository, thousand_labels, tmp_path):
    """All tags of this network share their preprocessing, and some are not free."""
    (tmp_path / "w.safetensors").touch()
    result = run_import(
        *(repository, "--arch", "timm:vit_huge_patch14_clip_224", "--name", "x"),
        *("--labels", thousand_labels, "--weights", tmp_path / "w.safetensors"),
    )
    assert_refused(result, repository, "licences differ between its published weights")


def test_a_tag_that_does_not_exist_is_refused():
    with pytest.raises(TrainingError, match="has no weights 'V9'; there are IMAGENET1K_V2"):
        find_weights("torchvision:resnet50", "V9")


def test_settings_come_from_pairs_files_and_tags_and_later_ones_win(tmp_path):
    (tmp_path / "p.toml").write_text('resize = 256\ncrop = [224, 200]\npolicy = "squash"\n')
    values = [str(tmp_path / "p.toml"), "resize=300", "mean_255=123,117,104", "V1", "std=1,1,1"]
    settings, tag = read_settings(values)
    assert tag == "V1"
    found = build_input("seed:x", settings)
    assert (found.preprocess.resize.size, found.preprocess.resize.policy) == (300, "squash")
    assert (found.preprocess.crop.height, found.preprocess.crop.width) == (224, 200)
    assert found.normalisation.mean == (123 / 255, 117 / 255, 104 / 255)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (["colour=red"], "--preprocess colour: unknown"),
        (["resize=32"], "give --preprocess crop=... mean=... std=..."),
        ([*LENET, "resize=8"], "the crop is larger"),
        ([*LENET, "interpolation=best"], "interpolation Input should be"),
        ([*LENET, "mean=1,2"], "mean: needs three numbers"),
        ([*LENET, "crop=32,32,32"], "crop: needs one number, or HEIGHT,WIDTH"),
        ([*LENET, "crop=[32]"], "crop: needs one number, or HEIGHT,WIDTH"),
        (["nowhere.toml"], "nowhere.toml: No such file"),
    ],
)
def test_preprocessing_that_does_not_fit_is_refused(values, message):
    with pytest.raises(TrainingError, match=message.replace("...", r"\.\.\.")):
        build_input("seed:x", read_settings(values)[0])


# ---- the whole import


@pytest.fixture
def repository(tmp_path):
    return tmp_path / "models"


@pytest.fixture
def labels_file(tmp_path):
    path = tmp_path / "labels.txt"
    path.write_text("\n".join(label.name for label in TEN))
    return path


def run_import(repository, *arguments):
    command = [*map(str, arguments), "--repository", str(repository)]
    return CliRunner().invoke(main, ["import", *command], catch_exceptions=False)


def preprocess_options():
    return [part for value in LENET for part in ("--preprocess", value)]


def assert_refused(result, repository, message):
    assert result.exit_code == 2
    assert result.stdout == ""
    *_, last = result.stderr.splitlines()
    assert last.startswith("fivecrop: error: ")
    assert message in last
    assert not repository.exists() or list_versions(repository) == {}


def test_a_weights_file_becomes_a_bundle(repository, labels_file, tmp_path):
    torch.manual_seed(0)
    save_file(LeNet5(10).state_dict(), tmp_path / "w.safetensors")
    result = run_import(
        *(repository, "--arch", "seed:lenet5", "--name", "lenet", "--json", *preprocess_options()),
        *("--weights", tmp_path / "w.safetensors", "--labels", labels_file),
    )
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["name"] == "lenet"
    manifest = read_bundle(repository / "lenet" / "1").manifest
    assert manifest.calibration is None
    assert manifest.licence == "unknown"
    weights = manifest.provenance.recipe["import"]["weights"]
    assert weights["file"] == "w.safetensors"
    assert len(weights["sha256"]) == 64


def test_weights_of_16_bits_halve_the_file(repository, labels_file):
    result = run_import(
        *(repository, "--arch", "seed:airbench_deep", "--random-weights", "--name", "halved"),
        *(*preprocess_options(), "--labels", labels_file, "--half-weights"),
    )
    assert result.exit_code == 0, result.stderr
    size = (repository / "halved" / "1" / "model.onnx").stat().st_size
    assert 2 < size / 2_318_904 < 2.1  # bytes a parameter


def test_weights_that_do_not_fit_are_refused(repository, labels_file, tmp_path):
    save_file({"c1.weight": torch.zeros(6, 1, 5, 5)}, tmp_path / "w.safetensors")
    result = run_import(
        *(repository, "--arch", "seed:lenet5", "--name", "lenet", *preprocess_options()),
        *("--weights", tmp_path / "w.safetensors", "--labels", labels_file),
    )
    assert_refused(result, repository, "seed:lenet5: the weights lack")


def test_random_weights_say_so_and_need_no_names(repository):
    request = ImportRequest(
        architecture="seed:lenet5", name="random", random_seed=1, preprocess=LENET
    )
    bundle = read_bundle(import_bundle(request, repository))
    assert "**Random weights** (seed 1)" in (bundle.folder / "MODEL_CARD.md").read_text()
    assert bundle.manifest.labels[7].name == "class 7"
    assert bundle.manifest.provenance.recipe["import"]["weights"] == "random"
    # Clear answers although nothing was learnt, and not one answer for everything.
    assert sum(bundle.manifest.reference.confidence_histogram[:1]) < 64
    assert np.count_nonzero(bundle.manifest.reference.predicted_classes) > 1
    again = read_bundle(import_bundle(request, repository)).manifest
    assert again.variants[0].sha256 == bundle.manifest.variants[0].sha256


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--arch", "seed:lenet5"], "the names of the classes are needed"),
        (
            ["--arch", "lenet5", "--random-weights"],
            "the preprocessing of these weights is not known",
        ),
        (["--arch", "timm:nothing", "--random-weights", *preprocess_options()], "timm:nothing"),
        (
            ["--arch", "seed:lenet5", "--random-weights", "--weights", "w.safetensors"],
            "not both",
        ),
    ],
)
def test_requests_that_cannot_be_met_are_one_line(repository, arguments, message):
    assert_refused(run_import(repository, "--name", "x", *arguments), repository, message)


def test_a_number_of_names_that_is_not_that_of_the_weights_is_refused(repository, labels_file):
    result = run_import(
        *(repository, "--arch", "torchvision:resnet18", "--name", "x", "--labels", labels_file)
    )
    assert_refused(result, repository, "tells 1000 classes apart")


@pytest.fixture
def thousand_labels(tmp_path):
    path = tmp_path / "thousand.json"
    path.write_text(json.dumps([f"class {index}" for index in range(1000)]))
    return path


@pytest.mark.parametrize(
    ("architecture", "licence"),
    [
        ("timm:convnextv2_atto.fcmae_ft_in1k", "cc-by-nc-4.0"),
        ("timm:resnet18.fb_swsl_ig1b_ft_in1k", "cc-by-nc-4.0"),
        ("torchvision:regnet_y_128gf", "SWAG"),
    ],
)
def test_licences_that_may_forbid_commercial_use_are_refused(
    repository, thousand_labels, architecture, licence
):
    result = run_import(
        *(repository, "--arch", architecture, "--name", "x", "--labels", thousand_labels)
    )
    assert_refused(result, repository, "--accept-licence imports it all the same")
    assert licence in result.stderr


@pytest.mark.parametrize(
    "architecture", ["torchvision:squeezenet1_1", "timm:resnet18.fb_swsl_ig1b_ft_in1k"]
)
def test_a_hub_out_of_reach_is_told_in_one_line(
    repository, thousand_labels, architecture, monkeypatch, tmp_path
):
    def refuse(*arguments, **options):
        raise urllib.error.URLError("the network is off")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torch.hub.download_url_to_file", refuse)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    result = run_import(
        *(repository, "--arch", architecture, "--name", "x", "--labels", thousand_labels),
        "--accept-licence",
    )
    assert_refused(result, repository, architecture)
    assert "--weights FILE needs no network" in result.stderr


@pytest.mark.data
def test_squeezenet_answers_the_photographs_as_it_does_in_pytorch(
    shared_data, repository, shared_squeezenet_reference
):
    request = ImportRequest(
        architecture="seed:squeezenet1_1",
        name="squeezenet",
        weights=shared_data / "squeezenet1_1-imagenet.safetensors",
        preprocess=("resize=256", "crop=227", "mean_255=123,117,104", "std_255=1,1,1"),
        labels=shared_data / "imagenet-classes.json",
        images=shared_data / "imagenet-sample",
    )
    bundle = read_bundle(import_bundle(request, repository))
    (metrics,) = bundle.manifest.metrics
    assert (metrics.images, metrics.top1, metrics.top5) == (100, 0.64, 0.85)
    images = load_images(request.images, bundle.manifest.labels)
    session = open_session(bundle.folder / "model.onnx")
    found = score_images(session, images, bundle.manifest.preprocess).probabilities
    expected = shared_squeezenet_reference(request.images)
    assert np.abs(found - expected).max() < 1e-4
    assert (found.argmax(axis=1) == expected.argmax(axis=1)).all()
