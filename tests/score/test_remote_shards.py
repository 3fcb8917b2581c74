"""Shards and tables of a store that fails now and then: read on, or left to a resume."""

from __future__ import annotations

import io
import tarfile

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from service.score.errors import JobFailed, ScoreError


class ShakyFile(io.BytesIO):
    def seek(self, place, whence=0):
        if ShakyStore.is_stream and place != self.tell():
            raise ValueError("Cannot seek")
        return super().seek(place, whence)

    def read(self, size=-1):
        if self.tell() >= ShakyStore.fails_from and ShakyStore.failures > 0:
            ShakyStore.failures -= 1
            super().seek(0)  # nobody knows where it stands after an error
            raise ConnectionResetError("reset by peer")
        return super().read(size)


class ShakyStore(MemoryFileSystem):
    """Fails `failures` times at reads behind the first `fails_from` bytes."""

    protocol = "shaky"
    store = {}  # noqa: RUF012
    failures = fails_from = 0
    is_stream = False

    @classmethod
    def _strip_protocol(cls, path):
        return "/" + path.removeprefix("shaky://").strip("/")

    def _open(self, path, mode="rb", **given):
        if mode != "rb":
            return super()._open(path, mode, **given)
        return ShakyFile(self.cat_file(path))


@pytest.fixture
def shards(tmp_path, picture, monkeypatch):
    """Writes two shards of 30 pictures, a table and a list into the store."""
    fsspec.register_implementation("shaky", ShakyStore, clobber=True)
    pauses = []
    monkeypatch.setattr("service.score.storage.time.sleep", pauses.append)
    images = [picture(seed) for seed in range(30)]
    for shard in "ab":
        file = io.BytesIO()
        with tarfile.open(fileobj=file, mode="w") as writer:
            for index, data in enumerate(images):
                about = tarfile.TarInfo(f"{shard}{index:02}.png")
                about.size = len(data)
                writer.addfile(about, io.BytesIO(data))
        ShakyStore().pipe_file(f"/shards/{shard}.tar", file.getvalue())
    table = io.BytesIO()
    pq.write_table(pa.table({"image": images}), table, row_group_size=5)
    ShakyStore().pipe_file("/shards/t.parquet", table.getvalue())
    names = "".join(f"{tmp_path}/{index}.png\n" for index in range(5_000))
    ShakyStore().pipe_file("/shards/l.txt", names.encode())
    ShakyStore.failures, ShakyStore.fails_from, ShakyStore.is_stream = 0, 20_000, False
    return pauses


@pytest.mark.parametrize("name", ["*.tar", "t.parquet", "l.txt"])
def test_a_broken_connection_is_opened_again_where_it_was(
    shards, score, read_rows, monkeypatch, name
):
    given = {"max_error_rate": 1}
    score(f"shaky://shards/{name}", "calm", **given)
    ShakyStore.failures = 3
    assert score(f"shaky://shards/{name}", "shaken", **given).state == "done"
    assert ShakyStore.failures == 0
    assert len(shards) == 3
    assert read_rows("shaken") == read_rows("calm")


@pytest.mark.parametrize("name", ["*.tar", "t.parquet", "l.txt"])
def test_a_store_that_stays_away_ends_the_job_and_a_resume_finds_every_image(
    shards, score, read_rows, name
):
    """An error row in place of the rest would move the places of all images behind it."""
    given = {"max_error_rate": 1, "part_rows": 5}
    score(f"shaky://shards/{name}", "calm", **given)

    def strike():  # when the job has begun
        ShakyStore.failures = 99
        return False

    with pytest.raises(JobFailed, match=r"shards/.*: reset by peer; .* go on with --resume"):
        score(f"shaky://shards/{name}", should_stop=strike, **given)
    ShakyStore.failures = 0
    assert len(read_rows()) < len(read_rows("calm"))
    assert score(f"shaky://shards/{name}", resume=True, **given).state == "done"
    assert read_rows() == read_rows("calm")


def test_a_broken_connection_to_a_store_that_cannot_seek_ends_the_job(shards, score, read_rows):
    """Not with what the second attempt met: the file is well, and a resume reads it again."""
    score("shaky://shards/*.tar", "calm")
    ShakyStore.is_stream = True

    def strike():  # when the job has begun
        ShakyStore.failures = 1
        return False

    with pytest.raises(JobFailed, match=r"reset by peer; .* go on with --resume"):
        score("shaky://shards/*.tar", should_stop=strike, part_rows=5)
    assert score("shaky://shards/*.tar", resume=True, part_rows=5).state == "done"
    assert read_rows() == read_rows("calm")


@pytest.mark.parametrize("name", ["*.tar", "t.parquet", "l.txt"])
def test_a_store_that_is_away_from_the_start_leaves_nothing_to_go_on_with(
    shards, score, tmp_path, name
):
    ShakyStore.failures, ShakyStore.fails_from = 99, 0
    with pytest.raises(ScoreError, match=r"shards/.*: reset by peer$"):
        score(f"shaky://shards/{name}")
    assert not (tmp_path / "scores").exists()
