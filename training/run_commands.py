"""The sub-command `diagnose` of `fivecrop`: what a training run tells about itself."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import click


@click.command()
@click.argument("history", type=click.Path(exists=True, path_type=Path))
@click.option("--classes", type=click.IntRange(2), help="How many; a run folder knows.")
@click.option("--validation-images", type=click.IntRange(1), help="How many; a run folder knows.")
@click.option("--json", "is_json", is_flag=True, help="Print one JSON array.")
def diagnose(
    history: Path, classes: int | None, validation_images: int | None, is_json: bool
) -> None:
    """Tell what went wrong in a run by its curves: what shows it, and what to try.

    HISTORY is a run folder, or a file with one JSON object an epoch: train_loss, train_top1,
    validation_loss, validation_top1, and loss_parts and dead_relus if they are known.
    """
    from training.curves import read_curves
    from training.diagnose import diagnose as find

    curves = read_curves(history, classes=classes, validation_images=validation_images)
    found = find(curves)
    if is_json:
        click.echo(json.dumps([dataclasses.asdict(one) for one in found]))
        return
    for one in found:
        click.echo(f"{one.name}\n  seen: {one.evidence}\n  try:  {one.advice}")
    if not found:
        few = " (two epochs or more are needed)" if curves.epochs < 2 else ""
        click.echo(f"nothing wrong is seen in {curves.epochs} epochs{few}")
