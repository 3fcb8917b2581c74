"""Where a bundle comes from: enough to make it again, and nothing private about this machine."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from service.bundle.manifest import Provenance
from training.hardware import library_versions

_EXPORT_LIBRARIES = ("fivecrop", "onnx", "onnxruntime", "onnxscript")


def describe_provenance(
    recipe: Mapping[str, Any],
    *,
    dataset_fingerprint: str,
    seed: int | None,
    hardware: str,
    libraries: Mapping[str, str] | None = None,
) -> Provenance:
    """Returns the record for the manifest.

    Args:
        recipe: What was asked for, as JSON values; absolute paths lose their folders.
        dataset_fingerprint: Of the data, in words and digests.
        seed: Of the run, if there was one.
        hardware: What the weights were computed on.
        libraries: Versions at training time; those that export and check are added.
    """
    versions = dict(library_versions() if libraries is None else libraries)
    versions |= {name: version(name) for name in _EXPORT_LIBRARIES}
    return Provenance(
        recipe={key: forget_folders(value) for key, value in recipe.items()},
        code_revision=code_revision(),
        dataset_fingerprint=dataset_fingerprint,
        seed=seed,
        hardware=hardware,
        libraries=versions,
    )


def forget_folders(value: Any) -> Any:
    """Returns JSON with every absolute path cut down to its last part."""
    if isinstance(value, Mapping):
        return {key: forget_folders(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [forget_folders(inner) for inner in value]
    if isinstance(value, str):
        for kind in (PurePosixPath, PureWindowsPath):
            if kind(value).is_absolute():
                return kind(value).name
    return value


def code_revision() -> str:
    """Returns the commit of the source, with `+changes` when it is not all of it, or "unknown"."""
    folder = Path(__file__).parent
    # An installed copy may lie inside somebody else's repository, whose commit says nothing.
    if _git(folder, "ls-files", "--error-unmatch", Path(__file__).name) is None:
        return "unknown"
    commit = _git(folder, "rev-parse", "HEAD")
    if commit is None:
        return "unknown"
    sources = [folder, folder.parent / "service"]
    changes = _git(folder, "status", "--porcelain", "--", *map(str, sources))
    return f"{commit}+changes" if changes else commit


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments],
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
