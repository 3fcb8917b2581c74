"""What `fivecrop export --check` does: proves a bundle again and tells how it went."""

from __future__ import annotations

import json
from pathlib import Path

import click

from service.bundle.repository import find_bundle
from training.errors import TrainingError
from training.image_progress import show_progress
from training.images import choose_images
from training.recheck import Check, recheck


def check_bundle(reference: str, repository: Path, data: Path | None, *, is_json: bool) -> bool:
    """Prints each check of a bundle and returns whether all hold.

    Raises:
        BundleError: There is no such bundle, or a file of it is not the one that was published.
        TrainingError: `data` cannot be read.
    """
    bundle = find_bundle(repository, reference)
    manifest = bundle.manifest
    why_not = ""
    try:
        images = choose_images(data, manifest)
    except TrainingError as error:
        if data is not None:
            raise
        images, why_not = None, str(error)
    passes = len(manifest.metrics) * (len(images) if images else 0)
    with show_progress(passes) as on_progress:
        checks = list(recheck(bundle, images, on_progress))
    is_good = all(check.is_good for check in checks)
    if is_json:
        found = [{"name": c.name, "found": c.found, "is_good": c.is_good} for c in checks]
        document = {"bundle": bundle.reference, "is_good": is_good, "checks": found}
        click.echo(json.dumps({**document, "accuracy_left_out": why_not or None}))
        return is_good
    click.echo(f"bundle  {bundle.reference}")
    for check in checks:
        click.echo(_describe(check))
    if why_not:
        click.echo(f"left out  accuracy: {why_not}")
    return is_good


def _describe(check: Check) -> str:
    return f"{'ok' if check.is_good else 'NOT OK':8}{check.name}: {check.found}"
