"""The README's section about buckets, executed against a local server that speaks S3."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import pyarrow.dataset as ds
import pytest

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).parents[2]
IMAGES = sorted((ROOT / "exported_models/cifar10-airbench/1/golden").glob("*.jpeg"))


@pytest.fixture
def bucket(s3):
    """The file system of a local S3 with an empty bucket `photos`."""
    s3.mkdir("photos")
    return s3


def test_the_commands_about_buckets_score_a_folder_and_shards(bucket, tmp_path):
    text = (ROOT / "README.md").read_text().split("\n## Score a bucket\n")[1].split("\n## ")[0]
    (block,) = re.findall(r"```\n(.*?)```", text, re.S)
    photos = tmp_path / "photos"
    photos.mkdir()
    for path in IMAGES:
        (photos / path.name).write_bytes(path.read_bytes())
    for shard in range(2):
        with tarfile.open(tmp_path / f"{shard}.tar", "w") as file:
            for path in IMAGES[shard::2]:
                file.add(path, path.name)
        bucket.put_file(str(tmp_path / f"{shard}.tar"), f"photos/shards/{shard}.tar")
    (tmp_path / "exported_models").symlink_to(ROOT / "exported_models")
    programs = f"{Path(sys.executable).parent}/"
    shown = subprocess.run(
        ["bash", "-euc", block.replace(".venv/bin/", programs)],
        cwd=tmp_path,
        env={**os.environ, "HOME": str(tmp_path)},
        capture_output=True,
        check=True,
        text=True,
    )
    assert f"rows    {len(IMAGES)}: {len(IMAGES)} ok" in shown.stdout
    assert (tmp_path / "scores/_report.html").read_text().count("data:image/jpeg") == len(IMAGES)
    local = ds.dataset(tmp_path / "scores").to_table().to_pylist()
    remote = ds.dataset("photos/scores", filesystem=bucket, format="parquet").to_table().to_pylist()
    assert len(local) == len(remote) == len(IMAGES)
    assert {row["model"] for row in local + remote} == {"cifar10-airbench"}
    assert {row["bundle_digest"] for row in local} == {row["bundle_digest"] for row in remote}


def test_the_example_in_python_scores_a_folder_and_goes_on(tmp_path):
    for path in IMAGES:
        (tmp_path / path.name).write_bytes(path.read_bytes())
    command = [sys.executable, "docs/examples/score_folder.py", tmp_path, tmp_path / ".scores"]
    for _ in range(2):
        shown = subprocess.run(
            command,
            cwd=ROOT,
            env={**os.environ, "HOME": str(tmp_path)},
            capture_output=True,
            check=True,
            text=True,
        ).stdout
        assert f"done: {len(IMAGES)} images" in shown
        assert re.search(r"^ +[0-9]+ airplane$", shown, re.M)
