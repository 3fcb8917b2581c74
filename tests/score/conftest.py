"""Fixtures of offline scoring: small pictures, jobs over them, and what the jobs wrote."""

from __future__ import annotations

import io
import unittest.mock

import numpy as np
import pytest
from PIL import Image

from service.bundle.repository import read_bundle
from service.score import ScoreOptions, score_dataset
from service.score.dataset import list_parts, read_manifest
from service.score.folder import open_folder
from service.score.http_transport import HttpTransport
from service.score.messages import Ready, Spent
from service.score.part_format import read_part
from service.score.pool import Scored
from service.score.row import failed_row
from service.score.scorer import Scorer
from service.score.storage import Reader, ReadError


def encode_picture(seed, size=32, form="PNG"):
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, form)
    return file.getvalue()


@pytest.fixture(scope="session")
def picture():
    """Returns a function that makes one small encoded picture for a seed."""
    return encode_picture


@pytest.fixture
def photos(tmp_path):
    """A folder of 60 pictures, some of them below it."""
    folder = tmp_path / "photos"
    for index in range(60):
        place = folder / ("deep/er" if index % 3 else ".") / f"{index:03}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(encode_picture(index))
    return folder


@pytest.fixture
def make_options(tmp_path, tiny_bundle_repository, monkeypatch):
    """Returns a function that makes options for the tiny bundle; two workers."""
    monkeypatch.setenv("FIVECROP_MODEL_CACHE", str(tmp_path / "cache"))
    given = {"model": "digits-linear", "model_repository": str(tiny_bundle_repository)}
    return lambda **more: ScoreOptions(**{"workers": 1, **given, **more})


class InProcess:
    """Scores in this process, with what the workers run: a start of theirs takes a second."""

    size = 1

    def __init__(self, setup, links):
        self._scorer = Scorer(read_bundle(setup.bundle_folder), setup.options, setup.settings)
        self._reader = Reader(setup.settings.max_body_bytes)

    def wait_ready(self):
        return Ready(provider="cpu", variant="fp32")

    def run(self, chunker, should_stop):
        while not should_stop() and (stretch := chunker.take(5)) is not None:
            yield Scored(stretch, [self._row(entry) for entry in stretch.entries], Spent())

    def _row(self, entry):
        try:
            return self._scorer.score(entry, self._reader.read(entry))
        except ReadError as error:
            return failed_row(entry, error.code)

    def close(self):
        pass


@pytest.fixture
def with_workers():
    """Asks for real worker processes."""


@pytest.fixture
def score(tmp_path, make_options, request, monkeypatch):
    """Returns `score(inputs, out, **options)`: runs a job into a folder of the test."""
    if "with_workers" not in request.fixturenames:
        monkeypatch.setattr("service.score.engines.ProcessLink", unittest.mock.Mock)
        monkeypatch.setattr("service.score.engines.WorkerPool", InProcess)

    def run(
        inputs,
        out="scores",
        *,
        resume=False,
        should_stop=lambda: False,
        connect=HttpTransport,
        **options,
    ):
        return score_dataset(
            inputs if isinstance(inputs, list) else str(inputs),
            str(tmp_path / out),
            make_options(**options),
            resume=resume,
            should_stop=should_stop,
            connect=connect,
        )

    return run


@pytest.fixture
def read_rows(tmp_path):
    """Returns `read_rows(out)`: every row that was written, by its id."""

    def read(out="scores"):
        folder = open_folder(str(tmp_path / out))
        rows = [
            row
            for part in list_parts(folder)
            for row in read_part(folder.read(part.name), part.format)
        ]
        return sorted(rows, key=lambda row: row["id"])

    return read


@pytest.fixture
def manifest_of(tmp_path):
    """Returns `manifest_of(out)`."""
    return lambda out="scores": read_manifest(open_folder(str(tmp_path / out)))
