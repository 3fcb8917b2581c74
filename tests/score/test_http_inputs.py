"""Inputs on a web server: one without lengths or ranges, and one that refuses."""

from __future__ import annotations

import http.server
import io
import itertools
import tarfile
import threading
from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from service.score import tar_shards
from service.score.errors import ScoreError
from service.score.storage import Unreachable, open_file


class Site(http.server.ThreadingHTTPServer):
    """Serves `files`, in ranges if it `has_ranges`; `statuses` are what it says instead."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Answers)
        self.files, self.statuses, self.asked = {}, {}, Counter()
        self.has_lengths = self.has_ranges = True

    def handle_error(self, *_):
        """Says nothing of a client that hangs up."""

    def url(self, name):
        return f"http://127.0.0.1:{self.server_port}/{name}"


class Answers(http.server.BaseHTTPRequestHandler):
    def do_HEAD(self):
        self.answer()

    def do_GET(self):
        self.server.asked[self.path[1:]] += 1
        self.wfile.write(self.answer())

    def answer(self):
        site, name = self.server, self.path[1:]
        data = site.files.get(name, b"")
        status, asked = site.statuses.get(name, 200), self.headers.get("Range", "")
        if site.has_ranges and status == 200 and asked.startswith("bytes="):
            first, last = asked.removeprefix("bytes=").split("-")
            data, status = data[int(first) : int(last) + 1], 206
        self.send_response(status)
        if site.has_lengths:
            self.send_header("Content-Length", len(data))
        self.end_headers()
        return data

    def log_message(self, *_):
        pass


@pytest.fixture
def site():
    with Site() as site:
        thread = threading.Thread(target=site.serve_forever, args=(0.05,))
        thread.start()
        yield site
        site.shutdown()
        thread.join()


@pytest.fixture
def pauses(monkeypatch):
    made = []
    monkeypatch.setattr("service.score.storage.time.sleep", made.append)
    return made


@pytest.mark.parametrize(
    ("lacks", "text"),
    [
        ("has_lengths", "Cannot seek streaming HTTP file"),
        ("has_ranges", "range requests"),
        (None, None),
    ],
    ids=["lengths", "ranges", "control"],
)
def test_a_table_on_a_server_that_cannot_serve_it_is_one_line(
    site, pauses, score, picture, tmp_path, lacks, text
):
    """It was taken for a store that is away: four attempts, and `--resume` with no output there."""
    table = io.BytesIO()
    images = [picture(seed, 1024) for seed in range(2)]  # more than is read ahead at once
    pq.write_table(pa.table({"image": images}), table)
    site.files["t.parquet"] = table.getvalue()
    if lacks is None:
        assert score(site.url("t.parquet")).state == "done"
        return
    setattr(site, lacks, False)
    with pytest.raises(ScoreError, match=rf"t\.parquet: .*{text}") as caught:
        score(site.url("t.parquet"))
    assert "\n" not in str(caught.value)
    assert "--resume" not in str(caught.value)
    assert not pauses
    assert not (tmp_path / "scores").exists()


@pytest.mark.parametrize(
    ("status", "code", "asked"),
    [
        (401, "unreadable", 1),
        (403, "unreadable", 1),
        (404, "not_found", 1),
        (410, "not_found", 1),
        (503, "unreadable", 4),  # the control
    ],
)
def test_an_image_that_is_refused_for_certain_is_asked_for_once(
    site, pauses, score, picture, read_rows, tmp_path, status, code, asked
):
    names = ["a.png", "b.png", "c.png"]
    site.files = {name: picture(seed) for seed, name in enumerate(names)}
    site.statuses["b.png"] = status
    (tmp_path / "list.txt").write_text("".join(f"{site.url(name)}\n" for name in names))
    assert score(tmp_path / "list.txt", max_error_rate=1).state == "done"
    assert [row["error_code"] for row in read_rows()] == [None, code, None]
    assert [site.asked[name] for name in names] == [1, asked, 1]
    assert len(pauses) == asked - 1


@pytest.mark.parametrize(
    ("status", "kind"),
    [(401, PermissionError), (403, PermissionError), (404, FileNotFoundError),
     (410, FileNotFoundError), (503, Unreachable)],
)  # fmt: skip
@pytest.mark.parametrize("is_open", [False, True], ids=["at first", "later"])
def test_a_file_whose_url_expires_is_one_that_may_not_be_read(site, pauses, status, kind, is_open):
    site.files["x.tar"] = bytes(100_000)
    site.statuses["x.tar"] = 200 if is_open else status

    def read():
        with open_file(site.url("x.tar"), 1_000) as file:
            assert file.read(10) == bytes(10)
            site.statuses["x.tar"] = status
            file.read()

    with pytest.raises(kind, match=str(status)):
        read()
    assert len(pauses) == (3 if kind is Unreachable else 0)


def test_a_shard_whose_url_expires_while_it_is_read_ends_with_an_error_row(
    site, pauses, score, picture, read_rows, monkeypatch
):
    """As a local one that cannot be read further."""
    monkeypatch.setattr(tar_shards, "_BLOCK_BYTES", 1_000)
    shard = io.BytesIO()
    with tarfile.open(fileobj=shard, mode="w") as writer:
        for seed in range(30):
            about = tarfile.TarInfo(f"{seed}.png")
            about.size = len(data := picture(seed))
            writer.addfile(about, io.BytesIO(data))
    site.files["x.tar"] = shard.getvalue()

    calls = itertools.count()

    def expire():  # when some of it is read
        site.statuses["x.tar"] = 403 if next(calls) else 200
        return False

    assert score(site.url("x.tar"), should_stop=expire, max_error_rate=1).state == "done"
    *read, last = [row["error_code"] for row in read_rows()]
    assert set(read) == {None}
    assert len(read) < 30
    assert last == "unreadable"
    assert not pauses
