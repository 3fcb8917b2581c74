"""Views of several models from one decoding: the same pixels, for as many threads as there are."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from bad_requests import JPEG

from service.bundle import preprocess as module
from service.bundle.decode import Limits, decode
from service.bundle.image_source import digest_source
from service.bundle.preprocess import prepare
from service.bundle.shared_image import SharedImage
from service.errors import RequestError

LIMITS = Limits()


@pytest.fixture
def decodes(monkeypatch):
    seen = []

    def count(data, *args, **options):
        seen.append(options)
        return decode(data, *args, **options)

    monkeypatch.setattr(module, "decode", count)
    return seen


def test_each_way_gives_what_it_gives_alone(make_preprocess, decodes):
    small, large = make_preprocess(size=16, crop=16), make_preprocess(size=32, crop=24)
    ways = [(small, "none"), (large, "ten_crop"), (small, "hflip"), (small, "none")]
    shared = SharedImage(JPEG, ways)
    for way in ways:
        made = shared.prepare(way, LIMITS)
        assert made.is_shared
        alone = prepare(JPEG, way[0], tta=way[1], limits=LIMITS)
        np.testing.assert_array_equal(made.views, alone.views)
    assert len(decodes) == 1 + len(ways)
    assert shared.cost_share == 1 / 4


def test_what_is_decoded_otherwise_is_decoded_again(make_preprocess, decodes):
    one = make_preprocess()
    other = one.model_copy(update={"background": (255, 255, 255)})
    scaled = one.model_copy(update={"jpeg_scaled_decode": True})
    ways = [(one, "none"), (other, "none"), (scaled, "none"), (one, "hflip")]
    shared = SharedImage(JPEG, ways)
    for way in ways:
        shared.prepare(way, LIMITS)
    assert len(decodes) == 3
    assert shared.cost_share == 3 / 4


def test_one_at_a_time_only_what_is_needed_is_made(make_preprocess, decodes):
    small, large = make_preprocess(size=16, crop=16), make_preprocess(size=32, crop=24)
    shared = SharedImage(JPEG)
    assert not shared.prepare((small, "none"), LIMITS).is_shared
    assert shared.prepare((small, "none"), LIMITS).is_shared
    assert len(decodes) == 1
    assert not shared.prepare((large, "none"), LIMITS).is_shared
    assert len(decodes) == 2
    assert shared.cost_share == 1


def test_threads_that_come_at_once_decode_once(make_preprocess, decodes):
    way = make_preprocess(), "none"
    shared = SharedImage(JPEG, [way] * 8)
    gate = threading.Barrier(8)

    def prepare_at_once(_):
        gate.wait()
        return shared.prepare(way, LIMITS)

    with ThreadPoolExecutor(8) as threads:
        made = list(threads.map(prepare_at_once, range(8)))
    assert len(decodes) == 1
    assert all(one is made[0] for one in made)


def test_it_is_remembered_as_the_file_that_it_is():
    assert digest_source(SharedImage(JPEG)) == digest_source(JPEG)


def test_a_bad_file_is_refused_to_each(make_preprocess):
    way = make_preprocess(), "none"
    shared = SharedImage(JPEG[:300], [way, way])
    for _ in range(2):
        with pytest.raises(RequestError, match="damaged jpeg"):
            shared.prepare(way, LIMITS)
