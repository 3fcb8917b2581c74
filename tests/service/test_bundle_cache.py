"""Copies of bundles within a size: which of them go, and that none in hand does."""

from __future__ import annotations

import gc
import itertools
import os
import random
import shutil
import subprocess
import sys
import threading
from functools import partial

import pytest

from service.bundle.repository import read_bundle, verify_files
from service.bundle_cache import BundleCache
from service.errors import BundleError

NAME = "digits-linear"


@pytest.fixture
def bundles(growing_repository):
    """Five versions of about the same size."""
    for version in range(2, 6):
        growing_repository.publish(version)
    return [read_bundle(growing_repository.folder / NAME / str(one)) for one in range(1, 6)]


def size_of(folder):
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


@pytest.fixture
def keep(bundles, tmp_path):
    """Returns `keep(version)`: its copy; the cache has room for two and a half."""
    most = int(2.5 * size_of(bundles[0].folder))
    ticks = itertools.count(1_000)

    def keep(version, cache=None):
        bundle = bundles[version - 1]
        cache = cache or BundleCache(tmp_path / "cache", most)
        copy = partial(shutil.copytree, bundle.folder, dirs_exist_ok=True)
        found = cache.keep(bundle.manifest, bundle.digest, copy)
        # Files of less than a tick of the system's clock apart have one time.
        os.utime(tmp_path / "cache" / bundle.digest, times=(next(ticks),) * 2)
        return found

    keep.most = most
    keep.cached = lambda: {
        int(path.name)
        for path in (tmp_path / "cache").glob(f"*/{NAME}/*")
        if len(path.parts[-3]) == 64
    }
    return keep


def test_what_was_used_least_recently_makes_room(keep, tmp_path):
    for version in (1, 2):
        keep(version)
    assert keep.cached() == {1, 2}
    keep(1)  # used again
    keep(3)
    assert keep.cached() == {1, 3}
    keep(4)
    assert keep.cached() == {3, 4}
    assert size_of(tmp_path / "cache") <= keep.most
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_what_somebody_has_in_hand_stays_whatever_it_costs(keep):
    held = [keep(version) for version in (1, 2, 3)]
    assert keep.cached() == {1, 2, 3}
    keep(4)
    assert keep.cached() == {1, 2, 3, 4}
    for one in held:
        verify_files(one)
    held.pop(0)
    del one
    gc.collect()
    keep(5)
    assert keep.cached() == {2, 3, 5}


def test_other_processes_and_their_death_are_noticed(keep, bundles, tmp_path):
    keep(1)
    code = (
        "import fcntl, os, sys; handle = os.open(sys.argv[1], os.O_RDONLY); "
        "fcntl.flock(handle, fcntl.LOCK_SH); print('held', flush=True); sys.stdin.read()"
    )
    place = tmp_path / "cache" / bundles[0].digest
    with subprocess.Popen(
        [sys.executable, "-c", code, place], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout.readline() == b"held\n"
        for version in (2, 3):
            keep(version)
        assert keep.cached() == {1, 3}
        process.kill()
    keep(4)
    assert keep.cached() == {3, 4}


def test_a_copy_is_never_pulled_away_from_under_somebody(keep, bundles, tmp_path):
    failures = []

    def use(seed):
        cache = BundleCache(tmp_path / "cache", keep.most)
        chance = random.Random(seed)
        try:
            for _ in range(30):
                held = keep(chance.randint(1, 5), cache)
                verify_files(held)
        except Exception as error:  # noqa: BLE001 - of a thread
            failures.append(error)

    threads = [threading.Thread(target=use, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    gc.collect()
    shutil.rmtree(tmp_path / "cache" / bundles[4].digest, ignore_errors=True)
    keep(5)  # what is copied makes room
    assert size_of(tmp_path / "cache") <= keep.most


def test_what_was_not_copied_whole_leaves_nothing(keep, bundles, tmp_path):
    def copy(folder):
        shutil.copytree(bundles[0].folder, folder, dirs_exist_ok=True)
        (folder / "model.onnx").write_bytes(b"something else")

    cache = BundleCache(tmp_path / "cache", keep.most)
    with pytest.raises(BundleError):
        cache.keep(bundles[0].manifest, bundles[0].digest, copy)
    assert list((tmp_path / "cache").iterdir()) == []
    left = tmp_path / "cache/.staging-killed"
    left.mkdir()
    keep(1)
    assert not left.exists()
