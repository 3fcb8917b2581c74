"""The benchmark of training runs, and tells ratios; how large they are is no matter of a test."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

ROOT = Path(__file__).parents[2]


@pytest.mark.e2e
def test_the_quick_mode_tells_both_rates_and_their_ratio(tmp_path):
    for number in range(40):
        picture = Image.fromarray(load_sample_images().images[number % 2])
        picture.crop((number, number, number + 100, number + 80)).save(tmp_path / f"{number}.jpg")
    options = ["--photographs", str(tmp_path), "--quick", "--only", "cifar-resnet20"]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.training", *options],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["case"] == "cifar-resnet20"
    for what in ("loading", "training"):
        rates = found[what]
        assert rates["images_per_second"] > 0
        assert rates["timm_images_per_second"] > 0
        low, high = rates["ratio_range"]
        assert 0 < low <= rates["ratio"] <= high
