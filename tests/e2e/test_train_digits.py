"""From a recipe to a measured bundle, by the commands that a person would type."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from service.bundle.repository import read_bundle, verify_files

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).parents[2]
RECIPE = "training/recipes/digits-lenet5.toml"


def fivecrop(*arguments: str | Path) -> str:
    command = [Path(sys.executable).with_name("fivecrop"), *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_lenet5_learns_digits_and_is_served_as_well_as_it_was_trained(tmp_path):
    """LeNet-5, 61,706 parameters: 98 % or more of 360 images that it never saw."""
    run_dir, repository = tmp_path / "run", tmp_path / "models"
    trained = json.loads(fivecrop("train", RECIPE, "--run-dir", run_dir, "--quiet", "--json"))
    name = ("--name", "digits-lenet5", "--repository", repository)
    exported = json.loads(fivecrop("export", run_dir, *name, "--json"))
    measured = json.loads(
        fivecrop("evaluate", "digits-lenet5", "--repository", repository, "--json")
    )

    assert measured["images"] == 360
    assert measured["top1"] >= 0.98
    # The export changes no answer, and measures as `evaluate` does.
    assert measured["top1"] == pytest.approx(trained["top1"], abs=1e-9)
    assert measured["top1"] == exported["metrics"][0]["top1"]
    assert measured["ece"] < 0.02

    bundle = read_bundle(Path(exported["folder"]))
    verify_files(bundle)
    assert bundle.manifest.variants[0].parity.top1_agreement == 1.0
    assert "report/learning_curves.png" in bundle.manifest.files
