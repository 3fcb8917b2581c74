"""The sub-command `advise` of `fivecrop`: what to change in a recipe, by what is measured."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from training.advice import Advice


@click.command()
@click.argument("source", metavar="RECIPE|RUN_DIR", type=click.Path(exists=True, path_type=Path))
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="As data.train=DIR.")
@click.option(
    "--images",
    type=click.IntRange(50),
    default=2000,
    show_default=True,
    help="That pretrained features are probed on, at most; for training, and as many to measure.",
)
@click.option("--no-transfer", is_flag=True, help="Do not probe what pretrained weights know.")
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    help="A recipe (.json) that follows the advice.",
)
@click.option("--json", "is_json", is_flag=True, help="Print one JSON array.")
def advise(
    source: Path,
    overrides: tuple[str, ...],
    images: int,
    no_transfer: bool,
    out: Path | None,
    is_json: bool,
) -> None:
    """Tell what to change in a recipe, and which measured fact asks for it.

    Of a RECIPE its images are looked at (how many, how uneven, how large, which colours) and, where
    it starts from pretrained weights, how much of what they know serves these images. Of a RUN_DIR
    its learning curves are read as well.
    """
    if out is not None and out.suffix != ".json":
        raise click.UsageError("--out: the recipe is written as .json")
    from training.advising import advise_recipe, follow
    from training.config import dump_recipe, load_recipe
    from training.curves import read_curves

    is_run = source.is_dir()
    path = source / "recipe.json" if is_run else source
    recipe = load_recipe(path, overrides)
    curves = read_curves(source) if is_run else None
    found = advise_recipe(recipe, curves, max_images=images, is_transfer_probed=not no_transfer)
    click.echo(json.dumps([asdict(one) for one in found]) if is_json else _describe(found))
    if out is not None:
        followed, left_out = follow(recipe, found)
        out.write_text(dump_recipe(followed), encoding="utf-8")
        for setting in left_out:
            click.echo(f"left out, as it does not go with the rest: {setting}", err=True)


def _describe(found: tuple[Advice, ...]) -> str:
    if not found:
        return "nothing to change is seen"
    lines = []
    for one in found:
        lines += [one.topic, f"  seen: {one.fact}", f"  try:  {one.advice}"]
        lines += [f"        --set '{setting}'" for setting in one.settings]
    return "\n".join(lines)
