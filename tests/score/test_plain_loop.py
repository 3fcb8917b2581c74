"""The control of error rows: what the loop that people write makes of inputs that ours survives.

What ours makes of them is in test_faults and, for all hostile images, in test_job.
"""

from __future__ import annotations

import sys

import pytest

pytestmark = pytest.mark.e2e

# By their names among the hostile images.
BROKEN = [
    "jpeg without end",
    "jpeg with impossible huffman table",
    "png of 100000 x 100000",
    "text",
]


@pytest.fixture
def run_loop(tmp_path, picture, tiny_bundle_repository, monkeypatch):
    """Returns `run_loop(damage)`: how many rows it wrote of four images, the third damaged."""
    from benchmarks.peers import dataloader_loop

    def run(damage):
        names = [tmp_path / f"{index}.png" for index in range(4)]
        for index, name in enumerate(names):
            name.write_bytes(picture(index))
        damage(names[2])
        (tmp_path / "list.txt").write_text("\n".join(map(str, names)))
        model = tiny_bundle_repository / "digits-linear/1/model.onnx"
        given = [model, tmp_path / "list.txt", tmp_path / "out.csv", "--workers=0", "--batch=2"]
        given = ["loop", *given, "--resize=32", "--crop=32"]
        monkeypatch.setattr(sys, "argv", list(map(str, given)))
        dataloader_loop.main()

    return run


def count_rows(tmp_path):
    return (tmp_path / "out.csv").read_text().count("\n")


def make_folder(path):
    path.unlink()
    path.mkdir()


def test_the_loop_scores_what_nothing_is_wrong_with(run_loop, tmp_path):
    run_loop(lambda _: None)
    assert count_rows(tmp_path) == 4


@pytest.mark.parametrize("damage", [lambda path: path.unlink(), make_folder], ids=["gone", "dir"])
def test_the_loop_ends_at_a_file_that_cannot_be_read(run_loop, tmp_path, damage):
    with pytest.raises(OSError, match=r"2\.png"):
        run_loop(damage)
    assert count_rows(tmp_path) < 3


@pytest.mark.parametrize("name", BROKEN)
def test_the_loop_ends_at_an_image_that_is_none(run_loop, hostile_images, tmp_path, name):
    make, _ = hostile_images.HOSTILE_IMAGES[name]
    with pytest.raises(Exception, match=r"truncated|broken|decompression bomb|cannot identify"):
        run_loop(lambda path: path.write_bytes(make()))
    assert count_rows(tmp_path) < 3
