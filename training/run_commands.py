"""The sub-commands `diagnose`, `visualise` and `report`: what a run tells about itself."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from training.cli import ANY_PATH, repository_option

if TYPE_CHECKING:
    from training.data import Dataset
    from training.visualise import Subject

# As many images are searched for patches that excite a map.
_SEARCHED = 256


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


@click.command()
@click.argument("run_dir", type=click.Path(file_okay=False, path_type=Path), required=False)
@click.option("--arch", help="Instead of a run: timm:NAME, torchvision:NAME or seed:NAME.")
@click.option("--weights", type=ANY_PATH, help="Its weights, a .safetensors file.")
@click.option(
    "--preprocess", multiple=True, metavar="KEY=VALUE|FILE.toml|TAG", help="As of import."
)
@click.option("--labels", type=ANY_PATH, help="Names of its classes: JSON, or one a line.")
@click.option("--image", "images", type=ANY_PATH, multiple=True, help="To explain; several may be.")
@click.option("--class", "class_name", help="That is explained; default: each image's best one.")
@click.option("--layer", help="Whose maps are drawn; default: the first, a middle, the last one.")
@click.option(
    "--data", type=ANY_PATH, help="Folder or Parquet to find patches in; default: the run's."
)
@click.option("--checkpoint", type=click.Choice(["last", "best"]), default="last")
@click.option(
    "--steps",
    type=click.IntRange(0),
    default=48,
    show_default=True,
    help="Of the ascent that makes images; 0 makes none, which is much faster.",
)
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), required=True)
def visualise(
    run_dir: Path | None,
    arch: str | None,
    weights: Path | None,
    preprocess: tuple[str, ...],
    labels: Path | None,
    images: tuple[Path, ...],
    class_name: str | None,
    layer: str | None,
    data: Path | None,
    checkpoint: Literal["last", "best"],
    steps: int,
    out: Path,
) -> None:
    """Draw what a run (or the weights of an architecture) has learnt, as PNG files in --out.

    The filters of the first layer, feature maps, which pixels of an image speak for a class
    (gradient, SmoothGrad, integrated gradients, Grad-CAM, occlusion), the patches of real images
    that excite single maps most, and images made to excite them.
    """
    from training.data import decode_views
    from training.errors import TrainingError
    from training.images import sample_places
    from training.visualise import visualise as draw

    if (run_dir is None) == (arch is None):
        raise click.UsageError("give RUN_DIR or --arch")
    if arch is not None:
        if weights is None or labels is None:
            raise click.UsageError("--arch needs --weights and --labels")
        subject = _read_weights(arch, weights, preprocess, labels)
    else:
        assert run_dir is not None
        subject = _read_run(run_dir, checkpoint)
    index = None
    if class_name is not None:
        if class_name not in subject.class_names:
            raise TrainingError(f"there is no class {class_name!r}")
        index = subject.class_names.index(class_name)
    dataset = _find_data(data, run_dir, subject)
    views = None
    if dataset is not None:
        some = dataset.subset(sample_places(dataset, _SEARCHED))
        views = decode_views(some, subject.input.preprocess)
    files = draw(subject, out, images=images, views=views, index=index, layer=layer, steps=steps)
    for file in files:
        click.echo(str(file))


@click.command()
@click.argument("source")
@repository_option
@click.option(
    "--with",
    "folders",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    multiple=True,
    help="A folder that `evaluate --out` or `visualise --out` wrote; several may be.",
)
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    default="report.html",
    show_default=True,
)
def report(source: str, repository: Path, folders: tuple[Path, ...], out: Path) -> None:
    """Write one HTML file about SOURCE: a run folder, or a bundle (a folder, or NAME[@VERSION]).

    It needs no other file and no network, and reads on a phone.
    """
    from service.bundle.repository import find_bundle
    from training.html_report import write_html_report

    folder = Path(source)
    if (folder / "history.jsonl").is_file():
        write_html_report(out, run_dir=folder, manifest=None, folders=folders)
    else:
        bundle = find_bundle(repository, source)
        report = bundle.folder / "report"
        own = [report] if report.is_dir() and not folders else []
        write_html_report(out, run_dir=None, manifest=bundle.manifest, folders=[*own, *folders])
    click.echo(str(out))


def _read_run(run_dir: Path, checkpoint: Literal["last", "best"]) -> Subject:
    from training.trained_run import load_run
    from training.visualise import Subject

    run = load_run(run_dir, checkpoint=checkpoint)
    return Subject(net=run.net, input=run.recipe.input, class_names=run.class_names)


def _read_weights(arch: str, weights: Path, preprocess: tuple[str, ...], labels: Path) -> Subject:
    from training.checkpoint import load_weights
    from training.labels import read_labels
    from training.models.registry import build_model
    from training.pretrained import build_input, find_weights, read_settings, sure_settings
    from training.visualise import Subject

    names = tuple(label.name for label in read_labels(labels))
    given, tag = read_settings(preprocess)
    known = sure_settings(arch, find_weights(arch, tag), given)
    net = build_model(arch, classes=len(names), weights=load_weights(weights))
    return Subject(net=net.eval(), input=build_input(arch, {**known, **given}), class_names=names)


def _find_data(data: Path | None, run_dir: Path | None, subject: Subject) -> Dataset | None:
    """Returns the images to search: those that are given, or the run's own."""
    from service.bundle.manifest import Label
    from training.config import load_recipe
    from training.data import load_splits
    from training.images import load_images

    if data is not None:
        return load_images(data, [Label(name=name) for name in subject.class_names])
    if run_dir is not None:
        return load_splits(load_recipe(run_dir / "recipe.json").data).validation
    return None
