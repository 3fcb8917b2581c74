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


@data.command()
@click.argument("recipe", type=click.Path(path_type=Path))
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="As data.train=DIR.")
@click.option("--report", type=click.Path(dir_okay=False, path_type=Path), help="An HTML file.")
@click.option("--json", "is_json", is_flag=True, help="Print one JSON object.")
def check(recipe: Path, overrides: tuple[str, ...], report: Path | None, is_json: bool) -> None:
    """Look for unreadable images, duplicates, imbalance and doubtful labels.

    RECIPE is a recipe, or a folder with a sub-folder a class. Leaves with exit code 1 if there are
    unreadable images, images in both splits, or like images with different labels.
    """
    import json

    from training.cli import show_progress
    from training.config import DataRecipe, load_recipe
    from training.data import load_splits
    from training.data_check import check_data
    from training.data_report import render_report

    if recipe.is_dir():
        source = DataRecipe(source="folder", train=recipe)
    else:
        source = load_recipe(recipe, overrides).data
    splits = load_splits(source)
    with show_progress(len(splits.train) + len(splits.validation)) as on_progress:
        found = check_data(splits, on_progress)
    if report is not None:
        page = render_report(found, splits, title=f"Data of {recipe.name}")
        report.write_text(page, encoding="utf-8")
    if is_json:
        click.echo(json.dumps(found.to_dict()))
    else:
        counts = ", ".join(f"{count:,} images of {split}" for split, count in found.images.items())
        click.echo("\n".join([counts, *(found.problems or ["no problem was found"])]))
    is_bad = found.unreadable or any(
        one.is_across_splits or one.is_label_different for one in found.duplicates
    )
    if is_bad:
        click.get_current_context().exit(1)
