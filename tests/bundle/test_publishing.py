"""A bundle appears whole or not at all, whatever interrupts its publication."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from service.bundle import repository as module
from service.bundle.repository import (
    list_versions,
    publishing,
    read_bundle,
    read_golden,
    resolve,
    verify_files,
)
from service.errors import BundleError


def visible(repository: Path) -> list[str]:
    """Everything in a repository that does not start with a dot."""
    return sorted(
        path.relative_to(repository).as_posix()
        for path in repository.rglob("*")
        if not any(part.startswith(".") for part in path.relative_to(repository).parts)
    )


def publish(repository: Path, write_bundle, *, spoil: Callable[[Path], None] | None = None) -> Path:
    """Returns the folder of a bundle that was published, after `spoil` had its way with it."""
    with publishing(repository, "handmade") as (staging, version):
        write_bundle(staging, version=version)
        if spoil is not None:
            spoil(staging)
    return repository / "handmade" / str(version)


def test_versions_count_up_and_keep_what_was_there(tmp_path, write_bundle):
    first = publish(tmp_path, write_bundle)
    before = {path: path.stat().st_mtime_ns for path in first.rglob("*")}
    second = publish(tmp_path, write_bundle)
    assert (first.name, second.name) == ("1", "2")
    assert before == {path: path.stat().st_mtime_ns for path in first.rglob("*")}
    assert list_versions(tmp_path) == {"handmade": [1, 2]}
    assert not list(tmp_path.glob(".staging-*"))


def test_the_number_of_an_unfinished_folder_is_not_taken_again(tmp_path, write_bundle):
    """Else hours of training would end in a rename onto it that fails."""
    (tmp_path / "handmade" / "7" / "golden").mkdir(parents=True)
    assert publish(tmp_path, write_bundle).name == "8"


def test_others_may_read_what_was_published(tmp_path, write_bundle):
    folder = publish(tmp_path, write_bundle)
    assert stat.S_IMODE(folder.stat().st_mode) & 0o055 == 0o055
    assert stat.S_IMODE(folder.parent.stat().st_mode) & 0o055 == 0o055


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt(), SystemExit(1)])
def test_an_interrupted_publication_leaves_nothing(error, tmp_path, write_bundle):
    publish(tmp_path, write_bundle)
    before = visible(tmp_path)

    def spoil(_):
        raise error

    with pytest.raises(type(error)):
        publish(tmp_path, write_bundle, spoil=spoil)
    assert visible(tmp_path) == before
    assert not list(tmp_path.glob(".staging-*"))


def test_nothing_is_visible_while_it_is_written(tmp_path, write_bundle):
    with publishing(tmp_path, "handmade") as (staging, version):
        write_bundle(staging, version=version)
        assert (staging / "bundle.json").is_file()
        assert visible(tmp_path) == []
        assert list_versions(tmp_path) == {}
    assert list_versions(tmp_path) == {"handmade": [1]}


def _without_manifest(folder: Path) -> None:
    (folder / "bundle.json").unlink()


def _with_changed_graph(folder: Path) -> None:
    (folder / "model.onnx").write_bytes(b"other")


def _with_unknown_file(folder: Path) -> None:
    (folder / "notes.txt").touch()


def _with_other_version(folder: Path) -> None:
    facts = json.loads((folder / "bundle.json").read_text())
    (folder / "bundle.json").write_text(json.dumps({**facts, "version": 9}))


def _with_bad_golden(folder: Path) -> None:
    (folder / "golden" / "golden.json").write_text("{}")


@pytest.mark.parametrize(
    "spoil",
    [
        _without_manifest,
        _with_changed_graph,
        _with_unknown_file,
        _with_other_version,
        _with_bad_golden,
    ],
)
def test_what_is_no_bundle_is_not_published(spoil, tmp_path, write_bundle):
    with pytest.raises(BundleError):
        publish(tmp_path, write_bundle, spoil=spoil)
    assert visible(tmp_path) == []


@pytest.mark.parametrize(
    "name", ["", ".", "..", "a/b", "../a", "Capital", ".hidden", "a" * 65, "a\n"]
)
def test_names_that_are_not_allowed_are_refused_before_work(name, tmp_path):
    with (
        pytest.raises(BundleError, match="is not a model name"),
        publishing(tmp_path / "models", name),
    ):
        pytest.fail("the body ran")
    assert not (tmp_path / "models").exists()


_CHILD = """
import sys, time
from pathlib import Path
from service.bundle import repository
from service.bundle.repository import publishing

source, target = Path(sys.argv[1]), Path(sys.argv[2])

def wait(*_):
    print("ready", flush=True)
    time.sleep(60)

{patch}
with publishing(target, "handmade") as (staging, version):
    for path in sorted(source.rglob("*")):
        copy = staging / path.relative_to(source)
        copy.mkdir() if path.is_dir() else copy.write_bytes(path.read_bytes())
    {body}
"""

_PLACES = {
    "while it writes": ("", "wait()"),
    "before it syncs": ("repository._sync = wait", ""),
    "before it renames": ("Path.rename = wait", ""),
}


@pytest.mark.parametrize("place", _PLACES)
def test_a_killed_publisher_leaves_nothing_visible(place, handmade_bundle, tmp_path, write_bundle):
    target = tmp_path / "target"
    patch, body = _PLACES[place]
    code = _CHILD.format(patch=patch, body=body or "pass")
    child = subprocess.Popen(
        [sys.executable, "-c", code, handmade_bundle, target],
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
    )
    with child:
        assert child.stdout.readline() == b"ready\n"
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
    assert list(target.glob(".staging-*/handmade/1/model.onnx"))
    assert list_versions(target) == {}
    assert visible(target) in ([], ["handmade"])
    assert publish(target, write_bundle).name == "1"


def test_everything_is_on_the_disk_before_the_name_is(tmp_path, write_bundle, monkeypatch):
    """fsync of each file and folder, then the rename, then fsync of the folders around it."""
    events: list[str] = []
    real_fsync, real_rename = os.fsync, Path.rename

    def fsync(handle):
        events.append(str(Path(f"/proc/self/fd/{handle}").readlink()))
        real_fsync(handle)

    def rename(self, target):
        events.append("rename")
        return real_rename(self, target)

    monkeypatch.setattr(module.os, "fsync", fsync)
    monkeypatch.setattr(Path, "rename", rename)
    folder = publish(tmp_path, write_bundle)
    at = events.index("rename")
    synced = {event.partition("/handmade/1")[2] for event in events[:at]}
    files = {f"/{path.relative_to(folder).as_posix()}" for path in folder.rglob("*")}
    assert synced == files | {""}
    assert events[at + 1 :] == [str(folder.parent), str(tmp_path)]


def test_of_publishers_at_once_each_succeeds_or_is_told(tmp_path, write_bundle):
    publishers = 6
    written = threading.Barrier(publishers)
    outcomes: list[object] = []

    def run() -> None:
        try:
            with publishing(tmp_path, "handmade") as (staging, version):
                write_bundle(staging, version=version)
                written.wait()
        except BundleError as error:
            outcomes.append(str(error))
        else:
            outcomes.append(version)

    threads = [threading.Thread(target=run) for _ in range(publishers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    told = [outcome for outcome in outcomes if isinstance(outcome, str)]
    published = [outcome for outcome in outcomes if isinstance(outcome, int)]
    assert len(outcomes) == publishers
    assert published
    assert sorted(published) == list_versions(tmp_path)["handmade"]
    assert all("published by someone else" in text for text in told)
    bundle = read_bundle(resolve(tmp_path, "handmade"))
    verify_files(bundle)
    read_golden(bundle)
