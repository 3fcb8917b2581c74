"""Offline scoring through a running service, by either protocol: the files of this machine."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.e2e

FIVECROP = Path(sys.executable).with_name("fivecrop")


@pytest.mark.parametrize("form", ["parquet", "jsonl"])
def test_files_from_a_service_are_those_of_this_machine(
    start_server, tiny_bundle_repository, hostile_images, tmp_path, form
):
    photos = tmp_path / "photos"
    photos.mkdir()
    for index in range(40):
        picture = hostile_images.picture(24 + index, 40)
        (photos / f"{index:02}.png").write_bytes(hostile_images.encoded(picture, "PNG"))
    for index, (make, _) in enumerate(hostile_images.HOSTILE_IMAGES.values()):
        (photos / f"hostile-{index:02}").write_bytes(make())
    server = start_server(tiny_bundle_repository).wait_ready()
    options = ["--tta=hflip", "--top-k=3", "--probabilities", "--embedding", "--sha256"]
    options += ["--model=digits-linear", "--max-error-rate=1", f"--format={form}"]
    places = {
        "here": [f"--model-repository={tiny_bundle_repository}"],
        "http": ["--engine=http", f"--url=http://127.0.0.1:{server.http_port}"],
        "grpc": ["--engine=grpc", f"--url=http://127.0.0.1:{server.grpc_port}"],
    }
    for name, where in places.items():
        subprocess.run(
            [FIVECROP, "score", photos, f"--out={tmp_path / name}", *options, *where],
            env={"HOME": str(tmp_path), "PATH": ""},
            check=True,
        )
    here, http, grpc = (
        b"".join(part.read_bytes() for part in sorted((tmp_path / name).glob("part-*")))
        for name in places
    )
    if form == "jsonl":
        assert here.count(b"\n") == 40 + len(hostile_images.HOSTILE_IMAGES)
    assert here == http
    assert http == grpc
