"""The Dockerfile copies what is there, from stages that are there, for variants that have a lock.

`make e2e-container` builds two of the variants, and resolves the locks of all.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "Dockerfile").read_text()
VARIANTS = {"cpu", "gpu", "openvino", "score", "ray", "train"}


def read_instructions():
    """[(INSTRUCTION, words)] with continued lines joined and comments left out."""
    lines = [line for line in TEXT.splitlines() if not line.startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    return [(words[0], words[1:]) for line in joined.splitlines() if (words := line.split())]


INSTRUCTIONS = read_instructions()
# (stage or None, source) of each path that is copied.
COPIED = [
    (words[0].removeprefix("--from=") if words[0].startswith("--from=") else None, source)
    for name, words in INSTRUCTIONS
    if name == "COPY"
    for source in words[words[0].startswith("--") : -1]
]


def test_variants_are_those_that_are_documented():
    (line,) = re.findall(r"^#   VARIANT .*", TEXT, re.M)
    assert set(re.findall(r"\b[a-z]+\b", line.split(":")[1])) - {"or", "for", "jobs"} == VARIANTS
    (row,) = re.findall(r"^\| `VARIANT` .*", (ROOT / "docs/deploy.md").read_text(), re.M)
    assert set(re.findall(r"`([a-z]+)`", row)) == VARIANTS


def test_stages_are_made_before_they_are_used():
    made = {"${BASE}"}
    for name, words in INSTRUCTIONS:
        if name == "FROM":
            assert words[0] in made
            made.add(words[-1])
        if name == "COPY" and words[0].startswith("--from="):
            assert words[0].removeprefix("--from=") in made
    assert len(made) > 4


@pytest.mark.parametrize("variant", sorted(VARIANTS))
def test_what_is_copied_is_in_the_context(variant):
    let_in = {
        line[1:].rstrip("/")
        for line in (ROOT / ".dockerignore").read_text().splitlines()
        if line.startswith("!")
    }
    sources = [source for stage, source in COPIED if stage is None]
    assert len(sources) > 5
    for source in sources:
        path = Path(source.replace("${VARIANT}", variant))
        assert (ROOT / path).exists(), path
        assert {str(path), *map(str, path.parents)} & let_in, f"{path} is ignored"
