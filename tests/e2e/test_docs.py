"""The blocks of documents that are marked to be run, as they stand, beside the bundled model."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).parents[2]
RUN = r"^<!-- run -->\n```(\w+)\n(.*?)^```\n(?:<!-- output -->\n```\w*\n(.*?)^```\n)?"
NUMBER = re.compile(r"\d+\.\d+")


def list_blocks():
    for document in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        for number, found in enumerate(re.findall(RUN, document.read_text(), re.M | re.S)):
            yield pytest.param(*found, id=f"{document.stem}-{number}-{found[0]}")


@pytest.fixture(scope="module")
def bundled(tmp_path_factory, make_server):
    with make_server(tmp_path_factory.mktemp("server"), ROOT / "exported_models") as server:
        yield server.wait_ready()


@pytest.mark.parametrize(("language", "code", "expected"), list(list_blocks()))
def test_a_block_runs_and_prints_what_it_says(bundled, language, code, expected):
    for shown, port in (("3000", bundled.http_port), ("3001", bundled.grpc_port)):
        code = code.replace(f"127.0.0.1:{shown}", f"127.0.0.1:{port}")
    command = {
        "bash": ["bash", "-euo", "pipefail", "-c"],
        "python": [sys.executable, "-c"],
        "javascript": ["node", "--input-type=module", "-e"],
    }[language]
    if shutil.which(command[0]) is None:
        pytest.skip(f"there is no {command[0]}")
    done = subprocess.run([*command, code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout
    if expected:
        assert NUMBER.sub("#", done.stdout) == NUMBER.sub("#", expected)
        told, wanted = (list(map(float, NUMBER.findall(text))) for text in (done.stdout, expected))
        # Another processor rounds otherwise, so not to the last digits.
        assert told == pytest.approx(wanted, abs=1e-3)
