"""What the arguments of a job name, in which order, and what cannot be read of it."""

from __future__ import annotations

import gzip
import io
import tarfile
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from service.score.entry import Broken, Inline
from service.score.errors import ScoreError
from service.score.inputs import Inputs
from service.score.needs import Needs
from service.score.storage import Reader, ReadError


def listed(*given, column=None, needs=None):
    inputs = Inputs([str(one) for one in given], column=column, max_bytes=10_000)
    return list(inputs.entries(needs or Needs()))


def contents(entries):
    """What is read for each entry: its bytes, or the code of why not."""
    reader = Reader(10_000, first_pause_s=0.001)

    def read(entry):
        try:
            return reader.read(entry)
        except ReadError as error:
            return error.code

    return [read(entry) for entry in entries]


def write_tar(path, members, mode="w"):
    with tarfile.open(path, mode) as shard:
        for name, data in members:
            about = tarfile.TarInfo(name)
            about.size = len(data)
            shard.addfile(about, io.BytesIO(data))
    return path


MEMBERS = [("a.jpg", b"A" * 700), ("a.cls", b"7"), ("b.png", b"B" * 3), ("sub/c.JPEG", b"")]


def test_a_folder_is_walked_in_the_order_of_its_names(tmp_path):
    for name in ("b/2.png", "b/10.png", "a.png", ".hidden/x.png", "b/.x.png", "c"):
        place = tmp_path / name
        place.parent.mkdir(exist_ok=True)
        place.write_bytes(name.encode())
    (tmp_path / "link").symlink_to(tmp_path / "a.png")
    (tmp_path / "loop").symlink_to(tmp_path, target_is_directory=True)
    entries = listed(tmp_path)
    names = [Path(entry.path).relative_to(tmp_path).as_posix() for entry in entries]
    assert names == ["a.png", "b/10.png", "b/2.png", "c", "link"]
    assert [entry.position for entry in entries] == [0, 1, 2, 3, 4]
    assert contents(entries)[1] == b"b/10.png"


def test_a_glob_and_several_inputs_keep_their_order(tmp_path):
    for name in ("b.png", "a.png", "c.jpg"):
        (tmp_path / name).write_bytes(name.encode())
    entries = listed(tmp_path / "c.jpg", tmp_path / "*.png")
    assert contents(entries) == [b"c.jpg", b"a.png", b"b.png"]


def test_a_list_names_paths_and_urls_a_line(tmp_path):
    (tmp_path / "a b.png").write_bytes(b"local")
    fsspec.filesystem("memory").pipe_file("/list-test/x.png", b"remote")
    (tmp_path / "names.txt").write_text(
        f"{tmp_path}/a b.png\n\nmemory://list-test/x.png\r\n{tmp_path}/absent.png"
    )
    assert contents(listed(tmp_path / "names.txt")) == [b"local", b"remote", "not_found"]


@pytest.mark.parametrize(("suffix", "comma"), [("csv", ","), ("tsv", "\t")])
def test_a_csv_names_paths_in_a_column(tmp_path, suffix, comma):
    (tmp_path / "a,b.png").write_bytes(b"x")
    table = tmp_path / f"table.{suffix}"
    table.write_text(f'\ufefflabel{comma}path\n7{comma}"{tmp_path}/a,b.png"\n8{comma}\n')
    assert contents(listed(table)) == [b"x", "unreadable"]
    assert [one.path for one in listed(table, column="label")] == ["7", "8"]
    with pytest.raises(ScoreError, match=r"has no column 'url'; it has 'label', 'path'"):
        listed(table, column="url")


def test_parquet_holds_bytes_paths_or_both(tmp_path):
    (tmp_path / "p.png").write_bytes(b"on disk")
    table = tmp_path / "t.parquet"
    struct = [{"bytes": b"one", "path": "1.png"}, {"bytes": None, "path": f"{tmp_path}/p.png"}]
    cells = {
        "image": [*struct, {"bytes": None, "path": None}],
        "data": [b"x", None, b"z"],
        "where": [f"{tmp_path}/p.png"] * 3,
        "label": [1, 2, 3],
    }
    pq.write_table(pa.table(cells), table, row_group_size=2)
    assert contents(listed(table)) == [b"one", b"on disk", "unreadable"]
    assert contents(listed(table, column="data")) == [b"x", "unreadable", b"z"]
    assert contents(listed(table, column="where")) == [b"on disk"] * 3
    assert listed(table)[0].path == f"{table}#0/1.png"
    with pytest.raises(ScoreError, match="column 'label' is int64"):
        listed(table, column="label")
    # What is done is not read again, and keeps its place.
    entries = listed(table, column="data", needs=Needs([(0, 2)]))
    assert [one.position for one in entries] == [0, 1, 2]
    assert [one.place for one in entries] == [Inline(b""), Inline(b""), Inline(b"z")]


def test_a_table_without_a_known_column_asks_which(tmp_path):
    pq.write_table(pa.table({"x": [1], "y": ["a"]}), tmp_path / "t.parquet")
    with pytest.raises(ScoreError, match=r"--column is one of 'x', 'y'"):
        listed(tmp_path / "t.parquet")


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_a_tar_shard_gives_its_images(tmp_path, mode):
    path = tmp_path / ("s.tar" if mode == "w" else "s.tar.gz")
    write_tar(path, MEMBERS, mode)
    entries = listed(path)
    assert [one.path for one in entries] == [
        f"{path}#{n}" for n in ("a.jpg", "b.png", "sub/c.JPEG")
    ]
    assert contents(entries) == [b"A" * 700, b"BBB", b""]


def test_a_remote_shard_is_read_once_and_not_where_it_is_done(tmp_path):
    write_tar(tmp_path / "s.tar", MEMBERS)
    files = fsspec.filesystem("memory")
    files.pipe_file("/shards/s.tar", (tmp_path / "s.tar").read_bytes())
    entries = listed("memory://shards/*.tar", needs=Needs([(0, 1)]))
    assert contents(entries) == [b"", b"BBB", b""]


def test_members_that_are_too_large_are_not_read(tmp_path):
    members = [("a.jpg", b"A" * 10_001), ("b.jpg", b"B")]
    for name, mode in (("s.tar", "w"), ("s.tgz", "w:gz")):
        entries = listed(write_tar(tmp_path / name, members, mode))
        assert contents(entries) == ["body_too_large", b"B"]


@pytest.mark.parametrize("kept", [200, 900, 1300, 1500, 2000])
@pytest.mark.parametrize("name", ["s.tar", "s.tar.gz"])
def test_a_truncated_shard_ends_with_an_error_row(tmp_path, kept, name):
    whole = write_tar(tmp_path / "whole.tar", MEMBERS[:3]).read_bytes()
    # Headers at 0, 1536 and 2560 bytes.
    data = whole[:kept]
    path = tmp_path / name
    path.write_bytes(data if name == "s.tar" else gzip.compress(data))
    entries = listed(path)
    assert isinstance(entries[-1].place, Broken), entries
    assert contents(entries)[-1] == "unreadable"


@pytest.mark.parametrize("name", ["s.tar", "s.tar.gz"])
def test_a_damaged_header_in_a_shard_is_not_its_end(tmp_path, name):
    data = bytearray(write_tar(tmp_path / "whole.tar", MEMBERS).read_bytes())
    data[2560 + 150] ^= 0xFF
    path = tmp_path / name
    path.write_bytes(bytes(data) if name == "s.tar" else gzip.compress(bytes(data)))
    with tarfile.open(path) as control:
        assert len(control.getnames()) == 2, "tarfile stops there without a word"
    entries = listed(path)
    assert contents(entries) == [b"A" * 700, "unreadable"]


def test_a_limit_ends_the_input(tmp_path):
    for index in range(5):
        (tmp_path / f"{index}.png").write_bytes(b"x")
    assert len(listed(tmp_path, needs=Needs(limit=3))) == 3


def test_the_fingerprint_tells_inputs_apart(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "a.png").write_bytes(b"x")
    (folder / "b.png").write_bytes(b"y")

    def fingerprint():
        return Inputs([str(folder)], column=None, max_bytes=9).fingerprint()

    first = fingerprint()
    assert fingerprint() == first
    assert (first.files, first.images) == (2, 2)
    (folder / "b.png").write_bytes(b"yy")
    second = fingerprint()
    assert second.digest != first.digest
    write_tar(folder / "c.tar", MEMBERS)
    assert fingerprint().images is None


@pytest.mark.parametrize(
    ("name", "content", "text"),
    [
        ("absent", None, "there is no"),
        ("bad.txt", b"\xff\xfe\x00", "no UTF-8"),
        ("bad.csv", b"path\n\xff\n", "no CSV file in UTF-8"),
        ("empty.csv", b"", "--column is one of none"),
        ("bad.parquet", b"PAR1 no", "cannot be read as Parquet"),
    ],
)
def test_an_input_that_cannot_be_listed_is_one_line(tmp_path, name, content, text):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ScoreError, match=text) as caught:
        listed(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_a_folder_that_may_not_be_read_is_an_error(tmp_path, monkeypatch):
    (tmp_path / "in").mkdir()

    def refuse(_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("service.score.listing.os.scandir", refuse)
    with pytest.raises(ScoreError, match="Permission denied"):
        listed(tmp_path / "in")
