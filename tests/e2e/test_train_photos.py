"""A folder of photographs becomes a served model by the README's three commands."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

pytestmark = [pytest.mark.e2e, pytest.mark.data]

ROOT = Path(__file__).parents[2]
CLASSES = ("airplane", "automobile", "frog")
IMAGES = 150
LEARNT = 120


@pytest.fixture
def photos(shared_data, tmp_path) -> Path:
    """`photos/CLASS/*.jpg`: 120 CIFAR-10 images of each of 3 classes."""
    write(shared_data, tmp_path / "photos", slice(0, LEARNT))
    return tmp_path / "photos"


@pytest.fixture
def unseen(shared_data, tmp_path) -> Path:
    """30 more of each."""
    write(shared_data, tmp_path / "unseen", slice(LEARNT, IMAGES))
    return tmp_path / "unseen"


def write(shared_data, folder, part):
    import pyarrow.parquet as pq

    names = json.loads((shared_data / "cifar10-classes.json").read_text())
    table = pq.read_table(shared_data / "cifar10-train.parquet").to_pydict()
    for name in CLASSES:
        (folder / name).mkdir(parents=True)
        wanted = [i for i, label in enumerate(table["label"]) if names[label] == name]
        for i in wanted[part]:
            (folder / name / f"{i}.jpg").write_bytes(table["image"][i]["bytes"])


def commands():
    """The three commands of the README, without their path."""
    (block,) = re.findall(
        r"^```\n(\.venv/bin/fivecrop train \S*photos.*?)^```",
        (ROOT / "README.md").read_text(),
        re.M | re.S,
    )
    lines = [line.split("#")[0].split() for line in block.splitlines()]
    assert [line[1] for line in lines] == ["train", "export", "serve"]
    return [line[1:] for line in lines]


def fivecrop(*arguments: object) -> str:
    command = [Path(sys.executable).with_name("fivecrop"), *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_folder_of_photographs_becomes_a_served_model(
    shared_data, photos, unseen, tmp_path, start_server
):
    """Fine-tuned from SqueezeNet's published weights on disk; the recipe would download its own."""
    train, export, serve = commands()
    run, models = tmp_path / "run", tmp_path / "models"
    weights = shared_data / "squeezenet1_1-imagenet.safetensors"
    overrides = (
        f"data.train={photos}",
        "model.architecture=seed:squeezenet1_1",
        "model.pretrained=false",
        f"model.weights={weights}",
        # As those weights were trained, and a quarter of the pixels to be done sooner.
        "input.normalisation.std=[0.00392, 0.00392, 0.00392]",
        "input.preprocess.resize.size=128",
        "input.preprocess.crop={height=112, width=112}",
        "train.epochs=2",
        "train.cpu_threads=2",
        "data.decode_workers=0",
    )
    sets = [word for pair in overrides for word in ("--set", pair)]
    fivecrop(*train[:2], *sets, "--run-dir", run, "--quiet", "--json")
    exported = json.loads(fivecrop("export", run, *export[2:], "--repository", models, "--json"))
    assert exported["metrics"][0]["images"] == 72

    assert serve == ["serve", "--model", "photos"]
    server = start_server(models).wait_ready()
    url = f"http://127.0.0.1:{server.http_port}/v1/classify"
    right = 0
    for file in sorted(unseen.glob("*/*.jpg")):
        answer = httpx.post(url, content=file.read_bytes()).json()
        assert answer["model"] == "photos"
        right += answer["predictions"][0]["label"] == file.parent.name
    # A third would be chance.
    assert right >= 75, f"{right} of 90"
