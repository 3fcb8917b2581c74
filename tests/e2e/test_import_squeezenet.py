"""Published weights, imported by the command and asked through the socket of a running service."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.e2e, pytest.mark.data]

FIVECROP = Path(sys.executable).with_name("fivecrop")


def test_the_running_service_answers_100_photographs_as_pytorch_does(
    tmp_path, shared_data, start_server, shared_squeezenet_reference
):
    """It knows 64 of them, and has 85 among its best five."""
    # The first convolution of these weights has padding 0: the `seed:` network, not torchvision's.
    command = [
        *(FIVECROP, "import", "--arch", "seed:squeezenet1_1", "--name", "squeezenet"),
        *("--weights", shared_data / "squeezenet1_1-imagenet.safetensors"),
        *("--labels", shared_data / "imagenet-classes.json", "--repository", tmp_path),
        *("--preprocess", "resize=256", "--preprocess", "crop=227"),
        *("--preprocess", "mean_255=123,117,104", "--preprocess", "std_255=1,1,1"),
    ]
    subprocess.run(command, check=True, capture_output=True)
    server = start_server(tmp_path).wait_ready()
    classes = json.loads((shared_data / "imagenet-classes.json").read_text())
    index_of = {one["wnid"]: one["index"] for one in classes}
    folder = shared_data / "imagenet-sample"
    first = among_five = 0
    for photograph, expected in zip(
        sorted(folder.iterdir()), shared_squeezenet_reference(folder), strict=True
    ):
        truth = index_of[photograph.name.partition("_")[0]]
        answer = server.classify(photograph.read_bytes(), options="?top_k=1000")
        found = {one["index"]: one["score"] for one in answer["predictions"]}
        assert [found[index] for index in range(1000)] == pytest.approx(expected, rel=0, abs=1e-4)
        best = list(found)[:5]
        first += best[0] == truth
        among_five += truth in best
    assert (first, among_five) == (64, 85)
