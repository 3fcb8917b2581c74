"""The sub-command `data` of `fivecrop`: look at what a network is going to be trained on."""

from __future__ import annotations

from pathlib import Path

import click


@click.group()
def data() -> None:
    """Look at the data of a recipe."""


@data.command()
@click.argument("recipe", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="As augment.hue=0.1.")
@click.option("--images", type=click.IntRange(1, 64), default=8, show_default=True)
@click.option("--looks", type=click.IntRange(1, 64), default=8, show_default=True)
@click.option(
    "--out", type=click.Path(dir_okay=False, path_type=Path), help="Default: NAME-augmentation.png."
)
def sheet(
    recipe: Path, overrides: tuple[str, ...], images: int, looks: int, out: Path | None
) -> None:
    """Draw what the augmentation of RECIPE makes of some training images, as a PNG."""
    from training.config import load_recipe
    from training.contact_sheet import draw_sheet

    resolved = load_recipe(recipe, overrides)
    path = Path(f"{resolved.name}-augmentation.png") if out is None else out
    draw_sheet(resolved, path, images=images, looks=looks)
    click.echo(str(path))
