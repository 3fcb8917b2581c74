"""Training in several processes, and in one that is killed at any moment."""

from __future__ import annotations

import json
import random
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from training.checkpoint import load_weights

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
RECIPE = ROOT / "training" / "recipes" / "digits-lenet5.toml"
SHORT = ("train.batch_size=128", "train.cpu_threads=1", "train.precision=fp32", "train.epochs=1.5")


def arguments(run_dir, *overrides):
    sets = [part for one in (*SHORT, *overrides) for part in ("--set", one)]
    return ["train", str(RECIPE), "--run-dir", str(run_dir), "--quiet", "--device", "cpu", *sets]


def finish(command):
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def torchrun(run_dir, *overrides):
    """Runs the line of the guide, and checks that it says what is run here."""
    (line,) = re.findall(r"^\.venv/bin/torchrun .*$", (ROOT / "docs/train.md").read_text(), re.M)
    launch, processes, program, *training = line.replace(".venv/bin", str(BIN)).split()
    assert training == ["train", str(RECIPE.relative_to(ROOT))]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    chosen = arguments(run_dir, *overrides)[2:]
    return finish([launch, processes, f"--master-port={port}", program, *training, *chosen])


def test_two_processes_learn_what_one_learns_from_the_whole_batch(tmp_path):
    overrides = (
        "optim.clip_grad_norm=1",
        "train.accumulation_parts=2",
        'train.unfreeze_after_epochs={"c1" = 1}',
    )
    finish([BIN / "fivecrop", *arguments(tmp_path / "one", *overrides)])
    torchrun(tmp_path / "two", *overrides)
    one, two = (load_weights(tmp_path / name / "last.safetensors") for name in ("one", "two"))
    # AdamW's first steps, of size lr whatever the gradient, enlarge what sums round differently.
    assert max(float((one[key] - two[key]).abs().max()) for key in one) < 5e-4
    results = [json.loads((tmp_path / name / "result.json").read_text()) for name in ("one", "two")]
    assert results[0]["validation_images"] == results[1]["validation_images"] == 360
    assert results[0]["loss"] == pytest.approx(results[1]["loss"], rel=1e-4)
    histories = [(tmp_path / name / "history.jsonl").read_text() for name in ("one", "two")]
    first, second = ([json.loads(line) for line in text.splitlines()] for text in histories)
    assert [record["train_loss"] for record in first] == pytest.approx(
        [record["train_loss"] for record in second], rel=1e-4
    )


HALVES = """
import sys
import torch
import torch.distributed as dist
from torch import nn
from training.models.norm_layers import replace_norms
from training.models.resnet import cifar_resnet

torch.manual_seed(0)
images, labels = torch.randn(16, 3, 16, 16), torch.arange(16) % 10

def gradient(norm, some):
    torch.manual_seed(1)
    net = cifar_resnet(10, 8, width=4)
    if norm != "default":
        replace_norms(net, norm)
    nn.functional.cross_entropy(net(images[some]), labels[some]).backward()
    return torch.cat([one.grad.flatten() for one in net.parameters()])

dist.init_process_group("gloo")
whole = gradient("default", slice(None))
rank = dist.get_rank()
for norm in ("synchronised", "default"):
    mine = gradient(norm, slice(8 * rank, 8 * rank + 8))
    dist.all_reduce(mine)
    if rank == 0:
        print(float((mine / 2 - whole).norm() / whole.norm()))
dist.destroy_process_group()
"""


def test_synchronised_batch_normalisation_gives_the_gradient_of_the_whole_batch(tmp_path):
    (tmp_path / "halves.py").write_text(HALVES)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launch = [BIN / "torchrun", "--nproc-per-node=2", f"--master-port={port}"]
    synchronised, apart = map(float, finish([*launch, tmp_path / "halves.py"]).split())
    assert synchronised < 1e-5
    # Each process's own half has other statistics.
    assert apart > 0.01


def test_a_killed_run_with_everything_on_resumes_to_the_very_same_weights(tmp_path):
    """SIGKILL at a random moment between two checkpoints; seen from outside, as a person would."""
    everything = (
        "model.architecture=timm:test_resnet",
        "model.dropout=0.3",
        "model.drop_path=0.1",
        "train.epochs=4",
        'train.unfreeze_after_epochs={"backbone" = 2}',
        "train.accumulation_parts=2",
        "train.imbalance=balanced_sampling",
        "augment.cutmix_alpha=1.0",
        "augment.mixup_alpha=0.4",
        "augment.rotate_degrees=10",
        "optim.layer_decay=0.8",
        "average.kind=swa",
        "average.start_fraction=0.5",
    )
    finish([BIN / "fivecrop", *arguments(tmp_path / "whole", *everything)])
    command = [BIN / "fivecrop", *arguments(tmp_path / "killed", *everything)]
    killed = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
    try:
        checkpoint = tmp_path / "killed" / "resume.pt"
        deadline = time.monotonic() + 120
        while not checkpoint.exists():
            assert killed.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        time.sleep(random.uniform(0, 1.0))
    finally:
        killed.send_signal(signal.SIGKILL)
        killed.wait()
    assert not (tmp_path / "killed" / "result.json").exists()
    finish([*command, "--resume"])
    one, two = (load_weights(tmp_path / name / "last.safetensors") for name in ("whole", "killed"))
    assert all(torch.equal(one[key], two[key]) for key in one)
