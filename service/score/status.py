"""How far the job of an output is, read from its files alone."""

from __future__ import annotations

from typing import Any

from service.score.dataset import count_rows, open_output, read_manifest
from service.score.lock import describe_lock, is_alive, read_lock
from service.score.row import ABSTAINED, OK


def read_status(address: str) -> dict[str, Any]:
    """Returns the state of a job and the counts of what it has written.

    `state` is `running`, `done`, `stopped`, `failed`, or `interrupted` for a job that was killed.

    Raises:
        ScoreError: There is no job, or a part cannot be read.
    """
    folder = open_output(address)
    manifest, holder = read_manifest(folder), read_lock(folder)
    state = manifest["state"]
    is_held = holder is not None and is_alive(holder)
    if state == "running" and not is_held:
        state = "interrupted"
    counts = count_rows(folder)
    return {
        "state": state,
        "model": manifest["model"],
        "options": manifest["options"],
        "input": manifest["input"],
        "rows": counts.total(),
        "errors": counts.total() - counts[OK] - counts[ABSTAINED],
        "counts": dict(sorted(counts.items())),
        "held_by": describe_lock(holder) if holder is not None and is_held else None,
        "last_run": manifest.get("last_run"),
    }


def tell_status(status: dict[str, Any]) -> str:
    """Returns the status as lines for people."""
    model = status["model"]
    counted = ", ".join(f"{count:,} {name}" for name, count in status["counts"].items())
    lines = [
        f"state   {status['state']}",
        f"model   {model['name']}@{model['version']} ({model['variant']} on {model['provider']})",
        f"rows    {status['rows']:,}" + (f": {counted}" if counted else ""),
    ]
    if status["held_by"]:
        lines.append(f"held by {status['held_by']}")
    if status["state"] in ("interrupted", "stopped", "failed"):
        lines.append("the same command with --resume goes on")
    if status["state"] == "failed":
        lines.append("(with a larger --max-error-rate, if it was too many images that failed)")
    return "\n".join(lines)
