"""Each block of a document is run by a test or says why not, and links lead somewhere."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# Generated: the cards by an export, the tables by the benchmarks.
GENERATED = ("exported_models/*/*/MODEL_CARD.md", "benchmarks/results/*.md")

HOW = """each block of a document is run by a test, or says why it is not; drawings are ```text.
The line above a block is one of
<!-- run -->                               tests/e2e/test_docs.py runs it as it stands
<!-- output -->                            what the block before it printed
<!-- run by tests/FILE.py::TEST -->        a test of its own runs it
<!-- not run: REASON -->"""
COMMENT = re.compile(r"<!-- (run|output|run by (?P<test>\S+)|not run: (?P<reason>\S.*\S)) -->")


def list_documents():
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.md"],
        cwd=ROOT,
        capture_output=True,
        check=True,
        text=True,
    ).stdout.split()
    return [name for name in listed if not any(Path(name).match(pattern) for pattern in GENERATED)]


DOCUMENTS = list_documents()


def find_blocks(text):
    """(line number, line before, language, content) of each fenced block."""
    lines = text.splitlines()
    fences = [number for number, line in enumerate(lines) if line.startswith("```")]
    assert len(fences) % 2 == 0, "a block is not closed"
    for start, end in zip(fences[::2], fences[1::2], strict=True):
        before = lines[start - 1] if start else ""
        yield start + 1, before, lines[start][3:], "\n".join(lines[start + 1 : end])


@pytest.mark.parametrize("name", DOCUMENTS)
def test_each_block_is_run_or_says_why_not(name):
    text = (ROOT / name).read_text()
    for number, before, language, _ in find_blocks(text):
        if language == "text":
            continue
        found = COMMENT.fullmatch(before)
        assert found, f"{name}:{number}: {HOW}"
        if found["test"]:
            file, _, test = found["test"].partition("::")
            code = (ROOT / file).read_text()
            assert f"def {test}(" in code, f"{name}:{number}: there is no {found['test']}"
            reads = (Path(name).name, f'document("{Path(name).stem}")')
            assert any(one in code for one in reads), f"{name}:{number}: {file} does not read it"
        elif found[1] == "run":
            assert language in ("bash", "python", "javascript"), f"{name}:{number}: {language}"


@pytest.mark.parametrize("name", DOCUMENTS)
def test_commands_that_are_said_to_stand_elsewhere_do(name):
    for number, before, _, content in find_blocks((ROOT / name).read_text()):
        if elsewhere := re.search(r"not run: the same commands? stands? in ([^\s,;]+)", before):
            there = (ROOT / elsewhere[1]).read_text().splitlines()
            commands = {line.split("  #")[0].strip() for line in there}
            lines = [line for line in content.splitlines() if line]
            assert lines, f"{name}:{number}"
            assert [line for line in lines if line not in commands] == [], f"{name}:{number}"


def anchors(text):
    """The anchors that GitHub gives to the headings."""
    outside = re.sub(r"^```.*?^```", "", text, flags=re.S | re.M)
    for heading in re.findall(r"^#+ (.+)$", outside, re.M):
        plain = re.sub(r"[`*]|\[([^]]*)\]\([^)]*\)", r"\1", heading).strip().lower()
        yield re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")


@pytest.mark.parametrize("name", [*DOCUMENTS, *GENERATED])
def test_links_lead_somewhere(name):
    for file in ROOT.glob(name):
        text = re.sub(r"^```.*?^```", "", file.read_text(), flags=re.S | re.M)
        links = re.findall(r"(?<!\\)\]\(([^)\s]+)\)", text)
        links += re.findall(r'(?:src|srcset|href)="([^"]+)"', text)
        for link in links:
            target, _, anchor = link.partition("#")
            if "://" in target:
                assert re.fullmatch(r"https?://[\w.-]+(:\d+)?(/\S*)?", target), link
                continue
            found = file if not target else file.parent / target
            assert found.exists(), f"{name}: {link}"
            if anchor:
                assert anchor in set(anchors(found.read_text())), f"{name}: {link}"
