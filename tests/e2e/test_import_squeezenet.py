"""Published weights, imported by the command and asked through the socket of a running service."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.e2e, pytest.mark.data]

FIVECROP = Path(sys.executable).with_name("fivecrop")


def test_the_running_service_knows_64_of_100_photographs_and_85_among_its_five(
    tmp_path, shared_data, start_server
):
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
    first = among_five = 0
    for photograph in sorted((shared_data / "imagenet-sample").iterdir()):
        truth = index_of[photograph.name.partition("_")[0]]
        best = [one["index"] for one in server.classify(photograph.read_bytes())["predictions"]]
        first += best[0] == truth
        among_five += truth in best
    assert (first, among_five) == (64, 85)
