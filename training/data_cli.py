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

    from training.config import DataRecipe, load_recipe
    from training.data import load_splits
    from training.data_check import check_data
    from training.data_report import render_report
    from training.image_progress import show_progress

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


@data.command()
@click.argument("captured", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(file_okay=False, path_type=Path))
def unpack(captured: Path, out: Path) -> None:
    """Write the images that a server captured to OUT/CLASS/, for a person to look at.

    CAPTURED is a folder NAME@VERSION, or one part file of it. An image lies where the model put it:
    move those that it got wrong, delete what is of no use, then `fivecrop data label`.
    """
    from training.captured import unpack

    click.echo(f"{unpack(captured, out):,} images in {out}")


@data.command()
@click.argument("captured", type=click.Path(path_type=Path))
@click.argument("labels", required=False, type=click.Path(path_type=Path))
@click.option("--predicted", "is_predicted", is_flag=True, help="Believe the model instead.")
@click.option(
    "--min-score",
    type=click.FloatRange(0, 1),
    default=0.95,
    show_default=True,
    help="With --predicted: of images that it was less sure of, believe nothing.",
)
@click.option(
    "--out", required=True, type=click.Path(dir_okay=False, path_type=Path), help="As new.parquet."
)
def label(
    captured: Path, labels: Path | None, is_predicted: bool, min_score: float, out: Path
) -> None:
    """Write the images that a server captured with labels, as Parquet to train on.

    LABELS is the folder of `fivecrop data unpack`, looked through by a person, or a CSV with the
    columns `file` and `label`. Images without a label are left out.
    """
    from training.captured import label_as_predicted, label_by_folder, label_by_table

    if (labels is None) != is_predicted:
        raise click.UsageError("give either LABELS or --predicted")
    if labels is None:
        done = label_as_predicted(captured, min_score, out)
    else:
        read = label_by_table if labels.suffix == ".csv" else label_by_folder
        done = read(captured, labels, out)
    missing = f", {done.missing:,} labels are of no captured image" if done.missing else ""
    click.echo(f"{done.images:,} images in {out}, {done.left_out:,} without a label{missing}")
