"""Commands out of the documents, for the tests that run them as they stand."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

ROOT = Path(__file__).parents[2]


def documented(document, pattern):
    """The words behind `fivecrop` of the one command of a document that the pattern finds."""
    text = (ROOT / document).read_text()
    (command,) = re.findall(rf"^\.venv/bin/fivecrop ({pattern}.*)$", text, re.M)
    return shlex.split(command)


def read_block(document, start):
    """The one fenced block of a document that begins so."""
    blocks = re.findall(r"^```\w*\n(.*?)^```$", (ROOT / document).read_text(), re.M | re.S)
    (block,) = (one for one in blocks if one.startswith(start))
    return block
