"""How a job begins: what happens before the first image is scored, and what beside what."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
import unittest.mock
from collections import Counter
from pathlib import Path

import pytest

from service.bundle import repository
from service.bundle.repository import read_bundle, read_golden, record_file
from service.score import engines
from service.score.errors import ScoreError
from service.score.messages import Setup
from service.score.pool import ProcessLink, WorkerPool
from service.settings import Settings


@pytest.fixture
def events(monkeypatch):
    """What happened, in its order: workers that were started, bundles that were looked for."""
    happened = []

    class Watched(ProcessLink):
        def __init__(self):
            super().__init__()
            happened.append(self)

    find = engines._find_bundle

    def find_and_tell(*arguments):
        happened.append("bundle")
        return find(*arguments)

    monkeypatch.setattr(engines, "ProcessLink", Watched)
    monkeypatch.setattr(engines, "_find_bundle", find_and_tell)
    return happened


def test_workers_load_while_the_bundle_is_looked_for(with_workers, score, photos, events):
    score(photos, workers=2, limit=2)
    *workers, last = events
    assert (len(workers), last) == (2, "bundle")


def test_workers_end_with_a_job_that_cannot_begin(with_workers, score, photos, events):
    with pytest.raises(ScoreError, match="unknown model"):
        score(photos, model="nothing")
    assert events[0].tell_death() == "signal 9"
    assert events[0].connection.closed


@pytest.mark.parametrize("is_told", [False, True], ids=["waits for work", "loads"])
def test_a_worker_whose_job_is_gone_ends_quietly(
    make_options, tiny_bundle_repository, capfd, is_told
):
    """As after `kill -9` of the job; one traceback for each worker told nobody anything."""
    (folder,) = (tiny_bundle_repository / "digits-linear").iterdir()
    setup = Setup(
        bundle_folder=folder, options=make_options(), settings=Settings(), golden=slice(None)
    )
    link = ProcessLink()
    if is_told:
        link.send(setup)
    link.connection.close()
    assert link.tell_death() == "exit code 0"
    assert capfd.readouterr() == ("", "")


def test_a_worker_is_killed_before_it_could_end_by_itself(monkeypatch):
    link = ProcessLink()
    hang_up = link.connection.close

    def hang_up_and_wait():
        hang_up()
        link.tell_death()

    monkeypatch.setattr(link.connection, "close", hang_up_and_wait)
    link.close()
    assert link.tell_death() == "signal 9"


def test_a_bundle_is_read_once_for_the_whole_job(score, photos, monkeypatch):
    score(photos, "first", limit=1)  # copies it, and proves what it read and what it wrote
    read = Counter()

    def record(path):
        read[path.name] += 1
        return record_file(path)

    monkeypatch.setattr(repository, "record_file", record)
    score(photos, "second", limit=1)
    assert read["model.onnx"] == 1


def damage_golden(folder, index):
    """Lets one golden sample of a bundle ask for an answer that the model does not give."""
    golden = json.loads((folder / "golden/golden.json").read_text())
    probabilities = golden["samples"][index]["probabilities"]
    probabilities[probabilities.index(max(probabilities))] -= 0.25
    (folder / "golden/golden.json").write_text(json.dumps(golden))
    facts = json.loads((folder / "bundle.json").read_text())
    record = record_file(folder / "golden/golden.json").model_dump()
    facts["files"]["golden/golden.json"] = record
    (folder / "bundle.json").write_text(json.dumps(facts))


@pytest.mark.parametrize("wrong", [0, 1, -1, None])
def test_workers_share_the_golden_samples_and_miss_none(
    with_workers, score, photos, growing_repository, tmp_path, wrong
):
    folder = growing_repository.publish(2)
    assert len(read_golden(read_bundle(folder)).samples) > 2
    given = {"model_repository": str(growing_repository.folder), "workers": 2, "limit": 2}
    if wrong is None:  # the control
        assert score(photos, **given).state == "done"
        return
    damage_golden(folder, wrong)
    with pytest.raises(ScoreError, match="does not reproduce"):
        score(photos, **given)
    assert not (tmp_path / "scores").exists()


@pytest.mark.parametrize("count", [1, 2, 3, 8, 20])
def test_every_golden_sample_is_the_share_of_one_worker(make_options, tmp_path, count):
    options, settings = make_options(), Settings()
    setup = Setup(bundle_folder=tmp_path, options=options, settings=settings, golden=slice(None))
    links = [unittest.mock.Mock() for _ in range(count)]
    WorkerPool(setup, links)
    shares = [range(8)[link.send.call_args.args[0].golden] for link in links]
    assert sorted(sample for share in shares for sample in share) == list(range(8))


def test_a_terminal_shows_a_bar_and_then_how_the_job_ended(
    photos, tmp_path, tiny_bundle_repository
):
    master, terminal = pty.openpty()
    command = [Path(sys.executable).with_name("fivecrop"), "score", photos, "--workers=1"]
    command += ["--model=digits-linear", f"--model-repository={tiny_bundle_repository}"]
    environment = {**os.environ, "FIVECROP_MODEL_CACHE": str(tmp_path / "cache"), "TERM": "xterm"}
    with subprocess.Popen(
        [*command, f"--out={tmp_path / 'scores'}"], env=environment, stderr=terminal
    ) as job:
        os.close(terminal)
        shown = b""
        while said := read_terminal(master):
            shown += said
    os.close(master)
    assert job.returncode == 0, shown
    before, last = shown.rstrip().rsplit(b"\n", 1)
    assert b"\x1b[?25l" in before, "the bar hides the cursor"
    assert b" of 60 images, " in before
    assert b"done: 60 of 60 images" in last


@pytest.mark.parametrize(("closed", "options"), [("2>&-", []), ("<&- >&- 2>&-", ["--json"])])
def test_a_closed_standard_stream_is_the_null_device(
    photos, tmp_path, tiny_bundle_repository, closed, options
):
    """The next file that is opened would be standard error to the workers and to libraries."""
    out = tmp_path / "scores"
    command = [Path(sys.executable).with_name("fivecrop"), "score", photos, "--workers=1"]
    command += ["--model=digits-linear", f"--model-repository={tiny_bundle_repository}"]
    command += [f"--out={out}", "--limit=2", *options]
    environment = {**os.environ, "FIVECROP_MODEL_CACHE": str(tmp_path / "cache")}
    shell = ["sh", "-c", f'"$@" {closed}', "sh", *command]
    done = subprocess.run(shell, env=environment, check=False)
    assert done.returncode == 0
    assert json.loads((out / "_manifest.json").read_text())["state"] == "done"


def read_terminal(master):
    try:
        return os.read(master, 65536)
    except OSError:  # the other end is closed
        return b""
