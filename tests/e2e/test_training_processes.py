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


def as_in_the_guide(pattern, run_dir, *overrides):
    """The line of the guide, which says what is run here."""
    (line,) = re.findall(
        rf"^\.venv/bin/.* --{pattern}$", (ROOT / "docs/train.md").read_text(), re.M
    )
    program, *training = line.replace(".venv/bin", str(BIN)).split()
    assert training[:2] == ["train", str(RECIPE.relative_to(ROOT))]
    return [program, *training, *arguments(run_dir, *overrides)[2:]]


def in_two_processes(run_dir, *overrides):
    return as_in_the_guide("processes 2", run_dir, *overrides)


def find_free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def on_two_machines(run_dir, *overrides):
    """What each of them ends with; both are this one, which looks the same to them."""
    command = as_in_the_guide("machines 2 --rendezvous HOST:29500", run_dir, *overrides)
    here = f"127.0.0.1:{find_free_port()}"
    command = [here if word == "HOST:29500" else word for word in command]
    machines = [
        subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    told = [machine.communicate() for machine in machines]
    return [
        (machine.returncode, out, err) for machine, (out, err) in zip(machines, told, strict=True)
    ]


def test_two_processes_learn_what_one_learns_from_the_whole_batch(tmp_path):
    overrides = (
        "optim.clip_grad_norm=1",
        "train.accumulation_parts=2",
        'train.unfreeze_after_epochs={"c1" = 1}',
    )
    finish([BIN / "fivecrop", *arguments(tmp_path / "one", *overrides)])
    assert finish(in_two_processes(tmp_path / "two", *overrides)) == f"{tmp_path / 'two'}\n"
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


def test_two_machines_learn_what_one_learns_from_the_whole_batch(tmp_path):
    finish([BIN / "fivecrop", *arguments(tmp_path / "one")])
    ended = on_two_machines(tmp_path / "two")
    assert [code for code, _, _ in ended] == [0, 0], ended
    # One of them speaks for both.
    assert "".join(out for _, out, _ in ended) == f"{tmp_path / 'two'}\n"
    one, two = (load_weights(tmp_path / name / "last.safetensors") for name in ("one", "two"))
    assert max(float((one[key] - two[key]).abs().max()) for key in one) < 5e-4


def test_what_no_second_try_mends_ends_a_machine_with_2(tmp_path):
    """The one that they meet at; the other may see that go before it sees its own process end."""
    ended = on_two_machines(tmp_path / "run", 'model.architecture="seed:none"')
    codes = [code for code, _, _ in ended]
    assert sorted(codes) in ([1, 2], [2, 2]), ended
    for code, _, err in ended:
        assert ("seed:none" if code == 2 else "nobody to meet") in err, ended


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("optim.lr=-1", "optim.lr: Input should be greater than 0"),  # before there are processes
        ('model.architecture="seed:none"', "none"),  # by each of them
    ],
)
def test_what_no_second_try_mends_ends_a_team_with_2(tmp_path, override, told):
    """torchrun makes 1 of it, and a Job of Kubernetes would try again."""
    command = in_two_processes(tmp_path / "run", override)
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr[-3000:]
    lines = [line for line in done.stderr.splitlines() if line.startswith("fivecrop: error: ")]
    assert lines
    assert all(told in line for line in lines)


def test_a_team_that_is_told_to_end_ends(tmp_path):
    command = in_two_processes(tmp_path, "train.epochs=10000")
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL) as team:
        deadline = time.monotonic() + 300
        while not (tmp_path / "resume.pt").exists():
            assert team.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        team.terminate()
        assert team.wait(60) == 128 + signal.SIGTERM


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
    launch = [BIN / "torchrun", "--nproc-per-node=2", f"--master-port={find_free_port()}"]
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
