"""Bundles are found, and proved to be what was published, or refused with one clear line."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.bundle.repository import (
    list_versions,
    publishing,
    read_bundle,
    read_golden,
    resolve,
    verify_files,
)
from service.errors import BundleError

KINDS = ("model.onnx", "MODEL_CARD.md", "golden/0.png", "golden/golden.json", "bundle.json")


def prove(folder: Path) -> None:
    """What loading a bundle does before the graph is opened."""
    bundle = read_bundle(folder)
    verify_files(bundle)
    read_golden(bundle)


def refusal(folder: Path) -> str:
    """Returns the message that a bundle is refused with; it is one line."""
    with pytest.raises(BundleError) as caught:
        prove(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def is_sound(folder: Path) -> bool:
    try:
        prove(folder)
    except BundleError:
        return False
    return True


def make_versions(repository: Path, *names: str) -> None:
    for name in names:
        (repository / name).mkdir(parents=True)
        (repository / name / "bundle.json").touch()


def test_a_published_bundle_is_found_and_proved(handmade_bundle):
    repository = handmade_bundle.parents[1]
    assert list_versions(repository) == {"handmade": [1]}
    assert resolve(repository, "handmade") == resolve(repository, "handmade@1") == handmade_bundle
    bundle = read_bundle(handmade_bundle)
    assert bundle.reference == "handmade@1"
    assert len(bundle.digest) == 64
    assert bundle.variant("fp32").file == "model.onnx"
    assert bundle.variant("fp16") is None
    assert len(read_golden(bundle).samples) == 4
    verify_files(bundle)


def test_the_handmade_graph_gives_its_golden_probabilities(handmade_bundle):
    session = onnxruntime.InferenceSession(handmade_bundle / "model.onnx")
    golden = read_golden(read_bundle(handmade_bundle))
    red = np.broadcast_to(np.array([255, 0, 0], np.uint8), (2, 6, 8, 3))
    (probabilities,) = session.run(["probabilities"], {"image": red})
    np.testing.assert_allclose(probabilities[1], golden.samples[0].probabilities, atol=1e-6)


def test_versions_are_numbers_and_sorted_as_numbers(tmp_path):
    make_versions(tmp_path, "a/9", "a/10", "a/2", "b/1")
    assert list_versions(tmp_path) == {"a": [2, 9, 10], "b": [1]}
    assert resolve(tmp_path, "a").name == "10"
    assert resolve(tmp_path, "a@9").name == "9"


@pytest.mark.parametrize("version", ["01", "0", "-1", "+1", "1.0", "v1", "\u0661", "1 ", "1_0"])
def test_other_spellings_of_a_version_are_invisible(version, tmp_path):
    make_versions(tmp_path, f"a/{version}", "a/7")
    assert list_versions(tmp_path) == {"a": [7]}
    with pytest.raises(BundleError, match="has no version"):
        resolve(tmp_path, f"a@{version}")


def test_only_folders_with_a_manifest_are_versions(tmp_path):
    make_versions(tmp_path, "a/1", ".staging-x/2", "Capital/1", "sp ace/1")
    (tmp_path / "a" / "2" / "golden").mkdir(parents=True)
    (tmp_path / "a" / "3").touch()
    (tmp_path / "README.md").touch()
    (tmp_path / "empty").mkdir()
    assert list_versions(tmp_path) == {"a": [1]}


def test_an_absent_repository_is_an_error(tmp_path):
    with pytest.raises(BundleError, match="No such file"):
        list_versions(tmp_path / "absent")
    (tmp_path / "file").touch()
    with pytest.raises(BundleError, match="Not a directory"):
        list_versions(tmp_path / "file")


@pytest.mark.parametrize("reference", ["", "@", "@1", "b", "b@1", "../a", "a/1", "a/../a", "A"])
def test_unknown_references_are_refused(reference, tmp_path):
    make_versions(tmp_path, "a/1")
    with pytest.raises(BundleError, match="no bundle"):
        resolve(tmp_path, reference)


def test_a_half_copied_folder_is_invisible_until_its_manifest_and_refused_until_its_last_file(
    handmade_bundle,
):
    copy = handmade_bundle.with_name("2")
    files = sorted(path for path in handmade_bundle.rglob("*") if path.is_file())
    files.sort(key=lambda path: path.name == "bundle.json")
    for file in files:
        assert list_versions(handmade_bundle.parents[1]) == {"handmade": [1]}
        target = copy / file.relative_to(handmade_bundle)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, target)
    assert list_versions(handmade_bundle.parents[1]) == {"handmade": [1, 2]}
    assert "folders are NAME/VERSION" in refusal(copy)


@pytest.mark.parametrize("kind", KINDS)
def test_a_missing_file_is_refused(kind, handmade_bundle):
    (handmade_bundle / kind).unlink()
    assert kind in refusal(handmade_bundle)


@pytest.fixture(scope="module")
def sound_bundle(tmp_path_factory, write_bundle) -> Path:
    """A bundle for tests that put it right again."""
    repository = tmp_path_factory.mktemp("sound")
    with publishing(repository, "handmade") as (staging, version):
        write_bundle(staging, version=version)
    return repository / "handmade" / "1"


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=40)
@given(data=st.data())
def test_one_flipped_bit_is_refused(kind, data, sound_bundle):
    path = sound_bundle / kind
    content = path.read_bytes()
    bit = data.draw(st.integers(0, 8 * len(content) - 1))
    flipped = bytearray(content)
    flipped[bit // 8] ^= 1 << bit % 8
    digest = read_bundle(sound_bundle).digest
    path.write_bytes(flipped)
    try:
        if kind != "bundle.json":
            assert kind in refusal(sound_bundle)
        elif is_sound(sound_bundle):
            # A bit of free text, as the licence, is another manifest: another digest tells.
            assert read_bundle(sound_bundle).digest != digest
        else:
            refusal(sound_bundle)
    finally:
        path.write_bytes(content)
    prove(sound_bundle)


@pytest.mark.parametrize("kind", KINDS[:-1])
@pytest.mark.parametrize("change", [lambda b: b[:-1], lambda b: b + b"\0", lambda b: b""])
def test_a_file_of_another_length_is_refused(kind, change, handmade_bundle):
    path = handmade_bundle / kind
    path.write_bytes(change(path.read_bytes()))
    assert kind in refusal(handmade_bundle)


def test_a_link_that_leaves_the_folder_is_refused(handmade_bundle, tmp_path):
    outside = tmp_path / "model.onnx"
    shutil.move(handmade_bundle / "model.onnx", outside)
    (handmade_bundle / "model.onnx").symlink_to(outside)
    assert "lies outside the bundle" in refusal(handmade_bundle)


def test_a_folder_that_is_a_link_is_refused(handmade_bundle, tmp_path):
    shutil.move(handmade_bundle / "golden", tmp_path / "golden")
    (handmade_bundle / "golden").symlink_to(tmp_path / "golden")
    assert "golden" in refusal(handmade_bundle)


def test_a_link_in_a_circle_is_refused(handmade_bundle):
    (handmade_bundle / "model.onnx").unlink()
    (handmade_bundle / "model.onnx").symlink_to("model.onnx")
    assert "model.onnx" in refusal(handmade_bundle)


def test_a_repository_that_is_a_link_is_fine(handmade_bundle, tmp_path):
    (tmp_path / "link").symlink_to(handmade_bundle.parents[1])
    prove(resolve(tmp_path / "link", "handmade"))


def test_what_is_no_file_is_refused(handmade_bundle):
    (handmade_bundle / "MODEL_CARD.md").unlink()
    os.mkfifo(handmade_bundle / "MODEL_CARD.md")
    assert "MODEL_CARD.md" in refusal(handmade_bundle)


@pytest.mark.parametrize("name", ["weights.bin", "golden/9.png", ".hidden"])
def test_a_file_that_the_manifest_does_not_know_is_refused(name, handmade_bundle):
    """A graph could read its weights from it, and no sha256 would notice a change."""
    (handmade_bundle / name).write_bytes(b"weights")
    assert f"{name!r} is not in the manifest" in refusal(handmade_bundle)


def rewrite(path: Path, **change: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}), encoding="utf-8")


def test_the_folder_must_say_what_the_manifest_says(handmade_bundle):
    rewrite(handmade_bundle / "bundle.json", version=2)
    assert "holds handmade@2; folders are NAME/VERSION" in refusal(handmade_bundle)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "EOF"),
        (b"{", "EOF"),
        (b"\xff\xfe{}", "Invalid JSON"),
        (b"[]", "should be an object"),
        (b"null", "should be an object"),
        (b'{"a\\nb": 1}', "bundle.json at "),
        (b"[" * 100_000, "Invalid JSON"),
    ],
)
def test_a_manifest_that_does_not_parse_is_refused_in_one_line(content, message, handmade_bundle):
    (handmade_bundle / "bundle.json").write_bytes(content)
    assert message in refusal(handmade_bundle)


def test_golden_samples_must_be_about_the_models_classes(handmade_bundle):
    golden = json.loads((handmade_bundle / "golden" / "golden.json").read_text())
    for change, message in (
        ({"top": [3]}, "not about 3 classes"),
        ({"probabilities": [0.5, 0.5]}, "not about 3 classes"),
        ({"file": "golden/7.png"}, "not in the manifest"),
    ):
        samples = [{**golden["samples"][0], **change}, *golden["samples"][1:]]
        rewrite(handmade_bundle / "golden" / "golden.json", samples=samples)
        with pytest.raises(BundleError, match=message):
            read_golden(read_bundle(handmade_bundle))
