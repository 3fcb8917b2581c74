"""Inputs on a web server: one without lengths or ranges, and one that refuses."""

from __future__ import annotations

import http.server
import io
import threading
from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from service.score.errors import ScoreError


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
