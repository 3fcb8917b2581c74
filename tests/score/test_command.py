"""`fivecrop score`: what it says, where, and with which exit code."""

from __future__ import annotations

import json
import socket
import time

import pytest
from click.testing import CliRunner

from service.cli import main
from service.score.lock import Lock


@pytest.fixture
def run(score, tmp_path, tiny_bundle_repository):
    """Returns `run(*arguments)`: `fivecrop score` with a model and an output, unless given."""

    def invoke(*arguments, out=tmp_path / "scores", model="digits-linear", name=()):
        given = [*name, *map(str, arguments)]
        if not name:
            given += [f"--model={model}", f"--out={out}"]
            given += [f"--model-repository={tiny_bundle_repository}"]
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


def test_a_job_with_too_many_errors_ends_with_1(run, photos):
    (photos / "x.png").write_bytes(b"?")
    result = run(photos, "--max-error-rate=0")
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1].startswith("fivecrop: error: 1 of 61 images failed")


BAD_OPTIONS = {
    "--top-k=0": "--top-k is at least 1",
    "--min-score=1.5": "--min-score lies between 0 and 1",
    "--limit=0": "--limit is at least 1",
    "--shard=0/2": "'0/2' is not I/N",
    "--shard=3/2": "'3/2' is not I/N",
    "--workers=0": "--workers is at least 1",
    "--max-error-rate=-1": "--max-error-rate lies",
    "--part-rows=0": "--part-rows is at least 1",
    "--metrics-address=9464": "--metrics-address '9464' is not HOST:PORT",
    "--metrics-address=127.0.0.1:99999": "cannot listen on 127.0.0.1:99999",
}


@pytest.mark.parametrize("option", BAD_OPTIONS)
def test_an_option_without_meaning_is_one_line(run, photos, tmp_path, option):
    assert_refused(run(photos, option), BAD_OPTIONS[option])
    assert not (tmp_path / "scores").exists()


def assert_refused(result, text):
    assert result.exit_code == 2, result.output
    assert result.stderr.count("\n") == 1, result.stderr
    assert text in result.stderr


def test_no_inputs_are_refused(run, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty.txt").write_text("\n")
    for given in ("empty", "*.jpg"):
        assert_refused(run(tmp_path / given), "no inputs found")
    assert_refused(run(tmp_path / "empty.txt"), "no inputs found")
    assert_refused(run(tmp_path / "absent"), "there is no")
    assert not (tmp_path / "scores").exists()


def test_an_output_that_is_there_is_refused(run, photos, tmp_path):
    run(photos)
    assert_refused(run(photos), "holds scores already: --resume goes on")
    assert_refused(run(photos, out=photos), "is not empty")
    assert_refused(run(photos, "--resume", out=tmp_path / "new"), "holds no scores")
    assert_refused(run(tmp_path / "new", name=["status"]), "holds no scores")


def test_an_output_that_cannot_be_written_is_refused(run, photos, tmp_path):
    (tmp_path / "file").write_text("x")
    assert_refused(run(photos, out=tmp_path / "file/scores"), "cannot write to")
    assert_refused(run(photos, out="/proc/scores"), "cannot write to")


def test_an_unknown_model_or_column_is_refused(run, photos, tmp_path):
    assert_refused(run(photos, model="absent"), "unknown model 'absent'; there is digits-linear@1")
    assert_refused(run(photos, model="digits-linear@7"), "unknown model 'digits-linear@7'")
    assert_refused(run(photos, "--variant=int8"), "no int8 variant")
    (tmp_path / "t.csv").write_text("path\nx\n")
    assert_refused(run(tmp_path / "t.csv", "--column=y"), "has no column 'y'; it has 'path'")


def test_an_unreadable_list_is_refused(run, tmp_path):
    (tmp_path / "list.txt").write_bytes(b"\xff\xff")
    assert_refused(run(tmp_path / "list.txt"), "is not a list")


def test_a_wrong_address_is_refused_soon(run, photos):
    start = time.monotonic()
    assert_refused(run("nosuch://bucket/x"), "not an address that fsspec knows")
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/photos/"
        assert_refused(run(url), "Connect")
    assert_refused(run(photos, out="nosuch://bucket/x"), "not an address that fsspec knows")
    assert time.monotonic() - start < 30


def test_parquet_without_pyarrow_says_what_to_install(run, photos, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    assert_refused(run(photos), "pip install 'fivecrop[score]', or --format jsonl")
    assert run(photos, "--format=jsonl").exit_code == 0


def test_a_second_job_into_the_same_output_is_refused(run, photos, tmp_path):
    from service.score.folder import open_folder

    first = Lock(open_folder(str(tmp_path / "scores")))
    first.acquire()
    try:
        assert_refused(run(photos), "is being written by process")
    finally:
        first.release()
    # The control: without the lock it is not.
    assert run(photos).exit_code == 0
