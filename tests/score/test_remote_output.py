"""An output behind a URL: stopped, failed, resumed and locked as one on a disk."""

from __future__ import annotations

import fsspec
import pytest

from service.score import score_dataset
from service.score.dataset import list_parts, read_manifest
from service.score.errors import JobFailed, ScoreError
from service.score.folder import open_folder
from service.score.lock import Lock
from service.score.part_format import read_part


@pytest.fixture
def folder(tmp_path):
    return open_folder(f"memory://{tmp_path.name}/scores")


@pytest.fixture
def score_there(score, photos, folder, make_options):  # `score` keeps the job in this process
    def run(*, resume=False, should_stop=lambda: False, **options):
        return score_dataset(
            str(photos),
            folder.address,
            make_options(**{"part_rows": 7, **options}),
            resume=resume,
            should_stop=should_stop,
        )

    return run


def rows_of(folder):
    rows = [
        row for part in list_parts(folder) for row in read_part(folder.read(part.name), part.format)
    ]
    return sorted(rows, key=lambda row: row["id"])


def test_a_stopped_job_goes_on_with_the_rows_of_one_on_a_disk(
    score_there, score, photos, folder, read_rows
):
    asked = iter([False] * 5)
    assert score_there(should_stop=lambda: next(asked, True)).state == "stopped"
    before = rows_of(folder)
    assert 0 < len(before) < 60
    with pytest.raises(ScoreError, match="holds scores already: --resume goes on with them"):
        score_there()
    with pytest.raises(ScoreError, match="options top_k is 2, was 5"):
        score_there(resume=True, top_k=2)
    assert score_there(resume=True).progress.resumed == len(before)
    score(photos, "disk")
    assert rows_of(folder) == read_rows("disk")
    assert read_manifest(folder)["state"] == "done"
    assert [name for name in folder.names() if not name.startswith("part-")] == ["_manifest.json"]


def test_a_store_that_refuses_a_part_ends_the_job_and_a_resume_goes_on(
    score_there, folder, monkeypatch
):
    store = type(fsspec.filesystem("memory"))
    write, room = store.pipe_file, [None] * 5

    def refuse(self, path, value, **given):
        if "part-" in path:
            if not room:
                raise ConnectionResetError("no more")
            room.pop()
        return write(self, path, value, **given)

    monkeypatch.setattr(store, "pipe_file", refuse)
    with pytest.raises(JobFailed, match=r"cannot write .*: no more; .* go on with --resume"):
        score_there()
    assert 0 < len(rows_of(folder)) < 60
    monkeypatch.setattr(store, "pipe_file", write)
    assert score_there(resume=True).state == "done"
    assert [row["id"] for row in rows_of(folder)] == list(range(60))


def test_a_second_job_is_refused_while_the_first_holds_its_lock(score_there, folder):
    first = Lock(folder)
    first.acquire()
    with pytest.raises(ScoreError, match="is being written by process"):
        score_there()
    first.release()
    assert score_there().state == "done"  # the control
