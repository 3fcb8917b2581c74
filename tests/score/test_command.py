"""`fivecrop score`: what it says, where, and with which exit code."""

from __future__ import annotations

import json
import os
import socket
import sys
import time

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from service.cli import main
from service.score.folder import open_folder
from service.score.lock import Lock


@pytest.fixture
def run(score, tmp_path, tiny_bundle_repository):
    """Returns `run(*arguments)`: `fivecrop score` with a model and an output, unless given."""

    def invoke(*arguments, out=tmp_path / "scores", model="digits-linear", name=()):
        given = [*name, *map(str, arguments)]
        if not name:
            # Of an option that is given twice, the last counts.
            given = [f"--model={model}", f"--out={out}", *given]
            given = [f"--model-repository={tiny_bundle_repository}", *given]
        return CliRunner().invoke(main, ["score", *given])

    return invoke


def test_a_job_ends_with_a_line_and_its_events_are_json(run, photos, tmp_path):
    result = run(photos)
    assert result.exit_code == 0, result.output
    assert result.stdout == ""
    assert "done: 60 of 60 images" in result.stderr.splitlines()[-1]
    result = run(photos, "--json", out=tmp_path / "other")
    events = [json.loads(line) for line in result.stdout.splitlines()]
    assert [event["event"] for event in events] == ["progress", "done"]
    assert (events[-1]["done"], events[-1]["errors"]) == (60, 0)
    assert set(events[-1]["utilisation"]) == {"read", "decode", "infer"}
    assert result.stderr == ""


def test_status_tells_what_is_there(run, photos, tmp_path):
    run(photos, "--limit=20")
    result = run(tmp_path / "scores", name=["status"])
    assert result.stdout.splitlines()[:2] == [
        "state   done",
        "model   digits-linear@1 (fp32 on cpu)",
    ]
    result = run(tmp_path / "scores", "--json", name=["status"])
    assert (json.loads(result.stdout)["rows"], json.loads(result.stdout)["held_by"]) == (20, None)


def test_status_tells_a_job_that_runs_from_one_that_was_killed(run, photos, tmp_path):
    run(photos, "--limit=20")
    manifest = tmp_path / "scores/_manifest.json"
    manifest.write_text(manifest.read_text().replace('"state": "done"', '"state": "running"'))
    result = run(tmp_path / "scores", name=["status"])
    assert result.stdout.startswith("state   interrupted\n")
    assert result.stdout.endswith("the same command with --resume goes on\n")
    holder = Lock(open_folder(str(tmp_path / "scores")))
    holder.acquire()
    result = run(tmp_path / "scores", name=["status"])
    holder.release()
    assert result.stdout.startswith("state   running\n")
    assert f"held by process {os.getpid()} on " in result.stdout


def test_a_job_with_too_many_errors_ends_with_1_and_goes_on_when_more_are_allowed(
    run, photos, tmp_path
):
    (photos / "x.png").write_bytes(b"?")
    result = run(photos, "--max-error-rate=0.01")
    assert result.exit_code == 1
    told = result.stderr.splitlines()[-1]
    assert told.startswith("fivecrop: error: 1 of 61 images failed, and --max-error-rate is 0.01;")
    assert "with a larger --max-error-rate" in run(tmp_path / "scores", name=["status"]).stdout
    assert run(photos, "--max-error-rate=0.02", "--resume").exit_code == 0


BAD_OPTIONS = {
    "--top-k=0": "--top-k is at least 1",
    "--min-score=1.5": "--min-score lies between 0 and 1",
    "--limit=0": "--limit is at least 1",
    "--shard=0/2": "'0/2' is not I/N",
    "--shard=3/2": "'3/2' is not I/N",
    "--workers=0": "--workers is at least 1",
    "--max-error-rate=-1": "--max-error-rate lies",
    "--part-rows=0": "--part-rows is at least 1",
    "--part-seconds=0": "--part-seconds is more than 0",
    "--engine=http": "--engine http or grpc and --url go together",
    "--url=http://127.0.0.1:1": "--engine http or grpc and --url go together",
    "--address=ray://127.0.0.1:1": "--address is for --engine ray",
    "--variant=int8": "no int8 variant",
}


@pytest.mark.parametrize("option", BAD_OPTIONS)
def test_an_option_without_meaning_is_one_line(run, photos, tmp_path, option):
    assert_refused(run(photos, option), BAD_OPTIONS[option])
    assert not (tmp_path / "scores").exists()


def assert_refused(result, text):
    assert result.exit_code == 2, result.output
    assert result.stderr.count("\n") == 1, result.stderr
    assert result.stderr.startswith("fivecrop: error: ")
    assert text in result.stderr


CLOSED = "127.0.0.1:{closed_port}"
# What is given, of files in the folder of the test (see `bad_files`), and what is said.
BAD_INPUT = {
    "an empty folder": (["empty"], "no inputs found in "),
    "a glob of nothing": (["*.jpg"], "no inputs found in "),
    "an empty list": (["empty.txt"], "no inputs found: the tables or shards are empty"),
    "nothing of that name": (["absent"], "there is no "),
    "a list that is no text": (["bytes.txt"], "is not a list: it is no UTF-8 text"),
    "a list that may not be read": (["folder.txt/x.txt"], "there is no "),
    "a table that is none": (["bytes.parquet"], "cannot be read as Parquet"),
    "a CSV that is none": (["bytes.csv"], "is no CSV file in UTF-8"),
    "an unknown column": (["t.csv", "--column=y"], "has no column 'y'; it has 'path'"),
    "no column of images": (["other.csv"], "which column holds the images?"),
    "a column of numbers": (["n.parquet", "--column=n"], "is int64, not bytes or text"),
    "an output of before": (["photos", "--out=done"], "--resume goes on with them"),
    "another folder": (["photos", "--out=photos"], "is not empty"),
    "nothing to resume": (["photos", "--resume", "--out=new"], "holds no scores"),
    "another job": (["photos", "--resume", "--out=done", "--top-k=2"], "options top_k is 2, was 5"),
    "an output in a file": (["photos", "--out=t.csv/scores"], "cannot write to "),
    "an output in /proc": (["photos", "--out=/proc/scores"], "cannot write to /proc/scores"),
    "an unknown model": (["photos", "--model=x"], "unknown model 'x'; there is digits-linear@1"),
    "an unknown version": (
        ["photos", "--model=digits-linear@7"],
        "unknown model 'digits-linear@7'",
    ),
    "no repository": (["photos", "--model-repository=absent"], "absent"),
    "an unknown kind of URL": (["nosuch://bucket/x"], "not an address that fsspec knows"),
    "an unknown output URL": (["photos", "--out=nosuch://b/x"], "not an address that fsspec knows"),
    "no server of images": ([f"http://{CLOSED}/photos/"], "Connect"),
    "no service, HTTP": (["photos", "--engine=http", f"--url=http://{CLOSED}"], "does not answer"),
    "no service, gRPC": (["photos", "--engine=grpc", f"--url=http://{CLOSED}"], "does not answer"),
    "no URL": (["photos", "--engine=grpc", "--url=localhost:1"], "not an http:// or https:// addr"),
    "no Ray cluster": (["photos", "--engine=ray", f"--address=ray://{CLOSED}"], "does not answer"),
}


@pytest.fixture
def bad_files(photos, tmp_path, monkeypatch, run):
    (tmp_path / "empty").mkdir()
    (tmp_path / "folder.txt").mkdir()
    (tmp_path / "empty.txt").write_text("\n")
    for kind in ("txt", "parquet", "csv"):
        (tmp_path / f"bytes.{kind}").write_bytes(b"\xff\xff")
    (tmp_path / "t.csv").write_text("path\nx\n")
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    pq.write_table(pa.table({"n": [1]}), tmp_path / "n.parquet")
    assert run(photos, "--limit=1", out=tmp_path / "done").exit_code == 0
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("name", BAD_INPUT)
def test_bad_input_is_one_line_within_half_a_minute(run, bad_files, tmp_path, name):
    given, text = BAD_INPUT[name]
    if "Ray" in name:
        pytest.importorskip("ray", reason="Ray is not installed: make .venv/.ray")
    before = sorted(tmp_path.rglob("*"))
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
        started = time.monotonic()
        assert_refused(run(*(one.format(closed_port=port) for one in given)), text)
    assert time.monotonic() - started < 30
    assert sorted(one for one in tmp_path.rglob("*") if "cache" not in one.parts) == [
        one for one in before if "cache" not in one.parts
    ]


@pytest.mark.parametrize(
    ("module", "option", "text"),
    [
        ("pyarrow", "--format=parquet", "pip install 'fivecrop[score]', or --format jsonl"),
        ("ray", "--engine=ray", "--engine ray needs Ray: pip install 'fivecrop[ray]'"),
        ("fsspec", "--out=s3://bucket/x", "pip install 'fivecrop[remote]'"),
    ],
)
def test_a_package_that_is_not_there_is_one_line_with_its_extra(
    run, photos, monkeypatch, module, option, text
):
    monkeypatch.setitem(sys.modules, module, None)
    assert_refused(run(photos, option), text)
    assert run(photos, "--format=jsonl").exit_code == 0  # the control


def test_an_output_that_is_not_there_has_no_status_or_report(run, tmp_path):
    for name in ("status", "report"):
        assert_refused(run(tmp_path / "new", name=[name]), "holds no scores")


def test_a_second_job_into_the_same_output_is_refused(run, photos, tmp_path):
    first = Lock(open_folder(str(tmp_path / "scores")))
    first.acquire()
    try:
        assert_refused(run(photos), "is being written by process")
    finally:
        first.release()
    # The control: without the lock it is not.
    assert run(photos).exit_code == 0
