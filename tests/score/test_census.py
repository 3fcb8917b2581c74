"""How many images an input has, before all of it was read."""

from __future__ import annotations

import io
import tarfile
import threading
from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from service.score.census import Census
from service.score.display import describe
from service.score.inputs import Inputs
from service.score.needs import Needs
from service.score.progress import Progress


def write_shard(path, count):
    with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as shard:
        for index in range(count):
            about = tarfile.TarInfo(f"{index}.png")
            about.size = 10
            shard.addfile(about, io.BytesIO(bytes(10)))


def take_census(inputs, needs=None):
    census = Census(inputs, needs or Needs())
    for thread in threading.enumerate():
        if thread.name == "fivecrop-count":
            thread.join()
    return census


@pytest.fixture
def countable(tmp_path):
    """Inputs of 100 images in all, every kind that can be counted."""
    (tmp_path / "a.list").write_text("x.png\n\n" * 10)
    (tmp_path / "b.csv").write_text("path\n" + '"x\ny.png"\n' * 20)
    pq.write_table(pa.table({"image": [b"x"] * 29}), tmp_path / "c.parquet", row_group_size=7)
    write_shard(tmp_path / "d.tar", 40)
    (tmp_path / "e.png").write_bytes(b"x")
    return Inputs(sorted(map(str, tmp_path.iterdir())), column=None, max_bytes=100)


def test_lists_tables_and_local_shards_are_counted(countable):
    assert take_census(countable).total() == (100, True)
    assert take_census(countable, Needs(shard=(1, 3))).total() == (33, True)
    assert take_census(countable, Needs(limit=15)).total() == (15, True)


def test_of_a_table_no_image_is_read_to_be_counted(countable, monkeypatch):
    monkeypatch.setattr(pq.ParquetFile, "iter_batches", None)
    assert take_census(countable).total() == (100, True)
    with pytest.raises(TypeError):  # the control: to be scored it would be
        list(countable.entries(Needs()))


def test_shards_that_must_be_read_are_estimated_from_the_first(tmp_path):
    for index in range(4):
        write_shard(tmp_path / f"{index}.tgz", 25)
    inputs = Inputs([str(tmp_path)], column=None, max_bytes=100)
    census = take_census(inputs)
    assert census.total() == (None, False)
    for position, _ in enumerate(inputs.entries(Needs())):
        if position == 30:
            total, is_exact = census.total()
            assert not is_exact
            assert 90 <= total <= 110
    assert census.total() == (100, True)


def test_an_input_that_cannot_be_counted_has_no_total(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"\xff\xfe")
    assert take_census(Inputs([str(tmp_path / "a.csv")], column=None, max_bytes=9)).total() == (
        None,
        False,
    )


def test_an_estimate_is_shown_as_one():
    counts = Counter(ok=10)
    progress = Progress(total=1000, resumed=0, counts=counts, workers=1, is_total_exact=False)
    assert describe(progress).startswith("10 of about 1,000 images, ")
    assert " left, " in describe(progress)


def test_a_job_over_a_table_knows_its_total(score, tmp_path, picture):
    pq.write_table(pa.table({"image": [picture(1)] * 12}), tmp_path / "t.parquet")
    progress = score(tmp_path / "t.parquet").progress
    assert (progress.total, progress.is_total_exact, progress.eta_s) == (12, True, 0)
