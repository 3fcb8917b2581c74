"""Facts about the tree that a reader relies on."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LOCKS = sorted((ROOT / "requirements").glob("*.txt"))


def tracked_text_files():
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True, text=True
    ).stdout
    for name in filter(None, listed.split("\0")):
        path = ROOT / name
        if path.is_file():
            try:
                yield name, path.read_text()
            except UnicodeDecodeError:
                continue


def test_there_is_a_lock_for_each_way_to_install():
    assert {path.stem for path in LOCKS} == {
        *("cpu", "gpu", "openvino", "score", "train"),
        *("dev", "ray", "clients", "tools"),
        *("checkers", "inventory"),
    }


@pytest.mark.parametrize("lock", LOCKS, ids=lambda path: path.stem)
def test_a_lock_pins_every_package_with_hashes_and_names_no_index(lock):
    text = lock.read_text()
    pins = re.findall(r"^[a-z0-9][a-z0-9._-]*(?:\[[a-z,]+\])?==\S+.*$", text, re.MULTILINE)
    entries = re.findall(r"^[^\s#].*$", text, re.MULTILINE)
    assert entries
    assert len(pins) == len(entries)
    assert all(pin.endswith("\\") for pin in pins), "a package without hashes"
    assert "://" not in text


def test_the_serving_locks_have_no_training_packages():
    for name in ("cpu", "gpu", "openvino"):
        text = (ROOT / f"requirements/{name}.txt").read_text()
        assert not re.search(r"^(torch|torchvision|timm|onnx|onnxscript|pyarrow)==", text, re.M)


def test_no_tracked_file_names_a_path_of_the_machine_it_was_made_on():
    home = r"/(?:work|root|home/\w+|tmp/\w+)/"
    found = [
        name
        for name, text in tracked_text_files()
        if name != "tests/repo/test_tree.py" and re.search(rf"(?<![\w.}}]){home}", text)
    ]
    assert found == []


def test_make_help_lists_every_target_with_one_line():
    makefile = (ROOT / "Makefile").read_text()
    phony = re.search(r"^\.PHONY: (.*)$", makefile, re.M).group(1).split()
    shown = subprocess.run(
        ["make", "--no-print-directory", "help"],
        cwd=ROOT,
        capture_output=True,
        check=True,
        text=True,
    ).stdout.splitlines()
    assert [line.split()[0] for line in shown] == phony
    assert all(len(line.split()) > 1 for line in shown)


def test_there_is_no_package_below_tests_that_would_shadow_ours():
    assert list((ROOT / "tests").rglob("__init__.py")) == []


def test_source_files_hold_to_their_size():
    long = {
        str(path.relative_to(ROOT)): lines
        for package in ("service", "training")
        for path in (ROOT / package).rglob("*.py")
        if "_pb2" not in path.name and (lines := len(path.read_text().splitlines())) > 350
    }
    assert long == {}
