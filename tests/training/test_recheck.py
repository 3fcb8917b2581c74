"""`fivecrop export --check`: a bundle that says what is not so is found out."""

from __future__ import annotations

import hashlib
import json
import shutil

import pytest
from click.testing import CliRunner

from service.bundle.repository import read_bundle
from service.cli import main
from training.data import load_digits_images, split_stratified
from training.recheck import recheck


@pytest.fixture
def folder(tiny_bundle_repository, tmp_path):
    """A copy of `digits-linear`, version 1, that a test may spoil."""
    copy = tmp_path / "digits-linear" / "1"
    shutil.copytree(tiny_bundle_repository / "digits-linear" / "1", copy)
    return copy


@pytest.fixture(scope="module")
def validation():
    return split_stratified(load_digits_images(), 0.3, seed=0).validation


def rewrite(folder, change):
    """Changes the manifest and nothing else."""
    file = folder / "bundle.json"
    manifest = json.loads(file.read_text())
    change(manifest)
    file.write_text(json.dumps(manifest))


def failures(folder, images):
    return [check.name for check in recheck(read_bundle(folder), images) if not check.is_good]


def check(folder, *options):
    return CliRunner().invoke(main, ["export", "--check", str(folder), *options])


def test_a_good_bundle_passes_every_check(folder, validation):
    names = [check.name for check in recheck(read_bundle(folder), validation)]
    assert names == ["files", "graph of fp32", "golden samples of fp32", "top-1 of fp32, none"]
    assert failures(folder, validation) == []


def test_accuracy_that_was_made_up_is_found_out(folder, validation):
    def flatter(manifest):
        manifest["metrics"][0]["top1"] = 0.99
        manifest["metrics"][0]["top1_interval"] = [0.97, 1.0]

    rewrite(folder, flatter)
    assert failures(folder, validation) == ["top-1 of fp32, none"]


def test_accuracy_on_other_images_is_not_taken_for_the_same(folder, validation):
    assert failures(folder, validation.subset(range(100))) == ["top-1 of fp32, none"]


def test_golden_samples_that_the_graph_does_not_give_are_found_out(folder, validation):
    file = folder / "golden/golden.json"
    golden = json.loads(file.read_text())
    probabilities = golden["samples"][0]["probabilities"]
    best = golden["samples"][0]["top"][0]
    probabilities[best] -= 0.1
    probabilities[best - 1] += 0.1
    file.write_text(json.dumps(golden))
    record = {
        "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
        "bytes": file.stat().st_size,
    }
    rewrite(folder, lambda manifest: manifest["files"].update({"golden/golden.json": record}))
    assert failures(folder, None) == ["golden samples of fp32"]


def test_the_command_tells_what_it_left_out(folder):
    done = check(folder)
    assert done.exit_code == 0, done.output
    assert "ok      golden samples of fp32" in done.output
    assert "left out  accuracy" in done.output
    assert json.loads(check(folder, "--json").output)["is_good"] is True


def test_the_command_fails_for_a_bundle_that_is_not_what_it_says(folder):
    rewrite(folder, lambda manifest: manifest["variants"][0].update(golden_tolerance=1e-12))
    done = check(folder)
    assert done.exit_code == 1
    assert "NOT OK  golden samples of fp32" in done.output


def test_one_flipped_bit_is_one_line(folder):
    file = folder / "model.onnx"
    content = bytearray(file.read_bytes())
    content[-100] ^= 1
    file.write_bytes(content)
    done = check(folder)
    assert done.exit_code == 2
    assert "model.onnx is not the file that was published" in done.output


def test_neither_a_run_nor_a_bundle_is_a_mistake_of_the_caller():
    done = CliRunner().invoke(main, ["export"])
    assert done.exit_code == 2
    assert "--check BUNDLE" in done.output
